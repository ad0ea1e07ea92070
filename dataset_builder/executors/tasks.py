"""What datatrove runs: a slice of the questions, answered and judged; and the last step, which selects and writes."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from dataset_builder.errors import KitError
from dataset_builder.executors.beats import Beat
from dataset_builder.executors.caches import TaskCache, merge_caches, task_cache
from dataset_builder.executors.shared import INPUTS, STOP, Plan, Shared, block_of
from dataset_builder.stages.job import CALL_CACHE, STAGES, Job
from dataset_builder.stages.local import run_local
from dataset_builder.stages.remote import any_remote, remote_beside

_SNAPSHOT = 15.0  # seconds between two copies of a call cache to an object store


class Task(PipelineStep):
    """A step of ours: what goes wrong in it ends as one line, with the traceback in the task's log.

    datatrove logs an exception with the values of all variables on its way, which may hold a key to an endpoint; so
    none of ours travels further than here.

    Args:
        place: the shared folder.
        folder: of the run in it.
    """

    type = "build"

    def __init__(self, place: str, folder: str):
        super().__init__()
        self.place, self.folder = place, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Do the task of a rank.

        Raises:
            KitError: it failed.
        """
        line = None
        try:
            shared = Shared(self.place)
            if shared.read(f"{self.folder}/{STOP}") is not None:  # a pool starts the next task in a stopped one's place
                raise KitError("the build was stopped")
            self.work(shared, Plan.load(shared, self.folder), rank, world_size)
        except KitError as error:
            line = str(error)
        except Exception as error:
            logger.error(traceback.format_exc())
            line = f"{type(error).__name__}: {error}"
        if line is not None:
            raise KitError(line)

    @abstractmethod
    def work(self, shared: Shared, plan: Plan, rank: int, world_size: int) -> None:
        """What the task does."""


class Slice(Task):
    """Answers and judges the blocks ``rank, rank + world_size, …``: both stages, so that judging waits for nobody."""

    name = "answer and judge"

    def work(self, shared: Shared, plan: Plan, rank: int, world_size: int) -> None:
        """Make the missing shards of the slice."""
        with _room(plan), Beat(shared, f"{self.folder}/beats/{rank:05d}.json") as beat:
            if shared.is_url:
                with tempfile.TemporaryDirectory(prefix="mmaip-v-") as scratch:
                    _run_apart(shared, plan, Path(scratch), rank, world_size, beat.count)
            else:
                _run_blocks(_slice_job(plan, shared.root, rank, world_size), world_size, beat.count)
            for stage, answers in beat.counts.items():
                self.stat_update(stage, value=answers, unit="answers")


class Finish(Task):
    """Selects and writes the dataset, when every slice is finished."""

    name = "select and write"

    def work(self, shared: Shared, plan: Plan, rank: int, world_size: int) -> None:
        """Write the dataset, and the run's ``summary.json``."""
        with _room(plan), Beat(shared, f"{self.folder}/beats/finish.json"):
            if shared.is_url:
                with tempfile.TemporaryDirectory(prefix="mmaip-v-") as scratch:
                    summary = _finish_apart(shared, plan, Path(scratch))
            else:
                summary = _finish(plan, Path(shared.root))
            shared.write(f"{self.folder}/summary.json", json.dumps(summary))


