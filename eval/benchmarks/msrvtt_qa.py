"""
name:
msrvtt_qa

dataset:
the test files of LLaVA-Hound (on the Hub as ShareGPTVideo/test_video_and_instruction; unpack its archives), or a
dataset of this kit

abstract:
Questions about web clips of twenty categories, ten to thirty seconds long. `msrvtt.qa.official.jsonl` is a sample of
the original set, whose answers are one word; `msrvtt.qa.jsonl` has answers in sentences and a caption of the video.
If both lie there the official one is read; name the other file to take it.

languages:
english

tags:
video, qa, open-ended, out-of-domain

paper:
https://doi.org/10.1145/3123266.3123427, https://arxiv.org/abs/2404.01258
"""

from eval.benchmarks.base import Benchmark

BENCHMARK = Benchmark("msrvtt_qa", __name__, files=("msrvtt.qa.official.jsonl", "msrvtt.qa.jsonl"), source="msrvtt")
