"""What the package in an evaluator's repo does when it runs: the repo's own judge, LightEval's commands."""

from __future__ import annotations

import sys
from pathlib import Path

from dataset_builder.errors import run_cli
from eval import settings
from eval.evaluator.config import read_config, resolved
from eval.launcher import WORDS, run_lighteval

_HELP = """usage: python run.py COMMAND …

LightEval's commands on the tasks of this folder, judged by the evaluator in it; no network is needed.

  python run.py custom MODEL {folder}/video_model.py mmaip_v --save-details
      MODEL is a checkpoint folder or Hub id[@revision] that takes video natively
  python run.py accelerate "model_name=MODEL" mmaip_v --vision-model
      through LightEval's own vision model: frames as images
  python run.py tasks list
      the tasks

All words of `lighteval` work: {words}.
MMAIP_V_DATA names the dataset folder or Hub id (mmaip-v by default), MMAIP_V_EVAL a YAML with settings, among them
`judge:` for another judge than this one."""


def use_own_judge(folder: str | Path) -> None:
    """Let the evaluator in a folder judge where the settings of this process name no judge.

    Raises:
        KitError: the folder holds no evaluator, or not all of it.
    """
    settings.DEFAULT_JUDGE = resolved(read_config(folder)["judge"], folder)


def main(folder: str | Path, arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = not arguments or arguments[0] in ("-h", "--help")
    if asked or arguments[0] not in WORDS:
        print(_HELP.format(folder=folder, words=", ".join(WORDS)), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2

    def run() -> int:
        use_own_judge(folder)
        return run_lighteval(arguments, "python run.py")

    return run_cli(run)
