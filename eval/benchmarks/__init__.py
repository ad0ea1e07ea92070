"""The benchmarks that tasks evaluate on: one small file each, and one reader for the shapes their data comes in.

Nothing here knows LightEval; `eval/tasks.py` makes tasks of these entries. To add one, write a file like its
neighbours and name it here.
"""

from eval.benchmarks import (
    activitynet_qa,
    mmaip_v,
    msrvtt_qa,
    msvd_qa,
    ssv2_qa,
    tgif_qa,
    vidal_qa,
    webvid_qa,
)
from eval.benchmarks.base import Benchmark, metadata
from eval.benchmarks.reading import BenchmarkRows, read_benchmark

_OTHERS = (msvd_qa, msrvtt_qa, tgif_qa, activitynet_qa, ssv2_qa, webvid_qa, vidal_qa)
BENCHMARKS: dict[str, Benchmark] = {
    each.name: each for each in (mmaip_v.BENCHMARK, mmaip_v.TOY, *(module.BENCHMARK for module in _OTHERS))
}

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkRows", "metadata", "read_benchmark"]
