"""
name:
tgif_qa

dataset:
the test files of LLaVA-Hound (on the Hub as ShareGPTVideo/test_video_and_instruction; unpack its archives), or a
dataset of this kit

abstract:
Questions about animated GIFs of a few seconds. `tgif.qa.official.jsonl` is a sample of the original open-ended
questions, whose answers are one word; `tgif.qa.jsonl` has answers in sentences and a caption. If both lie there the
official one is read; name the other file to take it.

languages:
english

tags:
video, qa, open-ended, out-of-domain

paper:
https://arxiv.org/abs/1704.04497, https://arxiv.org/abs/2404.01258
"""

from eval.benchmarks.base import Benchmark

BENCHMARK = Benchmark("tgif_qa", __name__, files=("tgif.qa.official.jsonl", "tgif.qa.jsonl"), source="tgif")
