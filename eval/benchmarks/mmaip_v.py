"""
name:
mmaip_v, mmaip_v_toy

dataset:
the `benchmark` config of any dataset of this kit, a folder or a Hub id; `mmaip-v` beside you by default

abstract:
Open questions about the videos that a dataset of this kit holds back from training (split `test`), with reference
answers where there are any. `mmaip_v_toy` is the same for the embedded toy world of coloured shapes, whose truth is
known exactly: a check of a set-up, not a measurement of a model.

languages:
english

tags:
video, qa, open-ended, preference-alignment

paper:
https://arxiv.org/abs/2411.16201
"""

from eval.benchmarks.base import Benchmark

BENCHMARK = Benchmark("mmaip_v", __name__, default="mmaip-v")
TOY = Benchmark("mmaip_v_toy", __name__, default="mmaip-v")
