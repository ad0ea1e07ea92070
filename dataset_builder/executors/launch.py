"""The process in which datatrove runs: ``python -m dataset_builder.executors.launch PLACE FOLDER RESULT``.

A process of its own, because datatrove's pools wait for ever for a task that was killed: this one can be ended with all
it started. Its output goes to a log; what it has to say it writes into RESULT. It ends when its stdin closes, that is,
when the process that typed the command dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.executors.beats import Watch, alive, read_beats, task_error
from dataset_builder.executors.shared import STOP, Plan, Shared
from dataset_builder.stages import write_json

_PATIENCE = 60.0  # seconds that tasks get to wait for their calls on the wire


def main(argv: list[str]) -> int:
    """Run a plan's slices, then its last step."""
    place, folder, result = argv
    shared = Shared(place)

    def end(message: dict, code: int) -> None:
        write_json(Path(result), message)
        sys.stdout.flush()
        os._exit(code)

    def follow_parent() -> None:
        while os.read(0, 1 << 10):
            pass
        stop_tasks(shared, folder)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow_parent, daemon=True).start()
    try:
        plan = Plan.load(shared, folder)
        message = submit(shared, plan) if plan.executor == "slurm" else run(shared, plan, Path(result))
    except KitError as error:
        end({"error": str(error)}, 2)
    end(message, 0)
    return 0


def run(shared: Shared, plan: Plan, result: Path) -> dict:
    """Run the slices and the last step here (or on Ray) and wait for them.

    Raises:
        KitError: a task failed or was killed.
    """
    with _ray(plan) if plan.executor == "ray" else contextlib.nullcontext(), _watch(shared, plan, result):
        slices, last = executors(shared, plan)
        for executor in (slices, last):
            try:
                executor.run()
                missing = executor.get_incomplete_ranks(skip_completed=True)
            except Exception as error:  # a task's own; datatrove has put its traceback into the task's log
                raise _failure(shared, plan) or KitError(f"{type(error).__name__}: {error}") from None
            if missing:
                words = ", ".join(map(str, missing[:8]))
                raise _failure(shared, plan) or KitError(f"tasks {words} did not finish: run the same command again")
    return {"done": True}


def submit(shared: Shared, plan: Plan) -> dict:
    """Hand the slices and the last step, which depends on them, to Slurm.

    Raises:
        KitError: Slurm's commands are missing, or refuse.
    """
    slices, last = executors(shared, plan)
    try:
        last.run()
    except FileNotFoundError as error:
        raise KitError(f"--executor slurm: the command {error.filename!r} is not on this machine") from None
    except subprocess.CalledProcessError as error:
        raise KitError(f"--executor slurm: {error.cmd[0]} ended with exit code {error.returncode}") from None
    jobs = [job for job in (slices.job_id, last.job_id) if job != -1]
    shared.write(f"{plan.folder}/jobs.json", json.dumps(jobs))
    return {"jobs": jobs}


def executors(shared: Shared, plan: Plan) -> tuple[Any, Any]:
    """datatrove's executors of the slices and of the last step."""
    from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

    from dataset_builder.executors.tasks import Finish, Slice

    kind = {"local": LocalPipelineExecutor, "slurm": SlurmPipelineExecutor, "ray": RayPipelineExecutor}[plan.executor]
    options = {name: value for name, value in plan.options.items() if name != "address"}
    name = options.pop("job_name", "mmaip-v")
    first, then = dict(options), dict(options)
    if plan.executor == "slurm":
        activate = Path(sys.prefix) / "bin" / "activate"
        given = options.keys() & {"venv_path", "condaenv", "env_command"}
        venv = {"venv_path": str(activate)} if activate.exists() and not given else {}
        common = {"qos": None, "mail_type": "FAIL"} | venv
        first = common | first | {"job_name": name}
        # Without this the last step would stand in the queue for ever once a slice has failed.
        args = {"kill-on-invalid-dep": "yes"} | options.get("sbatch_args", {})
        then = common | then | {"job_name": f"{name}-finish", "sbatch_args": args, "gpus_per_task": 0}
    slices = kind(
        pipeline=[Slice(shared.place, plan.folder)],
        tasks=plan.tasks,
        workers=plan.workers,
        logging_dir=shared.at(f"{plan.folder}/tasks"),
        **first,
    )
    last = kind(
        pipeline=[Finish(shared.place, plan.folder)],
        tasks=1,
        workers=1,
        logging_dir=shared.at(f"{plan.folder}/finish"),
        depends=slices,
        **then,
    )
    return slices, last


@contextlib.contextmanager
def _ray(plan: Plan) -> Iterator[None]:
    """A Ray cluster: the one at ``address`` (or ``RAY_ADDRESS``), else one on this machine that only it can reach."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    address = plan.options.get("address") or os.environ.get("RAY_ADDRESS")
    here = {"num_cpus": plan.workers * max(1, plan.options.get("cpus_per_task", 1)), "include_dashboard": False}
    # Ray takes 127.0.0.1 to mean this machine's address in the network; the rest of 127.0.0.0/8 it leaves alone.
    where = {"address": address} if address else here | {"_node_ip_address": "127.0.0.2"}
    try:
        ray.init(log_to_driver=False, **where)
    except Exception as error:  # Ray raises plain Exception, too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KitError(f"--executor ray: Ray does not start here, or cannot be reached: {reason}") from None
    try:
        _check_room(ray.cluster_resources(), plan.options)
        yield
    finally:
        ray.shutdown()


def _check_room(resources: dict[str, float], options: dict[str, Any]) -> None:
    """Refuse tasks that no part of the cluster could ever run: Ray would wait for ever."""
    cpus, gib = options.get("cpus_per_task", 1), 2**30
    needed = {
        "CPU": (cpus, 1, ""),
        "GPU": (options.get("gpus_per_task", 0), 1, ""),
        "memory": (options.get("mem_per_cpu_gb", 2) * cpus * gib, gib, " GiB"),
    }
    for name, (amount, unit, word) in needed.items():
        has = resources.get(name, 0)
        if amount > has:
            raise KitError(
                f"--executor ray: a task needs {amount / unit:g}{word} of {name}, there is {has / unit:.3g}{word}"
            )


@contextlib.contextmanager
def _watch(shared: Shared, plan: Plan, result: Path) -> Iterator[None]:
    """End this process and all it started when a task was killed."""
    ended = threading.Event()

    def look() -> None:
        watch = Watch(shared, plan.folder)
        while not ended.wait(2.0 if shared.is_url else 0.5):
            with contextlib.suppress(KitError):  # a hiccup of the object store
                problem = watch.problem()
                if problem and not ended.is_set():
                    write_json(result, {"error": problem})
                    stop_tasks(shared, plan.folder)
                    os.killpg(0, signal.SIGKILL)

    thread = threading.Thread(target=look, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def stop_tasks(shared: Shared, folder: str) -> None:
    """Ask the tasks on this machine to end, and wait for their calls on the wire, which are paid for."""
    try:
        shared.write(f"{folder}/{STOP}", "")
        running = [
            beat["pid"]
            for beat in read_beats(shared, folder).values()
            if beat["host"] == socket.gethostname() and not beat.get("done")
        ]
    except KitError:
        return
    for pid in filter(alive, running):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _PATIENCE
    while any(map(alive, running)) and time.monotonic() < end:
        time.sleep(0.1)


def _failure(shared: Shared, plan: Plan) -> KitError | None:
    for name, beat in read_beats(shared, plan.folder).items():
        if "error" in beat:
            return KitError(task_error(name, beat, shared, plan.folder))
    return None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
