"""What is done in a run folder, and how long it took: the memory that lets a stopped release go on.

A stage is skipped when it was finished with the same inputs (a fingerprint over its settings and over the stage before
it) and what it made is still there unchanged. ``measurements/STAGE.json`` keeps what a stage measured and is
deterministic; ``run_log.json`` keeps times, adds them up over sittings, and is never compared.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dataset_builder.errors import KitError

HEARTBEAT = 2.0  # seconds; a run that is killed loses at most this much of its clock
WHOLE_FILE = 64 * 2**20  # bytes; larger outputs are recognised by their size, smaller ones by their content


def fingerprint(value: object) -> str:
    """16 hex digits of the canonical JSON of a value; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: object) -> None:
    """Write indented JSON so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_json(path: Path, default: object = None):
    """Read a JSON file; ``default`` when it is missing.

    Raises:
        KitError: the file is there and is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise KitError(f"{path}: not readable as JSON ({error}); remove it and start again") from None


def _digest(path: Path) -> str | None:
    """What an output looked like: None when missing, else by content (small) or size (large)."""
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > WHOLE_FILE:
        return f"{size} bytes"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def own_sources() -> str:
    """16 hex digits over the code and templates of this room: what they render is stale when they change."""
    room = Path(__file__).parent
    files = sorted(path for path in room.rglob("*") if path.suffix in (".py", ".j2", ".css", ".js"))
    return fingerprint({str(path.relative_to(room)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})


class StageLog:
    """Runs the stages of one run folder in order; use as a context manager.

    Args:
        folder: the run folder; made when missing. Only one process at a time may work in it.
        say: where the one-line headlines go.

    Raises:
        KitError: another process works in the folder.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print):
        self.folder, self.say = Path(folder), say
        self.chain = ""  # fingerprint of the stages so far: what comes next depends on all of it
        self.skipped: list[str] = []

    def __enter__(self) -> StageLog:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_file = open(self.folder / ".lock", "w")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise KitError(f"{self.folder}: another release is at work here; wait for it or stop it") from None
        self.log = {"wall_seconds": 0.0, "stages": {}, **read_json(self.folder / "run_log.json", {})}
        self._before = self.log["wall_seconds"]
        self._start = time.monotonic()
        self._stage: tuple[str, float, float] | None = None  # name, seconds of earlier sittings, start of this one
        self._guard, self._stop = threading.Lock(), threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)
        self._clock.start()
        return self

    def __exit__(self, *_error) -> None:
        self._stop.set()
        self._clock.join()
        self.save()
        self._lock_file.close()

    def _tick(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            self.save()

    def save(self) -> None:
        """Bring the clocks up to date and write ``run_log.json``."""
        with self._guard:
            now = time.monotonic()
            self.log["wall_seconds"] = round(self._before + now - self._start, 2)
            if self._stage:
                name, before, start = self._stage
                self.log["stages"][name]["seconds"] = round(before + now - start, 2)
            write_json(self.folder / "run_log.json", self.log)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every stage, all sittings together."""
        return {name: entry["seconds"] for name, entry in self.log["stages"].items()}

    @property
    def wall_seconds(self) -> float:
        """Wall time of all sittings together."""
        self.save()
        return self.log["wall_seconds"]

    def run(
        self,
        name: str,
        inputs: object,
        outputs: Sequence[Path],
        body: Callable[[], dict],
        headline: Callable[[dict], str],
        owns: Sequence[Path] = (),
        doing: str = "at work",
    ) -> dict:
        """Run one stage, or take what it measured when it is done already.

        Args:
            name: the stage; also the name of its file under ``measurements/``.
            inputs: everything the result depends on besides the earlier stages, as JSON-able data.
            outputs: files or folders that have to be there, unchanged, for the stage to count as done.
            body: does the work, goes on from its own traces if it was stopped, returns what it measured.
            headline: turns the measurements into one line for the person who watches.
            owns: paths that are removed first when they were made from other inputs.
            doing: what the line at the start says; one at the end has the headline and the seconds.

        Returns:
            What ``body`` returned, after a round trip through JSON.
        """
        self.chain = mark = fingerprint([name, inputs, self.chain])
        measured = self.folder / "measurements" / f"{name}.json"
        entry = self.log["stages"].get(name)
        if entry and entry["inputs"] == mark and entry["done"] and measured.is_file():
            now = {str(path): _digest(path) for path in outputs}
            if None not in now.values() and now == entry["outputs"]:
                result = read_json(measured)
                self.skipped.append(name)
                self.say(f"[{name}] done already: {headline(result)}")
                return result
        if entry and entry["inputs"] != mark:
            for path in owns:  # a changed input must never serve what an old one made
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            entry = None
        before = entry["seconds"] if entry else 0.0
        with self._guard:
            self.log["stages"][name] = {"inputs": mark, "done": False, "seconds": before, "outputs": {}}
        self._stage = (name, before, time.monotonic())
        self.say(f"[{name}] {doing}{', going on where it was' if before else ''} …")
        try:
            result = json.loads(json.dumps(body(), default=_plain))
        finally:
            self.save()
            self._stage = None
        write_json(measured, result)
        entry = self.log["stages"][name]
        entry["outputs"] = {str(path): _digest(path) for path in outputs}
        missing = [path for path, digest in entry["outputs"].items() if digest is None]
        if missing:
            raise KitError(f"stage {name} ended without writing {missing[0]}")
        entry["done"] = True
        self.save()
        self.say(f"[{name}] done in {entry['seconds']:.0f} s: {headline(result)}")
        return result


def progress_lines(say: Callable[[str], None], unit: str, every: float = 5.0) -> Callable[[int, int], None]:
    """A callback (done, in all) that says a line with rate and time left, at most every few seconds."""
    started = spoke = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal spoke
        now = time.monotonic()
        if done < total and now - spoke >= every:
            spoke, rate = now, done / (now - started)
            say(f"  {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {(total - done) / rate:.0f} s left")

    return report


def _plain(value: object):
    """JSON for NumPy numbers, paths and dict-like summaries."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "keys"):
        return {key: value[key] for key in value.keys()}  # noqa: SIM118 - only dict-like
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
