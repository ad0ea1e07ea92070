"""Signs of life of tasks: one small file a task in the shared folder, read by whoever waits for them."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any

from dataset_builder.executors.shared import Shared
from dataset_builder.stages.job import STAGES

_EVERY = 0.5  # seconds between signs on a shared disk
_EVERY_URL = 10.0  # and in an object store


class Beat:
    """Writes a task's sign of life while it runs, and ends the process when its parent is gone.

    A task whose parent died (a killed launcher, a killed Ray worker) would otherwise go on beside its replacement.

    Args:
        shared: the shared folder.
        name: of the file.
    """

    def __init__(self, shared: Shared, name: str):
        self.shared, self.name = shared, name
        self.counts = dict.fromkeys(STAGES, 0)
        self._state: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "ppid": os.getppid()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat", daemon=True)

    def __enter__(self) -> Beat:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self._write(done=True)
        elif isinstance(error, Exception):
            self._write(error=str(error) or kind.__name__, kind=kind.__name__)

    def count(self, stage: str, answers: int) -> None:
        """Note that a block of a stage was finished."""
        self.counts[stage] += answers

    def _run(self) -> None:
        last, every = time.monotonic(), _EVERY_URL if self.shared.is_url else _EVERY
        while not self._ended.wait(_EVERY):
            if os.getppid() != self._state["ppid"]:
                os._exit(1)
            if time.monotonic() - last >= every:
                last = time.monotonic()
                self._write()

    def _write(self, **more: Any) -> None:
        self.shared.write(self.name, json.dumps(self._state | self.counts | {"time": time.time()} | more))


def read_beats(shared: Shared, folder: str) -> dict[str, dict]:
    """The last sign of every task, by the file's name; files that are being written are passed over."""
    beats = {}
    for name in shared.names(f"{folder}/beats"):
        try:
            beats[name.rpartition("/")[2].removesuffix(".json")] = json.loads(shared.read(name) or "")
        except ValueError:
            continue
    return beats


class Watch:
    """Tells when a task was killed, which the pools that datatrove uses wait for for ever.

    Args:
        shared: the shared folder.
        folder: of the run in it.
    """

    GRACE = 3.0  # seconds for the engine to notice by itself
    RESTART = 90.0  # seconds for Ray to start a killed worker's task again
    SILENCE = 600.0  # seconds without a sign from another machine

    def __init__(self, shared: Shared, folder: str):
        self.shared, self.folder = shared, folder
        self._since: dict[str, float] = {}
        self._seen: dict[str, tuple[Any, float]] = {}

    def problem(self) -> str | None:
        """One line on the first task that failed or was killed and that nobody starts again; None while all is well."""
        now = time.monotonic()
        for name, beat in read_beats(self.shared, self.folder).items():
            what, grace = self._state(name, beat, now)
            if what is None:
                self._since.pop(name, None)
            elif now - self._since.setdefault(name, now) >= grace:
                return what
        return None

    def _state(self, name: str, beat: dict, now: float) -> tuple[str | None, float]:
        if beat.get("done"):
            return None, 0.0
        if "error" in beat:
            return task_error(name, beat, self.shared, self.folder), self.GRACE
        again = "what is finished is kept: run the same command again"
        if beat["host"] == socket.gethostname():
            if alive(beat["pid"]):
                return None, 0.0
            # Ray notices that a worker of its own is gone and starts it again, but not that a worker lost its child.
            grace = self.GRACE if alive(beat["ppid"]) else self.RESTART
            return f"the process of task {name} was killed; {again}", grace
        old = self._seen.get(name)
        if old is None or old[0] != beat["time"]:
            self._seen[name] = (beat["time"], now)
            return None, 0.0
        silent = now - old[1] >= self.SILENCE
        return (f"task {name} on {beat['host']} gives no sign of life; {again}" if silent else None), 0.0


def task_error(name: str, beat: dict, shared: Shared, folder: str) -> str:
    """What a failed task says, in one line."""
    line = (beat["error"].strip().splitlines() or [beat["kind"]])[0]
    if beat["kind"] in ("KitError", "RowError", "BudgetReached"):
        return line
    step = "finish/logs/task_00000" if name == "finish" else f"tasks/logs/task_{name}"
    return f"task {name} failed ({beat['kind']}: {line}); its log is {shared.at(folder)}/{step}.log"


def alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
