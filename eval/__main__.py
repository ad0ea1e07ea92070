"""``python -m eval``: LightEval's words on our tasks without a network, and what is done with saved results."""

from __future__ import annotations

import sys
from importlib import import_module

from dataset_builder.errors import run_cli
from eval.launcher import WORDS, run_lighteval

COMMANDS = {  # word → module with `run(arguments) -> exit code`
    "compare": "eval.commands.compare",
    "rejudge": "eval.commands.rejudge",
    "agreement": "eval.commands.agreement",
    "debias": "eval.commands.debias",
    "gold-size": "eval.commands.gold_size",
    "label": "eval.gold.command",
    "audit-judge": "eval.audit.command",
}
HELP = f"""usage: python -m eval COMMAND …

Evaluate (LightEval's words)
  custom NAME eval/video_model.py TASK [--custom-tasks eval/tasks.py] [--save-details] [--output-dir DIR]
      a checkpoint folder or Hub id[@revision] that takes video natively
  accelerate "model_name=CHECKPOINT,…" TASK --vision-model [--custom-tasks eval/tasks.py]
      through LightEval's own vision model: frames as images
  tasks list
      the tasks of eval/tasks.py

Saved results (this kit's JSON, or LightEval's with details)
  compare A B …          paired tests clustered by video; Markdown, JSON and a picture
  rejudge RESULTS        stored answers or predictions, judged again by another judge
  agreement A B …        do several judges of the same answers agree?
  label RESULTS          gold labels by hand, on a local page
  debias RESULTS         accuracy with what gold labels say of the judge's errors
  gold-size RESULTS      how many gold labels a wanted interval needs

Judges
  audit-judge JUDGE.yaml  bias of a judge on answers whose truth is known

All other words of `lighteval` work too: {", ".join(w for w in WORDS if w not in ("custom", "accelerate", "tasks"))}.
MMAIP_V_DATA names the dataset folder or Hub id (mmaip-v by default), MMAIP_V_EVAL a YAML with settings."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0
    word, rest = arguments[0], arguments[1:]
    if word in COMMANDS:
        return import_module(COMMANDS[word]).run(rest)
    if word in WORDS:
        return run_lighteval(arguments)
    print(HELP, file=sys.stderr)
    print(f"\nerror: there is no command '{word}'", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(run_cli(main))
