"""
name:
activitynet_qa

dataset:
ActivityNet-QA (`test_q.json` and `test_a.json`), or `actnet.qa.jsonl` of LLaVA-Hound (on the Hub in
ShareGPTVideo/test_video_and_instruction), or a dataset of this kit

abstract:
Questions about long web videos of everyday activities, asked and answered by people: motion, place, time, yes or no,
colour, object, number. The type of a question is the set's own number for it. `actnet.qa.jsonl` asks about parts of
such videos, with answers in sentences and captions. If both lie there the original is read.

languages:
english

tags:
video, qa, open-ended, long-video

paper:
https://arxiv.org/abs/1906.02467, https://arxiv.org/abs/2404.01258
"""

from eval.benchmarks.base import Benchmark

BENCHMARK = Benchmark("activitynet_qa", __name__, files=("test_q.json", "actnet.qa.jsonl"), source="activitynet")
