"""`python -m benchmarks` (`make bench`) runs the benchmarks that need no GPU, no peer environment and few minutes."""

from __future__ import annotations

import importlib

RUN = ("sft_packing",)
NAMED_ONLY: dict[str, str] = {}  # benchmark → why it is not run here


def main() -> None:
    """Run the listed benchmarks one after the other and name the others."""
    for name in RUN:
        print(f"== {name}")
        importlib.import_module(f"benchmarks.{name}").main()
    for name, reason in NAMED_ONLY.items():
        print(f"== {name}: not run here ({reason}); python -m benchmarks.{name}")


if __name__ == "__main__":
    main()
