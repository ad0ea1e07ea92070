"""Command line of the dataset builder: ``python -m dataset_builder build CONFIG.yaml`` and ``… status CONFIG.yaml``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dataset_builder.errors import EXIT_OK, EXIT_ROWS_LEFT_OUT, run_cli


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    top = argparse.ArgumentParser(prog="python -m dataset_builder", description="From questions on videos to MMAIP-V.")
    commands = top.add_subparsers(dest="command", required=True)
    build = commands.add_parser(
        "build",
        help="build the dataset folder; stopped at any moment, the same command goes on",
        description="Exit codes: 0 all rows were used, 3 finished but rows were left out, 2 cannot run.",
    )
    status = commands.add_parser("status", help="how far a build has come")
    for command in (build, status):
        command.add_argument("config", help="YAML file of the build")
        command.add_argument("--output", help="the dataset folder (default: the config's name)")
        command.add_argument("--work", help="folder of the stage shards (default: .NAME-work beside the output)")
        command.add_argument("--limit", type=_positive, help="use only the first N questions")
    build.add_argument("--workers", type=_positive, default=1, help="processes that answer and judge; same result")
    build.add_argument("--dry-run", action="store_true", help="check config, sources and models; make nothing")
    build.add_argument("--overwrite", action="store_true", help="replace a dataset made from another config")
    build.add_argument("--quiet", action="store_true", help="no progress bars")
    return top


def main(argv: list[str] | None = None) -> int:
    """Parse and run; returns the exit code."""
    args = parser().parse_args(argv)

    def body() -> int:
        from dataset_builder.config import load_build_config

        config = load_build_config(args.config)
        output = Path(args.output or config.name)
        if args.command == "status":
            return show_status(config, output, args)
        return dry_run(config, output, args) if args.dry_run else run_build(config, output, args)

    return run_cli(body)


def run_build(config, output: Path, args: argparse.Namespace) -> int:
    """Build, then print what was left out and the summary."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from dataset_builder.build import build, work_folder

    summary = build(
        config,
        output,
        work=args.work,
        limit=args.limit,
        progress=not args.quiet,
        overwrite=args.overwrite,
        workers=args.workers,
    )
    print_rejected(work_folder(output, args.work) / "rejected.jsonl")
    print(summary)
    return EXIT_ROWS_LEFT_OUT if summary["rejected"] else EXIT_OK


def print_rejected(file: Path, most: int = 50) -> None:
    """One line on stderr for each row that was left out."""
    import json

    from dataset_builder.errors import RowError

    lines = file.read_text(encoding="utf-8").splitlines()
    for line in lines[:most]:
        row = json.loads(line)
        error = RowError(row["file"], row["row"], row["field"], row["reason"], row["kind"])
        print(f"left out: {error}", file=sys.stderr)
    if len(lines) > most:
        print(f"left out: {len(lines) - most} more rows, all in {file}", file=sys.stderr)


def dry_run(config, output: Path, args: argparse.Namespace) -> int:
    """Check everything that a build checks before it starts, and say what it would do."""
    import tempfile

    from dataset_builder import plan
    from dataset_builder.build import check_output, load_questions, work_folder
    from dataset_builder.pool import pending

    check_output(output, plan.config_hash(config, args.limit), args.overwrite)
    with tempfile.TemporaryDirectory() as folder:
        questions, rejected = load_questions(config, args.limit, Path(folder), progress=not args.quiet)
        print_rejected(Path(folder) / "rejected.jsonl")
        work = work_folder(output, args.work)
        job = plan.make_job(config, questions, work if work.is_dir() else Path(folder))
        _, counts = pending(job)
    print(f"{'clips':<10} {len({q.sha256 for q in questions})}")
    print(f"{'questions':<10} {len(questions)}")
    for member in job.members:
        print(f"{'member':<10} {member['name']} {member['identity']['revision']}, {member['samples']} a question")
    for judge in job.judges:
        print(f"{'judge':<10} {judge['name']}")
    for stage, (done, total) in counts.items():
        print(f"{stage:<10} {done} of {total} answers are done")
    print(f"{'rejected':<10} {len(rejected)}")
    print(f"{'dataset':<10} {output} (nothing was made)")
    return EXIT_ROWS_LEFT_OUT if rejected else EXIT_OK


def show_status(config, output: Path, args: argparse.Namespace) -> int:
    """Say how much of a build is there, without loading a model."""
    import tempfile

    from dataset_builder import mmaip_v, plan
    from dataset_builder.build import load_questions, work_folder
    from dataset_builder.pool import pending

    work = work_folder(output, args.work)
    with tempfile.TemporaryDirectory() as folder:
        questions, rejected = load_questions(config, args.limit, Path(folder), progress=False)
        job = plan.make_job(config, questions, work if work.is_dir() else Path(folder))
        _, counts = pending(job)
    for stage, (done, total) in counts.items():
        print(f"{stage:<10} {done} of {total} answers are done")
    key = plan.build_fingerprint(plan.config_hash(config, args.limit), job, questions, rejected)
    old = mmaip_v.read_provenance(output)
    if old is None:
        state = "not written yet"
    elif old.get("fingerprint") != key:
        state = "made from other inputs than these"
    else:
        state = "complete" if mmaip_v.is_intact(output, old) else "damaged: run build again"
    print(f"{'dataset':<10} {output}: {state}")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
