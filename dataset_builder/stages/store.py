"""The work folder: finished shards of the build's stages, written atomically and keyed on everything that made them.

A shard is one JSONL file for one (stage, name, block), where *name* is a zoo member or a judge. Its first line is a
header with the fingerprint of its inputs, the number of rows and a checksum of the rest; its name carries the
fingerprint too. So

* a half-written file never has a shard's name (temporary name, fsync, rename),
* a changed input has another name and cannot be served old rows,
* a file that was damaged later fails its checksum, is removed and made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError

# Raise this when the meaning of a stage's rows changes: shards of older code are then made again.
SHARD_SCHEMA = 1
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one and nothing between.

    Raises:
        KitError: the disk is full, or the folder may not be written to.
    """
    data = data.encode() if isinstance(data, str) else data
    # Not the process id: processes of two machines may share it and write the same file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise KitError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with sorted keys, atomically."""
    write_atomic(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n")


def fsync_folder(folder: Path) -> None:
    """Make sure that a new or renamed file is found in its folder after a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ShardStore:
    """Shards of all stages below one work folder.

    Args:
        work: the work folder; made when it is missing.
    """

    def __init__(self, work: Path):
        self.work = Path(work)
        self.root = self.work / "stages"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KitError(f"{self.work}: cannot be used as a work folder ({error.strerror})") from None

    def path(self, stage: str, name: str, block: int, key: str) -> Path:
        """Where the shard lies. The name is made safe for a file system, with a hash when that loses something."""
        safe = _UNSAFE.sub("_", name).strip("._") or "_"
        if safe != name:
            safe = f"{safe}-{fingerprint(name)[:8]}"
        return self.root / stage / safe / f"block-{block:05d}-{key}.jsonl"

    def write(self, stage: str, name: str, block: int, key: str, rows: list[dict]) -> None:
        """Store the rows of a finished block; fsynced and renamed, so that it exists whole or not at all."""
        body = "".join(canonical_json(row) + "\n" for row in rows).encode()
        header = {"key": key, "rows": len(rows), "sha256": hashlib.sha256(body).hexdigest(), "schema": SHARD_SCHEMA}
        write_atomic(self.path(stage, name, block, key), canonical_json(header).encode() + b"\n" + body)

    def read(self, stage: str, name: str, block: int, key: str) -> list[dict] | None:
        """Rows of a finished block, or None when it has to be made (missing, or damaged and now removed)."""
        path = self.path(stage, name, block, key)
        try:
            head, _, body = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        try:
            header = json.loads(head)
            intact = (header["key"], header["sha256"]) == (key, hashlib.sha256(body).hexdigest())
            if intact:
                rows = [json.loads(line) for line in body.splitlines()]
                if len(rows) == header["rows"]:
                    return rows
        except (ValueError, KeyError, TypeError):
            pass
        path.unlink(missing_ok=True)
        return None

    def has(self, stage: str, name: str, block: int, key: str) -> bool:
        """Whether a finished block is there and undamaged; its rows are not parsed."""
        try:
            head, _, body = self.path(stage, name, block, key).read_bytes().partition(b"\n")
            return json.loads(head)["sha256"] == hashlib.sha256(body).hexdigest()
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def discard(self, stage: str, name: str, block: int, key: str) -> None:
        """Forget a finished block, so that it is made again."""
        self.path(stage, name, block, key).unlink(missing_ok=True)

    def count(self, stage: str, name: str | None = None) -> int:
        """Number of finished shards of a stage (of one member or judge), whatever their inputs were."""
        folder = self.root / stage if name is None else self.path(stage, name, 0, "").parent
        return sum(1 for _ in folder.rglob("block-*.jsonl")) if folder.is_dir() else 0

    def clean(self) -> int:
        """Remove what a killed process left half-written. Call it only while holding :meth:`lock`.

        Returns:
            The number of files removed.
        """
        removed = 0
        for path in self.work.rglob(".*.tmp"):
            path.unlink(missing_ok=True)
            removed += 1
        return removed

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the work folder for this process; the system lets go of it when the process dies.

        Raises:
            KitError: another build is using the folder now.
        """
        import fcntl  # not on Windows, where the kit is not supported

        with open(self.work / ".lock", "w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise KitError(
                    f"another build is using the work folder {self.work}: wait for it, or give --work"
                ) from None
            yield
