"""`python -m benchmarks` (`make bench`) runs the benchmarks that need no GPU, no peer environment and few minutes."""

from __future__ import annotations

import importlib

RUN = ("sft_packing", "debias_coverage")
NAMED_ONLY = {  # benchmark → why it is not run here
    "toy_evaluator": "reads the folders of `make demo` and trains judges for some minutes",
    "video_sampling": "compares with decord2 and torchcodec, which are not among the requirements",
    "endpoint_throughput": "wants an idle machine",
    "build_memory": "takes more than 10 minutes",
    "selection": "takes more than 10 minutes",
    "export_peers": "makes environments for ms-swift and LLaMA-Factory",
    "arms": "reads the runs of six seeds or more that benchmarks.arms_runs trains in an hour or two",
    "video_dpo": "wants an idle machine; with --peers also environments for ms-swift and LLaMA-Factory",
    "video_dpo_gpu": "needs a GPU",
    "extrapolation": "wants an idle machine; with --peers also an environment for mergekit",
}


def main() -> None:
    """Run the listed benchmarks one after the other and name the others."""
    for name in RUN:
        print(f"== {name}")
        importlib.import_module(f"benchmarks.{name}").main()
    for name, reason in NAMED_ONLY.items():
        print(f"== {name}: not run here ({reason}); python -m benchmarks.{name}")


if __name__ == "__main__":
    main()
