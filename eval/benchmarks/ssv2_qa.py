"""
name:
ssv2_qa

dataset:
`ssv2.qa.jsonl` of LLaVA-Hound (on the Hub in ShareGPTVideo/test_video_and_instruction), or a dataset of this kit

abstract:
Questions about hands doing something with things (Something-Something v2), with answers in sentences and a caption of
each video. What matters is the motion, which no single frame shows.

languages:
english

tags:
video, qa, open-ended, out-of-domain, motion

paper:
https://arxiv.org/abs/1706.04261, https://arxiv.org/abs/2404.01258
"""

from eval.benchmarks.base import Benchmark

BENCHMARK = Benchmark("ssv2_qa", __name__, files=("ssv2.qa.jsonl",), source="ssv2")
