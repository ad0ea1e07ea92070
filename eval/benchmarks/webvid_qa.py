"""
name:
webvid_qa

dataset:
`webvid.qa.jsonl` of LLaVA-Hound (on the Hub in ShareGPTVideo/test_video_and_instruction), or a dataset of this kit

abstract:
Questions about stock footage, with answers in sentences and a caption of each video. Of the same kind as the training
questions of LLaVA-Hound: in-domain for models trained on them.

languages:
english

tags:
video, qa, open-ended, in-domain

paper:
https://arxiv.org/abs/2104.00650, https://arxiv.org/abs/2404.01258
"""

from eval.benchmarks.base import Benchmark

BENCHMARK = Benchmark("webvid_qa", __name__, files=("webvid.qa.jsonl",), source="webvid")
