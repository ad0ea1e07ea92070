"""``python -m cards release CONFIG.yaml …``: the road; ``finish``, ``push``, ``verify``, ``doctor``, ``curves``."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cards.doctor import add_doctor, doctor
from cards.finish import add_finish, finish
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
    add_finish(verbs)
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
    top = parser()
    arguments, others = top.parse_known_args(argv)
    if others and arguments.verb != "finish":  # which takes the words of a training command
        top.error(f"unrecognized arguments: {' '.join(others)}")

    def say(text: str) -> None:
        print(text, flush=True)

    def body() -> int:
        if arguments.verb == "curves":
            return draw_curves(arguments.run, arguments.picture)
        if arguments.verb in ("push", "verify", "doctor"):
            return {"push": push, "verify": verify, "doctor": doctor}[arguments.verb](arguments, say)
        if arguments.verb == "finish":
            set_environment(offline=False, one_thread=False)
            return finish(arguments, others, say)
        from cards.release import load_config, plan, release

        config = load_config(arguments.config, arguments.seed)
        if arguments.dry_run:
            print(plan(config))
            return 0
        offline = os.environ.get("HF_HUB_OFFLINE")
        set_environment(offline=config.world is not None, one_thread=config.world is not None or config.workers > 1)
        release(config, overwrite=arguments.overwrite, say=say)
        if not config.namespace:
            return 0
        return push_leg(config.run_dir, config.namespace, config.name, offline, config.push.words())

    return run_cli(lambda: on_a_full_disk(body))


def set_environment(offline: bool, one_thread: bool) -> None:
    """What has to be set before torch is imported.

    Args:
        offline: the toy world needs no network; a release of one's own may name models of the Hub.
        one_thread: because stages run several processes side by side.
    """
    wanted = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    wanted |= {"OMP_NUM_THREADS": "1"} if one_thread else {}
    wanted |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def on_a_full_disk(body: Callable[[], int]) -> int:
    """Run a body; a disk that is full is no defect of the kit, and is one line.

    Raises:
        KitError: it is.
    """
    try:
        return body()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        place = f"{error.filename}: " if error.filename else ""
        raise KitError(f"{place}cannot be written: {error.strerror}; make room, and the same command goes on") from None


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is closed; torch's compiler bindings print pages of "leaked" lines on an orderly exit
