"""The folder that every machine of a build sees: a path on a shared disk, or an fsspec URL such as ``s3://…``.

On a path the tasks work in place. Behind a URL each task works in a scratch folder of its own: it pulls what it needs
and pushes each shard as soon as it is finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError

INPUTS = ("questions.arrow", "media.json", "rejected.jsonl", "imported.parquet")
STOP = "stop"  # in a run's folder: no further task may start
_BLOCK = re.compile(r"block-(\d+)-")


def is_url(place: str | Path) -> bool:
    """Whether a work folder is an fsspec URL."""
    return "://" in str(place)


class Shared:
    """Small files and whole copies in a shared folder.

    Args:
        place: a path or an fsspec URL.

    Raises:
        KitError: there is no file system for the URL.
    """

    def __init__(self, place: str | Path):
        from fsspec.core import url_to_fs

        self.place = str(place).rstrip("/") if is_url(place) else os.path.abspath(place)
        self.is_url = is_url(place)
        try:
            # Other machines write here: a listing that is remembered would be a wrong one.
            self.fs, self.root = url_to_fs(self.place, use_listings_cache=False)
        except (ImportError, ValueError, OSError) as error:
            raise KitError(f"--work {place}: cannot be opened ({error})") from None

    def at(self, name: str) -> str:
        """The place of a name, as datatrove takes it."""
        return f"{self.place}/{name}"

    def read(self, name: str) -> str | None:
        """A small file's text, or None when it is not there."""
        with self._errors(name):
            try:
                return self.fs.cat_file(f"{self.root}/{name}").decode()
            except FileNotFoundError:
                return None

    def write(self, name: str, text: str) -> None:
        """Write a small file."""
        path = f"{self.root}/{name}"
        with self._errors(name):
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(path, text.encode())

    def names(self, folder: str) -> list[str]:
        """All files below a folder, by their names inside this place."""
        with self._errors(folder):
            try:
                found = self.fs.find(f"{self.root}/{folder}" if folder else self.root)
            except FileNotFoundError:
                return []
        return sorted(path[len(self.root) :].lstrip("/") for path in found)

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        with self._errors(name), contextlib.suppress(FileNotFoundError):
            self.fs.rm(f"{self.root}/{name}", recursive=True)

    def pull(self, names: Iterable[str], into: Path) -> None:
        """Copy files to a local folder; those that are not there are passed over."""
        for name in names:
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._errors(name), contextlib.suppress(FileNotFoundError):
                part = target.with_name(f".{target.name}.pull.tmp")
                self.fs.get_file(f"{self.root}/{name}", str(part))
                part.replace(target)

    def push(self, names: Iterable[str], source: Path) -> None:
        """Copy files from a local folder; those that are not there are passed over."""
        for name in names:
            if (source / name).is_file():
                path = f"{self.root}/{name}"
                with self._errors(name):
                    self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                    self.fs.put_file(str(source / name), path)

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system has kinds of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise KitError(f"{self.at(name)}: cannot be read or written ({reason})") from None


def block_of(name: str) -> int | None:
    """The block of a shard, by its file name; None for other files."""
    found = _BLOCK.match(name.rpartition("/")[2])
    return int(found[1]) if found else None


@dataclass
class Plan:
    """What tasks on other machines need to know; plain values, kept as JSON in the shared folder.

    Attributes:
        job: the :class:`~dataset_builder.stages.job.Job`.
        config: the build's configuration.
        output: the dataset folder, an absolute path that the last task must be able to write.
        folder: where in the shared folder everything of this run lies: its plan, datatrove's logs and completion
            markers, signs of life. The name holds the build's fingerprint and the number of tasks, because
            datatrove's markers look at neither.
        limit: the build's limit of questions.
        overwrite: whether a dataset of another config may be replaced.
        key: the build's fingerprint.
        rejected: rows left out, by reason.
        cwd: where the command was typed; relative paths are relative to it.
        executor: ``local``, ``slurm`` or ``ray``.
        tasks: number of slices.
        workers: tasks that run at once, at most.
        options: of the executor.
    """

    job: dict[str, Any]
    config: dict[str, Any]
    output: str
    folder: str
    limit: int | None
    overwrite: bool
    key: str
    rejected: dict[str, int]
    cwd: str
    executor: str
    tasks: int
    workers: int
    options: dict[str, Any] = field(default_factory=dict)

    def save(self, shared: Shared) -> None:
        """Write ``FOLDER/plan.json``."""
        shared.write(f"{self.folder}/plan.json", json.dumps(asdict(self), sort_keys=True, indent=2))

    @classmethod
    def load(cls, shared: Shared, folder: str) -> Plan:
        """Read ``FOLDER/plan.json``.

        Raises:
            KitError: it is not there.
        """
        text = shared.read(f"{folder}/plan.json")
        if text is None:
            raise KitError(f"{shared.at(folder)}/plan.json: is not there; run the same command again")
        return cls(**json.loads(text))
