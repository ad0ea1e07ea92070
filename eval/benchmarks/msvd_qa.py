"""
name:
msvd_qa

dataset:
the test files of LLaVA-Hound (on the Hub as ShareGPTVideo/test_video_and_instruction; unpack its archives), or a
dataset of this kit

abstract:
Questions about short clips from the web, each showing one activity. Two sets go by this name:
`msvd.qa.official.jsonl` is a sample of the original one, whose questions were made from captions by rule and whose
answers are one word; `msvd.qa.jsonl` has answers in sentences and a caption of the video, which the `hound` judge
reads. If both lie there the official one is read; name the other file to take it.

languages:
english

tags:
video, qa, open-ended, out-of-domain

paper:
https://doi.org/10.1145/3123266.3123427, https://arxiv.org/abs/2404.01258
"""

from eval.benchmarks.base import Benchmark

BENCHMARK = Benchmark("msvd_qa", __name__, files=("msvd.qa.official.jsonl", "msvd.qa.jsonl"), source="msvd")
