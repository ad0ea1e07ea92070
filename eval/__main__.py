"""``python -m eval``: LightEval's words on our tasks without a network, and the paired comparison of saved results."""

from __future__ import annotations

import argparse
import json
import sys

from dataset_builder.errors import run_cli
from eval.launcher import WORDS, run_lighteval

HELP = f"""usage: python -m eval COMMAND …

  custom NAME eval/video_model.py TASK [--custom-tasks eval/tasks.py] [--save-details] [--output-dir DIR]
      evaluate a checkpoint folder or Hub id[@revision] that takes video natively
  accelerate "model_name=CHECKPOINT,…" TASK --vision-model [--custom-tasks eval/tasks.py]
      evaluate through LightEval's own vision model: frames as images
  tasks list
      the tasks of eval/tasks.py
  compare A B [--markdown FILE] [--json FILE]
      clustered paired test between two saved results (this kit's JSON, or LightEval's with details)

All other words of `lighteval` work too: {", ".join(w for w in WORDS if w not in ("custom", "accelerate", "tasks"))}.
MMAIP_V_DATA names the dataset folder or Hub id (mmaip-v by default), MMAIP_V_EVAL a YAML with settings."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0
    word, rest = arguments[0], arguments[1:]
    if word == "compare":
        return compare_command(rest)
    if word in WORDS:
        return run_lighteval(arguments)
    print(HELP, file=sys.stderr)
    print(f"\nerror: there is no command '{word}'", file=sys.stderr)
    return 2


def compare_command(arguments: list[str]) -> int:
    """``python -m eval compare A B``."""
    parser = argparse.ArgumentParser(
        prog="python -m eval compare",
        description="Paired test of A against B over the questions both have a verdict for: per-video sign flips.",
    )
    parser.add_argument(
        "a", metavar="A", help="results JSON, LightEval results or details, or a folder with one of them"
    )
    parser.add_argument("b", metavar="B", help="the comparator, on the same questions")
    parser.add_argument("--draws", type=int, default=100_000, help="random sign assignments (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--markdown", metavar="FILE", help="also write the report as Markdown")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    options = parser.parse_args(arguments)
    if options.draws < 1:
        parser.error("--draws must be at least 1")

    from eval.details import load_results
    from eval.report import comparison_markdown, comparison_record
    from eval.results import write_text

    record = comparison_record(load_results(options.a), load_results(options.b), options.draws, options.seed)
    report = comparison_markdown(record)
    print(report)
    if options.markdown:
        write_text(options.markdown, report + "\n")
    if options.json:
        write_text(options.json, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
