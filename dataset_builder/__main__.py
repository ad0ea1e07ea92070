"""Command line of the dataset builder: ``python -m dataset_builder build CONFIG.yaml`` and its neighbours."""

from __future__ import annotations

import argparse
import importlib
import os

from dataset_builder.errors import run_cli

SHAPES = ("ms_swift", "llama_factory", "hound", "images")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    top = argparse.ArgumentParser(prog="python -m dataset_builder", description="From questions on videos to MMAIP-V.")
    commands = top.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build",
        help="build the dataset folder; stopped at any moment, the same command goes on",
        description="Exit codes: 0 all rows were used, 3 finished but rows were left out, 4 a spend limit was reached, "
        "2 cannot run.",
    )
    status = commands.add_parser("status", help="how far a build has come, also while it runs")
    estimate = commands.add_parser("estimate", help="calls, frames, tokens, money, hours and storage of a build")
    for command in (build, status, estimate):
        command.add_argument("config", help="YAML file of the build")
    for command in (build, status):
        command.add_argument("--output", help="the dataset folder (default: the config's name)")
        command.add_argument("--work", help="folder of the stage shards (default: .NAME-work beside the output)")
        command.add_argument("--limit", type=_positive, help="use only the first N questions")
    build.add_argument("--workers", type=_positive, help="processes (or tasks at once) for local models; same result")
    build.add_argument("--dry-run", action="store_true", help="check config, sources and models; make nothing")
    build.add_argument("--overwrite", action="store_true", help="replace a dataset made from another config")
    build.add_argument("--retry-errors", action="store_true", help="ask endpoints again for what failed before")
    build.add_argument("--quiet", action="store_true", help="no progress bars")
    build.add_argument("--executor", choices=("local", "slurm", "ray"), help="run as several tasks (extra: cluster)")
    build.add_argument("--tasks", type=_positive, default=1, help="number of tasks; the result does not depend on it")
    build.add_argument(
        "--executor-option", action="append", default=[], metavar="NAME=VALUE", help="such as partition=gpu"
    )
    estimate.add_argument("--questions", type=_positive, help="number of questions (default: counted in the sources)")
    estimate.add_argument("--videos", type=_positive, help="number of videos (default: counted, or a third)")
    estimate.add_argument("--latency", type=_seconds, default=4.0, help="seconds that an endpoint takes a call")
    estimate.add_argument(
        "--local-seconds", type=_seconds, default=1.0, help="seconds that a local model takes an answer"
    )

    attach = commands.add_parser("attach", help="put one's own copies of the videos into an ids-only dataset")
    attach.add_argument("--videos", required=True, help="folder with the videos")
    export = commands.add_parser("export", help="write the pairs for another trainer")
    export.add_argument("--shape", required=True, choices=SHAPES, help="whose rows; images: for stock TRL vision DPO")
    export.add_argument("--split", default="train")
    export.add_argument("--num-frames", type=_positive, default=8, help="frames of a video, for images")
    reselect = commands.add_parser("reselect", help="a new version from the stored scores, without a call")
    reselect.add_argument("--config", required=True, help="YAML file of the rules: pairs, judges, weights")
    for command in (attach, export, reselect):
        command.add_argument("dataset", help="a dataset folder or a Hub id")
        command.add_argument("--output", required=command is not attach, help="the new folder")
        command.add_argument("--overwrite", action="store_true", help="replace what is there")
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    for command in (export, reselect):
        command.add_argument("--media", help="a build's media.json, for videos that the dataset does not carry")

    injections = commands.add_parser("injections", help="how far injected instructions move a build's judges")
    injections.add_argument("config", help="YAML file of a build whose judges are measured")
    injections.add_argument("--questions", type=_positive, default=8, help="questions of the build to try them on")
    injections.add_argument("--output", help="JSON file for the result")
    return top


def main(argv: list[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    args = parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Each command's module is imported when it is asked for: --help stays light.
    return run_cli(lambda: importlib.import_module(f"dataset_builder.commands.{args.command}").run(args))


if __name__ == "__main__":
    raise SystemExit(main())