@contextlib.contextmanager
def _room(plan: Plan) -> Iterator[None]:
    """The surroundings of a task: the folder the command was typed in, and an end by SIGTERM that loses no reply."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_TELEMETRY="1")

    def end(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + signum)  # unwinds the stack: calls on the wire, which are paid for, are waited for

    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, end)
    cwd = os.getcwd()
    with contextlib.suppress(OSError):  # on another machine the folder may not exist; absolute paths do not need it
        os.chdir(plan.cwd)
    try:
        yield
    finally:
        os.chdir(cwd)
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _slice_job(plan: Plan, work: str | Path, rank: int, world_size: int) -> Job:
    job = Job(**plan.job)
    job = replace(job, work=str(work), share=1 / plan.workers, calls=task_cache(rank, world_size))
    job = replace(job, members=_spending(job.members, plan), judges=_spending(job.judges, plan))
    return replace(job, blocks=list(range(rank, job.block_count, world_size)))


def _spending(entries: list[dict], plan: Plan) -> list[dict]:
    """Entries whose spend limits are a task's part, once cut down by the job's share of workers."""
    entries = copy.deepcopy(entries)
    for entry in entries:
        endpoint = entry.get("spec", entry).get("endpoint")
        if endpoint and endpoint["spend_limit"] is not None:
            endpoint["spend_limit"] *= plan.workers / plan.tasks
    return entries


def _run_blocks(job: Job, tasks: int, report: Callable[[str, int], None]) -> None:
    """Both stages of a slice; endpoints in a thread beside the local models."""
    with contextlib.ExitStack() as stack:
        cache = None
        if any(any_remote(job, stage) for stage in STAGES):
            cache = TaskCache(Path(job.work) / job.calls, Path(job.work) / CALL_CACHE, tasks)
            stack.callback(cache.close)
        for stage in STAGES:
            with remote_beside(job, stage, report, cache) as said:
                run_local(job, stage, said)


def _run_apart(
    shared: Shared, plan: Plan, scratch: Path, rank: int, world_size: int, report: Callable[[str, int], None]
) -> None:
    """A slice in a scratch folder: what is there is pulled, and every new shard is pushed when it is finished."""
    calls = task_cache(rank, world_size)
    shards = [name for name in shared.names("stages") if (block_of(name) or 0) % world_size == rank]
    shared.pull([*INPUTS, CALL_CACHE, calls, *shards], scratch)
    pushed, lock, snapshot = set(shards), threading.Lock(), [time.monotonic()]

    def push(stage: str = "", answers: int = 0) -> None:
        with lock:  # endpoints report from a thread of their own
            new = [name for name in _files(scratch, "stages", "judges") if name not in pushed]
            shared.push(new, scratch)
            pushed.update(new)
            if not stage or time.monotonic() - snapshot[0] >= _SNAPSHOT:
                snapshot[0] = time.monotonic()
                _push_calls(shared, scratch, calls)
        if stage:
            report(stage, answers)

    try:
        _run_blocks(_slice_job(plan, scratch, rank, world_size), world_size, push)
    finally:
        push()


def _files(root: Path, *folders: str) -> list[str]:
    """Finished files below some folders, by their names inside ``root``."""
    return [
        str(path.relative_to(root))
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    ]


def _push_calls(shared: Shared, scratch: Path, calls: str) -> None:
    """Copy a call cache that is in use, as of one moment."""
    if not (scratch / calls).exists():
        return
    copied = scratch / "snapshot"
    copied.mkdir(exist_ok=True)
    source, target = sqlite3.connect(scratch / calls), sqlite3.connect(copied / calls)
    try:
        source.backup(target)
    finally:
        source.close()
        target.close()
    shared.push([calls], copied)


def _finish(plan: Plan, work: Path) -> dict[str, Any]:
    from dataset_builder.build import BuildSteps
    from dataset_builder.settings import BuildConfig, from_dict

    merge_caches(work)
    config = from_dict(plan.config, BuildConfig, "plan.json")
    steps = BuildSteps(config, Path(plan.output), work, plan.limit, False, plan.overwrite)
    steps.planned(plan.key, plan.rejected)
    return dict(steps.finish(replace(Job(**plan.job), work=str(work))))


def _finish_apart(shared: Shared, plan: Plan, scratch: Path) -> dict[str, Any]:
    """The last step in a scratch folder; verdicts on pairs, which are paid for, are pushed whatever comes of it."""
    runs = f"{plan.folder.partition('/')[0]}/"
    names = {name for name in shared.names("") if not name.startswith(runs)}
    shared.pull(sorted(names), scratch)
    try:
        return _finish(plan, scratch)
    finally:
        new = [name for name in _files(scratch, "stages", "judges") if name not in names]
        shared.push([*new, "run_log.json", "selection.json", CALL_CACHE], scratch)
