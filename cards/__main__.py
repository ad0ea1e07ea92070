"""``python -m cards release CONFIG.yaml …`` (the whole road), ``push``, ``verify``, ``doctor`` and ``curves``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cards.doctor import add_doctor, doctor
from cards.push.command import add_push, push, push_leg
from cards.verify.command import add_verify, verify
from dataset_builder.errors import KitError, run_cli


def parser() -> argparse.ArgumentParser:
    """The command line of the room."""
    top = argparse.ArgumentParser(prog="python -m cards", description="Cards, report and the whole road to a release.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    release = verbs.add_parser("release", help="build, train, evaluate and write cards from one config; resumable")
    release.add_argument("config", metavar="CONFIG.yaml")
    release.add_argument("--seed", type=int, default=None, help="another seed, in RUN_DIR-seed-K with its own dataset")
    release.add_argument("--dry-run", action="store_true", help="say what would be made and pushed; start nothing")
    release.add_argument("--overwrite", action="store_true", help="replace a dataset made from another config")
    add_push(verbs)
    add_verify(verbs)
    add_doctor(verbs)
    curves = verbs.add_parser("curves", help="draw the alpha searches of a run of recipes/iter_w2s.py")
    curves.add_argument("run", metavar="RUN", help="its output_dir")
    curves.add_argument("picture", metavar="PICTURE", help="a .png or .svg to write")
    return top


def draw_curves(run: str, picture: str) -> int:
    """Draw the saved alpha searches of a run's rounds.

    Raises:
        KitError: when there are no rounds, or none had a choice.
    """
    from cards.alpha_figure import draw
    from eval.results import read_json

    rounds = read_json(Path(run) / "rounds.json").get("rounds", [])
    if draw(rounds, picture) is None:
        raise KitError(f"{run}: no round had a choice between alphas")
    print(picture)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = parser().parse_args(argv)

    def body() -> int:
        if arguments.verb == "curves":
            return draw_curves(arguments.run, arguments.picture)
        if arguments.verb == "push":
            return push(arguments, lambda text: print(text, flush=True))
        if arguments.verb in ("verify", "doctor"):
            return {"verify": verify, "doctor": doctor}[arguments.verb](arguments, lambda text: print(text, flush=True))
        from cards.release import load_config, plan, release

        config = load_config(arguments.config, arguments.seed)
        if arguments.dry_run:
            print(plan(config))
            return 0
        offline = os.environ.get("HF_HUB_OFFLINE")
        # set before torch is imported: one thread a process, because stages run two processes side by side
        for name, value in {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "1",
        }.items():
            os.environ.setdefault(name, value)
        release(config, overwrite=arguments.overwrite, say=lambda text: print(text, flush=True))
        return push_leg(config.run_dir, config.namespace, config.name, offline) if config.namespace else 0

    return run_cli(body)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is closed; torch's compiler bindings print pages of "leaked" lines on an orderly exit
