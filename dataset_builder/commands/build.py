"""``build CONFIG.yaml``: make the dataset folder, or with ``--dry-run`` say what would be made."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from dataset_builder.errors import EXIT_OK, EXIT_ROWS_LEFT_OUT, KitError, RowError
from dataset_builder.settings import BuildConfig, load_build_config


def run(args: argparse.Namespace) -> int:
    """Build, then print what was left out and the summary."""
    config = load_build_config(args.config)
    output = Path(args.output or config.name)
    if args.dry_run:
        return dry_run(config, output, args)
    from dataset_builder.build import build, work_folder

    common = {
        "work": args.work,
        "limit": args.limit,
        "progress": not args.quiet,
        "overwrite": args.overwrite,
        "retry_errors": args.retry_errors,
    }
    if args.executor:
        from dataset_builder.executors import run_executor

        summary = run_executor(
            config,
            output,
            executor=args.executor,
            tasks=args.tasks,
            workers=args.workers,
            options=options(args.executor_option),
            **common,
        )
    else:
        summary = build(config, output, workers=args.workers or 1, **common)
    if summary is None:  # another process, or a job that waits in a queue, writes the dataset
        return EXIT_OK
    work = work_folder(output, None if args.work and "://" in args.work else args.work)
    print_rejected(work / "rejected.jsonl")
    print(summary)
    return EXIT_ROWS_LEFT_OUT if summary["rejected"] else EXIT_OK


def options(words: list[str]) -> dict[str, str]:
    """``NAME=VALUE`` words as a mapping.

    Raises:
        KitError: a word is none.
    """
    for word in words:
        if "=" not in word:
            raise KitError(f"--executor-option {word}: must be NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def print_rejected(file: Path, most: int = 50) -> None:
    """One line on stderr for each row that was left out."""
    if not file.exists():
        return
    count = 0
    with open(file, encoding="utf-8") as lines:
        for count, line in enumerate(lines, start=1):
            if count <= most:
                row = json.loads(line)
                error = RowError(row["file"], row["row"], row["field"], row["reason"], row["kind"])
                print(f"left out: {error}", file=sys.stderr)
    if count > most:
        print(f"left out: {count - most} more rows, all in {file}", file=sys.stderr)


def dry_run(config: BuildConfig, output: Path, args: argparse.Namespace) -> int:
    """Check everything that a build checks before it starts, and say what it would do and cost."""
    from dataset_builder import plan
    from dataset_builder.assemble import table_facts
    from dataset_builder.build import check_output, load_questions, work_folder
    from dataset_builder.estimate import estimate
    from dataset_builder.stages.pool import pending

    check_output(output, plan.config_hash(config, args.limit), args.overwrite)
    work = work_folder(output, args.work)
    if asks_for_questions(config):
        return dry_run_unasked(config, output, args.limit)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = load_questions(config, args.limit, folder, progress=not args.quiet)
        print_rejected(folder / "rejected.jsonl")
        job = plan.make_job(config, folder)
        facts = table_facts(job.table)
        counts: dict[str, Any] = {}
        if work.is_dir():  # what an earlier run has finished
            job.work = str(work)
            _, counts = pending(job)
    print(f"{'clips':<10} {facts['clips']}")
    print(f"{'questions':<10} {facts['questions']}")
    for member in job.members:
        print(f"{'member':<10} {member['name']} {member['identity']['revision']}, {member['samples']} a question")
    for judge in job.judges:
        print(f"{'judge':<10} {judge['name']}")
    for stage, (done, total) in counts.items():
        print(f"{stage:<10} {done} of {total} answers are done")
    print(f"{'rejected':<10} {sum(report.rejected.values())}")
    print(f"{'dataset':<10} {output} (nothing was made)")
    if not config.imports:
        print(estimate(config, facts["questions"], facts["clips"]))
    return EXIT_ROWS_LEFT_OUT if report.rejected else EXIT_OK


def asks_for_questions(config: BuildConfig) -> bool:
    """Whether reading the sources calls a model, which a look at a build must not do."""
    return any(source.kind == "generated" for source in config.sources)


def dry_run_unasked(config: BuildConfig, output: Path, limit: int | None) -> int:
    """The same while a model has yet to write the questions: nothing is called, and the figures are upper bounds."""
    from dataset_builder import plan
    from dataset_builder.estimate import count_sources, estimate

    counted = count_sources(config)
    members, judges = plan.make_members(config.zoo), plan.make_judges(config.judges)
    if counted is not None:
        questions, videos = counted
        questions = questions if limit is None else min(questions, limit)
        print(f"{'clips':<10} at most {videos}")
        print(f"{'questions':<10} at most {questions}, which a model has yet to write")
    for member in members:
        print(f"{'member':<10} {member['name']} {member['identity']['revision']}, {member['samples']} a question")
    for judge in judges:
        print(f"{'judge':<10} {judge['name']}")
    print(f"{'dataset':<10} {output} (nothing was made)")
    if counted is None:
        print("the questions of this config cannot be counted here: `estimate` with --questions N says what they cost")
    else:
        print(estimate(config, questions, videos))
    return EXIT_OK
