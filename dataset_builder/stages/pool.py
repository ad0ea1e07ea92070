"""Run a job's blocks: in this process, shared out over worker processes, or over accelerate's processes."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.stages.job import (
    STAGES,
    Job,
    is_remote,
    judging_key,
    read_member,
    read_responses,
    read_scores,
    sampling_key,
)
from dataset_builder.stages.local import run_local
from dataset_builder.stages.ranks import Ranks
from dataset_builder.stages.remote import any_remote, remote_beside
from dataset_builder.stages.store import ShardStore, write_atomic


def pending(job: Job) -> tuple[list[int], dict[str, tuple[int, int]]]:
    """What is left to do.

    Returns:
        The blocks in which something is missing, and per stage (answers done, answers in all).
    """
    store = ShardStore(Path(job.work))
    total = job.samples * len(job.table)
    blocks, sampled, judged = [], 0, 0
    for block in range(job.block_count):
        parts = [read_member(job, store, member, block) for member in job.members]
        sampled += sum(len(part or []) for part in parts)
        missing = any(part is None for part in parts)
        if not missing:
            responses = [row for part in parts for row in part]
            scores = [read_scores(job, store, judge, block, responses) for judge in job.judges]
            judged += sum(len(rows or []) for rows in scores)
            missing = any(rows is None for rows in scores)
        if missing:
            blocks.append(block)
    return blocks, {"sampling": (sampled, total), "judging": (judged, total * len(job.judges))}


def forget_errors(job: Job) -> int:
    """Discard every endpoint's blocks that hold a failed call, so that just those calls are made again.

    The calls of such a block that went well are in the call cache and cost nothing.

    Returns:
        The number of blocks discarded.
    """
    store, discarded = ShardStore(Path(job.work)), 0
    for block in range(job.block_count):
        for member in filter(is_remote, job.members):
            rows = read_member(job, store, member, block) or []
            if any(row["error"] for row in rows):
                store.discard(job.stage("sampling"), member["name"], block, sampling_key(job, member, block))
                discarded += 1
        responses = read_responses(job, store, block)
        for judge in filter(is_remote, job.judges) if responses else ():
            rows = read_scores(job, store, judge, block, responses) or []
            if any(score["error"] for row in rows for score in row["scores"]):
                key = judging_key(job, judge, block, responses)
                store.discard(job.stage("judging"), judge["name"], block, key)
                discarded += 1
    return discarded


def run_stages(job: Job, workers: int = 1, progress: bool = True, ranks: Ranks | None = None) -> None:
    """Make all missing shards of a job.

    Endpoints are asked by this process alone, so that their limits hold; local models run here, in worker processes, or
    in the processes that ``accelerate launch`` started.

    Args:
        job: ``job.blocks`` is ignored; every block with something missing is made.
        workers: 1 runs in this process; more start processes of ``job.threads`` threads each.
        progress: show a bar per stage (answers, rate, time left) on stderr.
        ranks: the processes that accelerate started, this one among them.

    Raises:
        KitError: a stage cannot run, or a worker died.
    """
    blocks, counts = pending(job)
    if not blocks:
        return
    job = replace(job, blocks=blocks)
    with stage_bars(job, counts, progress) as report, _call_cache(job) as cache:
        for stage in STAGES:
            local = [entry for entry in (job.members if stage == "sampling" else job.judges) if not is_remote(entry)]
            with remote_beside(job, stage, report, cache) as said:
                if ranks:
                    run_local(ranks.share(job), stage, said)
                    ranks.wait()
                elif not local:
                    continue
                elif workers <= 1 or len(blocks) == 1:
                    run_local(job, stage, said)
                else:
                    _run_processes(job, stage, workers, said)


def follow_ranks(ranks: Ranks, job: Job) -> None:
    """What every process but the first does of :func:`run_stages`: its share of the local models' blocks."""
    blocks, _ = pending(job)
    if not blocks:
        return
    for stage in STAGES:
        run_local(ranks.share(replace(job, blocks=blocks)), stage, lambda stage, n: None)
        ranks.wait()


@contextlib.contextmanager
def stage_bars(job: Job, counts: dict, progress: bool) -> Iterator[Callable[[str, int], None]]:
    """A bar per stage on stderr; gives ``report(stage, answers)``."""
    from tqdm import tqdm

    bars = {
        stage: tqdm(
            total=counts[stage][1],
            initial=counts[stage][0],
            desc=f"{job.prefix}{stage}",
            unit="answer",
            position=position,
            mininterval=0.5,
            disable=not progress,
            file=sys.stderr,
        )
        for position, stage in enumerate(STAGES)
    }
    try:
        yield lambda stage, n: bars[stage].update(n)
    finally:
        for bar in bars.values():
            bar.close()


@contextlib.contextmanager
def _call_cache(job: Job) -> Iterator[Any]:
    """The call cache, when an endpoint is asked at all."""
    if not any(any_remote(job, stage) for stage in STAGES):
        yield None
        return
    from dataset_builder.models import CallCache

    cache = CallCache(Path(job.work) / job.calls)
    try:
        yield cache
    finally:
        cache.close()


def _run_processes(job: Job, stage: str, workers: int, report: Callable[[str, int], None]) -> None:
    """One process a share of the blocks; the first error stops them all. They end by themselves when this one dies."""
    threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    shares = [job.blocks[i::workers] for i in range(min(workers, len(job.blocks)))]
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, **threads, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    processes = []
    try:
        for index, share in enumerate(shares):
            file = Path(job.work) / "jobs" / f"{job.prefix}worker-{index}.json"
            write_atomic(file, json.dumps(asdict(replace(job, blocks=share))))
            command = [sys.executable, "-m", "dataset_builder.stages.worker", str(file), stage]
            # A session of its own: Ctrl-C reaches this process only, which then ends the workers without tracebacks.
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
            processes.append(subprocess.Popen(command, env=env, **pipes))
        _follow(processes, report)
    finally:
        for process in processes:
            process.stdin.close()
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()
            process.stdout.close()


def _follow(processes: list[subprocess.Popen], report: Callable[[str, int], None]) -> None:
    """Read the workers' lines until all are done."""
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.stdout, selectors.EVENT_READ, process)
        while selector.get_map():
            for key, _ in selector.select():
                line = key.fileobj.readline()
                if not line:
                    selector.unregister(key.fileobj)
                    if key.data.wait() != 0:
                        raise KitError(f"a worker ended with exit code {key.data.returncode}; its messages are above")
                    continue
                message = _parse(line)
                if "error" in message:
                    raise KitError(message["error"])
                if "stage" in message:
                    report(message["stage"], message["n"])


def _parse(line: bytes) -> dict:
    """A worker's message; anything else that a library printed on stdout is passed on to stderr."""
    try:
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    except ValueError:
        pass
    sys.stderr.write(line.decode(errors="replace"))
    return {}
