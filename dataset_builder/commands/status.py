"""``status CONFIG.yaml``: how much of a build is there, without loading a model, also while it runs."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from dataset_builder.errors import EXIT_OK
from dataset_builder.settings import BuildConfig, load_build_config
from dataset_builder.stages import ShardStore
from dataset_builder.stages.job import CALL_CACHE, Job, is_remote, read_member, read_scores


def run(args: argparse.Namespace) -> int:
    """Print what is done of every stage, the rate, the money and the state of the dataset."""
    from dataset_builder.build import work_folder
    from dataset_builder.commands.build import asks_for_questions

    config = load_build_config(args.config)
    output = Path(args.output or config.name)
    work = work_folder(output, args.work)
    if asks_for_questions(config) and not (work / "questions.arrow").exists():
        print(f"{'questions':<10} not all are written yet: `build` goes on asking for them")
        print(f"{'dataset':<10} {output}: {'there, without its work folder' if output.exists() else 'not written yet'}")
        return EXIT_OK
    with tempfile.TemporaryDirectory() as scratch:
        job, rejected = plan_of(config, work, Path(scratch), args.limit)
        for line in [*stage_lines(job), *money_lines(job, work)]:
            print(line)
        print(f"{'dataset':<10} {output}: {state(config, output, work, job, rejected, args.limit)}")
    return EXIT_OK


def plan_of(config: BuildConfig, work: Path, scratch: Path, limit: int | None) -> tuple[Job, dict[str, int]]:
    """The build's job: from the table that the build has left, or, before it has one, from the sources."""
    from collections import Counter

    from dataset_builder import plan
    from dataset_builder.build import load_questions

    if (work / "questions.arrow").exists():
        kinds: Counter = Counter()
        if (work / "rejected.jsonl").exists():
            with open(work / "rejected.jsonl", encoding="utf-8") as lines:
                kinds.update(json.loads(line)["kind"] for line in lines)
        return plan.make_job(config, work), dict(sorted(kinds.items()))
    rejected = load_questions(config, limit, scratch, progress=False).rejected
    return plan.make_job(config, scratch), rejected


def stage_lines(job: Job) -> list[str]:
    """Answers done by stage, with the rate of the last minutes and the time left; below it each member and judge."""
    lines = []
    for stage, parts in progress(job).items():
        done, total = (sum(getattr(part, key) for part in parts.values()) for key in ("done", "total"))
        line = f"{stage:<10} {done} of {total} answers are done"
        if 0 < done < total and (rate := recent_rate(job, stage)):
            left = (total - done) / rate
            line += f"; {rate:.1f} answers/s lately, {int(left // 3600)}:{int(left // 60 % 60):02} h left"
        lines.append(line)
        for name, part in parts.items():
            failed = f", {part.errors} calls failed" if part.errors else ""
            lines.append(f"  {name:<18} {part.done} of {part.total}{failed}")
    return lines


@dataclass
class Part:
    """What one member or judge has done: answers, of all answers, and calls to its endpoint that failed for good."""

    total: int
    done: int = 0
    errors: int = 0


def progress(job: Job) -> dict[str, dict[str, Part]]:
    """Of every stage, what each member or judge has done, read from the stored blocks."""
    store, count = ShardStore(Path(job.work)), len(job.table)
    sampling = {member["name"]: Part(member["samples"] * count) for member in job.members}
    judging = {judge["name"]: Part(job.samples * count) for judge in job.judges}
    for block in range(job.block_count):
        parts = [read_member(job, store, member, block) for member in job.members]
        for member, rows in zip(job.members, parts, strict=True):
            failed = sum(bool(row["error"]) for row in rows or ()) if is_remote(member) else 0
            sampling[member["name"]].done += len(rows or ())
            sampling[member["name"]].errors += failed
        if any(part is None for part in parts):
            continue
        responses = [row for part in parts for row in part]
        for judge in job.judges:
            rows = read_scores(job, store, judge, block, responses) or []
            failed = [row for row in rows if any(score["error"] for score in row["scores"])]
            judging[judge["name"]].done += len(rows)
            judging[judge["name"]].errors += len(failed) if is_remote(judge) else 0
    return {"sampling": sampling, "judging": judging}


def recent_rate(job: Job, stage: str, window: float = 600.0) -> float:
    """Answers per second over the last ten minutes, from the times of the stored blocks; 0 when there are none."""
    folder = Path(job.work) / "stages" / job.stage(stage)
    now = time.time()
    times = sorted(t for t in (file.stat().st_mtime for file in folder.rglob("block-*.jsonl")) if now - t < window)
    if len(times) < 2:
        return 0.0
    entries = job.members if stage == "sampling" else job.judges
    answers = job.table.block_size * (job.samples / len(entries) if stage == "sampling" else job.samples)
    return len(times) * answers / max(1.0, now - times[0])


def money_lines(job: Job, work: Path) -> list[str]:
    """What was spent so far at each priced endpoint."""
    remote = [entry.get("spec", entry) for entry in [*job.members, *job.judges] if is_remote(entry)]
    prices = ("prompt", "completion")
    priced = [entry for entry in remote if any(entry["endpoint"]["price"][name] for name in prices)]
    if not priced or not (work / CALL_CACHE).exists():
        return []
    from dataset_builder.models import CallCache
    from dataset_builder.models.endpoint import account_of
    from dataset_builder.settings import EndpointConfig, from_dict

    cache, lines = CallCache(work / CALL_CACHE), []
    try:
        for entry in priced:
            endpoint = from_dict(entry["endpoint"], EndpointConfig, "config")
            spent, limit = cache.spent(account_of(endpoint, entry["model"])), endpoint.spend_limit
            lines.append(f"{'spent':<10} {spent:.4g}{f' of {limit:g}' if limit else ''} at {entry['name']}")
    finally:
        cache.close()
    return lines


def state(config: BuildConfig, output: Path, work: Path, job: Job, rejected: dict, limit: int | None) -> str:
    """What the dataset folder is."""
    from dataset_builder import mmaip_v, plan
    from dataset_builder.build import imported_key

    old = mmaip_v.read_provenance(output)
    if old is None:
        return "not written yet"
    more = imported_key(config, work) if (work / "questions.arrow").exists() else ""
    key = plan.build_fingerprint(plan.config_hash(config, limit), job, job.table, rejected, more)
    if old.get("fingerprint") != key:
        return "made from other inputs than these"
    return "complete" if mmaip_v.is_intact(output, old) else "damaged: run build again"
