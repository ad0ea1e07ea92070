"""What the process that typed ``build --executor …`` does: plan, start datatrove, show how far it is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset_builder.build import BuildSteps, BuildSummary, work_folder
from dataset_builder.errors import KitError
from dataset_builder.executors.beats import read_beats
from dataset_builder.executors.caches import merge_caches
from dataset_builder.executors.options import check_options
from dataset_builder.executors.shared import INPUTS, STOP, Plan, Shared, block_of, is_url
from dataset_builder.settings import BuildConfig
from dataset_builder.stages import ShardStore
from dataset_builder.stages.job import CALL_CACHE, STAGES, Job, is_remote
from dataset_builder.stages.pool import forget_errors, pending, stage_bars

_FOLDER = "executor"
_POLL = 0.25


def run_executor(
    config: BuildConfig,
    output: Path | str,
    work: Path | str | None = None,
    limit: int | None = None,
    executor: str = "local",
    tasks: int = 1,
    workers: int | None = None,
    options: dict[str, Any] | None = None,
    overwrite: bool = False,
    retry_errors: bool = False,
    progress: bool = True,
) -> BuildSummary | None:
    """Build the dataset folder as several tasks, going on from whatever an earlier run has finished.

    Args:
        config: what to build.
        output: the dataset folder; the machine that runs the last step must see it.
        work: folder of stage shards that every machine sees: a path or an fsspec URL (``s3://bucket/folder``).
        limit: use only the first so many questions of the sources.
        executor: ``local``, ``slurm`` or ``ray``.
        tasks: number of slices; the result does not depend on it.
        workers: tasks that run at once, at most; by default all, and on this machine as many as it has processors.
        options: of the executor (partition, time, cpus_per_task, …): see :mod:`dataset_builder.executors.options`.
        overwrite: replace a dataset folder that was made from another config.
        retry_errors: ask endpoints again for what failed in an earlier run.
        progress: show progress bars on stderr.

    Returns:
        The summary; None when the tasks were handed to Slurm, which is then said on stderr.

    Raises:
        KitError: the build cannot run, or a task failed or was killed. Everything finished is kept.
    """
    options = check_options(executor, options or {})
    if tasks < 1 or (workers is not None and workers < 1):
        raise KitError("--tasks and --workers must be at least 1")
    output = Path(output)
    mirror = work_folder(output, None if work is None or is_url(work) else work)
    store = ShardStore(mirror)
    shared = Shared(mirror if work is None else work)
    with store.lock():
        _refuse_second(shared)
        if executor != "slurm":
            store.clean()
        if shared.is_url:
            _fetch(shared, mirror)
        merge_caches(mirror)
        steps = BuildSteps(config, output, mirror, limit, progress, overwrite)
        job = steps.plan()
        if job is None:
            return steps.done
        if retry_errors:
            forget_errors(job)
        plan = Plan(
            job=asdict(job),
            config=asdict(config),
            output=os.path.abspath(output),
            folder=f"{_FOLDER}/{steps.key}-{tasks}",
            limit=limit,
            overwrite=overwrite,
            key=steps.key,
            rejected=steps.rejected,
            cwd=os.getcwd(),
            executor=executor,
            tasks=tasks,
            workers=_at_once(job, tasks, workers, executor),
            options=options,
        )
        blocks, counts = pending(job)
        if shared.is_url:
            _send(shared, mirror, retry_errors)
        _prepare(shared, plan, blocks)
        said = _launch(shared, plan, mirror, job, counts, progress and executor != "slurm")
        if "jobs" in said:
            _say_submitted(shared, plan, said["jobs"])
            return None
        summary = shared.read(f"{plan.folder}/summary.json")
        if summary is None:
            raise KitError(f"{shared.at(plan.folder)}/summary.json: is not there; run the same command again")
        if shared.is_url:
            shared.pull(["run_log.json", "selection.json"], mirror)
        return BuildSummary(**json.loads(summary))


def _at_once(job: Job, tasks: int, workers: int | None, executor: str) -> int:
    """Tasks that run at once: no more than an endpoint takes calls at once, so that its limit holds over all."""
    wanted = workers or ((os.cpu_count() or 1) if executor == "local" else tasks)
    limits = [e.get("spec", e)["endpoint"]["concurrency"] for e in (*job.members, *job.judges) if is_remote(e)]
    return max(1, min(wanted, tasks, *limits))


def _refuse_second(shared: Shared) -> None:
    """Refuse to plan while Slurm still has tasks of this work folder: both would pay for the same calls.

    Raises:
        KitError: it has.
    """
    if shutil.which("squeue") is None:
        return
    for name in shared.names(_FOLDER):
        if not name.endswith("/jobs.json"):
            continue
        jobs = ",".join(map(str, json.loads(shared.read(name) or "[]")))
        asked = subprocess.run(["squeue", "--noheader", f"--jobs={jobs}"], capture_output=True, text=True, check=False)
        if jobs and asked.returncode == 0 and asked.stdout.strip():
            raise KitError(f"Slurm jobs {jobs} of this work folder are not finished: wait for them, or scancel them")


def _fetch(shared: Shared, mirror: Path) -> None:
    """Copy what tasks have put behind a URL: shards that are not here yet, judges' settings, call caches."""
    names = [name for name in shared.names("") if not name.startswith(f"{_FOLDER}/") and name not in INPUTS]
    shared.pull([name for name in names if block_of(name) is None or not (mirror / name).exists()], mirror)


def _send(shared: Shared, mirror: Path, retry_errors: bool) -> None:
    """Copy what tasks need to a URL; the merged call cache takes the place of the tasks' own."""
    shared.push([*INPUTS, CALL_CACHE, "run_log.json"], mirror)
    here = {str(path.relative_to(mirror)) for path in mirror.glob("stages/*/*/block-*.jsonl")}
    there = set(shared.names("stages"))
    shared.push(sorted(here - there), mirror)
    for name in there - here:  # damaged, or to be asked again
        shared.remove(name)
    for name in shared.names(""):
        if name.startswith("calls-"):
            shared.remove(name)


def _prepare(shared: Shared, plan: Plan, blocks: list[int]) -> None:
    """Write the plan, and forget the completion of slices in which something is missing after all."""
    for name in ("beats", "finish", "summary.json", "jobs.json", STOP):
        shared.remove(f"{plan.folder}/{name}")
    for rank in sorted({block % plan.tasks for block in blocks}):
        shared.remove(f"{plan.folder}/tasks/completions/{rank:05d}")
    plan.save(shared)


def _launch(
    shared: Shared, plan: Plan, mirror: Path, job: Job, counts: dict[str, tuple[int, int]], progress: bool
) -> dict[str, Any]:
    """Run the process in which datatrove runs; returns what it says.

    Raises:
        KitError: what it says is an error.
    """
    folder = mirror / "jobs"
    folder.mkdir(exist_ok=True)
    result, log = folder / "launch.json", folder / "launch.log"
    result.unlink(missing_ok=True)
    root = str(Path(__file__).resolve().parent.parent.parent)
    threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, **threads, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "dataset_builder.executors.launch", shared.place, plan.folder, str(result)]
    with open(log, "wb") as stream:
        # A session of its own: Ctrl-C reaches this process only, whose end then ends the tasks.
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        with _following(shared, plan, job, counts, progress) as look:
            while process.poll() is None:
                time.sleep(_POLL)
                look()
    finally:
        process.stdin.close()
        process.wait()
    try:
        said = json.loads(result.read_text())
    except (OSError, ValueError):
        raise KitError(
            f"the process of the executor ended with exit code {process.returncode} (its log is {log}); what is "
            "finished is kept: run the same command again"
        ) from None
    if "error" in said:
        raise KitError(said["error"])
    return said


@contextlib.contextmanager
def _following(
    shared: Shared, plan: Plan, job: Job, counts: dict[str, tuple[int, int]], progress: bool
) -> Iterator[Callable[[], None]]:
    """A function that brings the bars up to what the tasks' signs of life say."""
    with stage_bars(job, counts, progress) as report:
        shown, every = dict.fromkeys(STAGES, 0), 10.0 if shared.is_url else 1.0
        last = time.monotonic()

        def look() -> None:
            nonlocal last
            if not progress or time.monotonic() - last < every:
                return
            last = time.monotonic()
            with contextlib.suppress(KitError):
                beats = read_beats(shared, plan.folder).values()
                for stage in STAGES:
                    made = sum(beat.get(stage, 0) for beat in beats)
                    if made > shown[stage]:
                        report(stage, made - shown[stage])
                        shown[stage] = made

        yield look


def _say_submitted(shared: Shared, plan: Plan, jobs: list[str]) -> None:
    print(
        f"submitted to Slurm: {plan.tasks} tasks and the last step, jobs {', '.join(map(str, jobs))}; logs and scripts "
        f"in {shared.at(plan.folder)}; the same command shows the result once they are finished",
        file=sys.stderr,
    )
