"""Run a job's blocks in this process or share them out over worker processes, with progress bars."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.stages import ShardStore, write_atomic
from dataset_builder.worker import Job, read_responses, read_scores, run_job, sampling_key

STAGES = ("sampling", "judging")


def pending(job: Job) -> tuple[list[int], dict[str, tuple[int, int]]]:
    """What is left to do.

    Returns:
        The blocks in which something is missing, and per stage (answers done, answers in all).
    """
    store = ShardStore(Path(job.work))
    total = sum(member["samples"] for member in job.members) * len(job.questions)
    blocks, sampled, judged = [], 0, 0
    for block in range(job.block_count):
        responses = read_responses(job, store, block)
        if responses is None:
            blocks.append(block)
            for member in job.members:
                rows = store.read(f"{job.prefix}sampling", member["name"], block, sampling_key(job, member, block))
                sampled += len(rows or [])
            continue
        sampled += len(responses)
        missing = 0
        for judge in job.judges:
            rows = read_scores(job, store, judge, block, responses)
            judged += len(rows or [])
            missing += rows is None
        if missing:
            blocks.append(block)
    return blocks, {"sampling": (sampled, total), "judging": (judged, total * len(job.judges))}


def run_stages(job: Job, workers: int = 1, progress: bool = True) -> None:
    """Make all missing shards of a job.

    Args:
        job: ``job.blocks`` is ignored; every block with something missing is made.
        workers: 1 runs in this process; more start processes of ``job.threads`` threads each.
        progress: show a bar per stage (answers, rate, time left) on stderr.

    Raises:
        KitError: a stage cannot run, or a worker died.
    """
    from tqdm import tqdm

    blocks, counts = pending(job)
    if not blocks:
        return
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
        if workers <= 1 or len(blocks) == 1:
            run_job(replace(job, blocks=blocks), lambda stage, n: bars[stage].update(n))
        else:
            shares = [blocks[i::workers] for i in range(min(workers, len(blocks)))]
            _run_processes(job, shares, lambda stage, n: bars[stage].update(n))
    finally:
        for bar in bars.values():
            bar.close()


def _run_processes(job: Job, shares: list[list[int]], report: Callable[[str, int], None]) -> None:
    """One process a share; the first error stops them all. Workers end by themselves when this process dies."""
    threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, **threads, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    processes = []
    try:
        for index, share in enumerate(shares):
            file = Path(job.work) / "jobs" / f"{job.prefix}worker-{index}.json"
            write_atomic(file, json.dumps(asdict(replace(job, blocks=share))))
            command = [sys.executable, "-m", "dataset_builder.worker", str(file)]
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
