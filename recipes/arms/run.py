"""Controls: what each part of iterating and extrapolating brings, with equal optimizer steps and the same search.

Every arm (see :mod:`recipes.arms.specs`) starts from the same base, takes `rounds × max_steps` optimizer steps and
chooses its learning rate among the same candidates on the validation split. The limits of `recipes.guards` are off: an
arm that collapses shows it. The test split is asked once, when every choice is made. The runs are shared out between
`--workers` processes of one thread each; a run that is finished is never repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError, run_cli
from eval.results import read_json, write_text
from recipes.arms.table import write_table
from recipes.arms.worker import Job, Worker
from recipes.settings import Settings, difference, parse


def run_arms(
    output: str | Path, dataset: str | Path, *, base: str | Path | None = None, log: Callable = print, **settings: Any
) -> dict[str, Any]:
    """Train and evaluate every arm; what is finished already is kept.

    Args:
        output: run folder; gets ``arms/ARM/round-N``, ``results/ARM.json`` and ``arms.json``.
        dataset: dataset folder or Hub id.
        base: the checkpoint all arms start from; ``output/models/base`` by default.
        log: where this process's lines go; workers print theirs.
        **settings: any field of `recipes/iter_w2s.py`, such as ``max_steps=15, rounds=3, workers=2, seed=0``; a
            ``config`` names a YAML that they override.

    Returns:
        The content of ``arms.json``.
    """
    base = Path(output) / "models" / "base" if base is None else base
    given = {"model_name_or_path": base, "dataset_name": dataset, "output_dir": output, **settings}
    return run_parsed(parse(to_argv(given)), log)


def to_argv(values: dict[str, Any]) -> list[str]:
    """Fields as the words of a command line."""
    words = []
    for name, value in values.items():
        if value is None:
            continue
        items = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name}", *map(_word, items)]
    return words


def _word(item: Any) -> str:
    if isinstance(item, bool):
        return str(item).lower()
    return json.dumps(item) if isinstance(item, dict) else str(item)


def run_parsed(settings: Settings, log: Callable = print) -> dict[str, Any]:
    """As :func:`run_arms`, for a command that is parsed already."""
    script, output = settings.script, Path(settings.training.output_dir)
    job = Job(settings, output)
    identity = job.identity()
    with _only_one(output):
        _claim_output(job, identity, script.overwrite)
        for claim in job.claims.glob("*"):
            claim.unlink()
        if script.workers == 1 or job.finished():
            Worker(job, log).run()
        else:
            _spawn(job, script.workers)
        missing = [unit.name for unit in job.units() if not unit.done.exists()]
        if missing:
            raise KitError(f"the arms ended without {', '.join(missing)}; the same command goes on from here")
        table = write_table(output, settings, job)
        _drop_losers(job)
    return table


def _drop_losers(job: Job) -> None:
    """Delete the weights of learning rates that were not chosen; what they measured stays."""
    for arm in job.arms:
        if arm.searched:
            best = job.chosen(arm.name)["learning_rate"]
            for rate in job.rates:
                for path in job.candidate(arm.name, rate).glob("round-*"):
                    if rate != best:
                        shutil.rmtree(path)


def _claim_output(job: Job, identity: dict, overwrite: bool) -> None:
    """Refuse or clear the arms of another configuration."""
    path, identity = job.work / "job.json", json.loads(json.dumps(identity, default=str))
    known = read_json(path).get("config") if path.exists() else None
    if known is not None and known != identity:
        if not overwrite:
            raise KitError(
                f"{job.output} holds arms of another configuration ({difference(known, identity)}); "
                "choose another --output_dir, or replace them with --overwrite"
            )
        shutil.rmtree(job.output / "arms")
    content = {"argv": job.settings.argv, "config": identity}
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def _only_one(output: Path) -> Iterator[None]:
    """Two commands on one folder would train the same runs twice."""
    import fcntl

    output.mkdir(parents=True, exist_ok=True)
    with (output / ".arms.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KitError(f"{output}: another command is training these arms right now") from None
        yield


def _spawn(job: Job, workers: int) -> None:
    """Run workers to their end; they end by themselves when this process does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "recipes.arms.run", str(job.work / "job.json")]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) for _ in range(workers)]
    try:
        while any(child.poll() is None for child in children):
            if any(child.poll() not in (None, 0) for child in children):
                raise KitError("a worker of the arms failed (its message is above); the same command goes on from here")
            time.sleep(0.05)
        if any(child.returncode for child in children):
            raise KitError("a worker of the arms failed (its message is above); the same command goes on from here")
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdin.close()


def _worker_main() -> int:
    """Entry of a worker: `python -m recipes.arms.run JOB.json`, started by :func:`_spawn` only."""

    def watch() -> None:
        while os.read(0, 1):  # ends when the parent is gone
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    settings = parse(read_json(sys.argv[1])["argv"])
    Worker(Job(settings, Path(settings.training.output_dir)), lambda line: print(line, flush=True)).run()
    return 0


__all__ = ["run_arms", "run_parsed", "to_argv"]

if __name__ == "__main__":
    raise SystemExit(run_cli(_worker_main))
