"""``python -m tests.rehearsal``: release a finished run to a Hub on this machine, and load everything back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dataset_builder.errors import run_cli


def main(argv: list[str] | None = None) -> int:
    """Rehearse, and return the exit code: 1 when a step failed, 2 when there is nothing to rehearse with."""
    parser = argparse.ArgumentParser(prog="python -m tests.rehearsal", description=__doc__)
    parser.add_argument("--run", default="runs/demo", help="a finished run folder (default: %(default)s)")
    parser.add_argument(
        "--output", default="runs/rehearsal", help="replaced if it is a rehearsal (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, default=24, help="questions for LightEval and answers for the evaluator")
    options = parser.parse_args(argv)

    def body() -> int:
        from tests.rehearsal.rehearsal import Rehearsal

        rehearsal = Rehearsal(Path(options.run), Path(options.output), options.limit)
        return 0 if rehearsal.all(lambda text: print(text, flush=True)) else 1

    return run_cli(body)


if __name__ == "__main__":
    sys.exit(main())
