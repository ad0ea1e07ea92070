"""The videos that rows name: found inside one folder only, opened and hashed once, their facts kept for the next run.

``sha256`` is always of an mp4 (or other video) *file*: of a frame folder it is the hash of the file that
``pack_frame_folder`` makes of it, the same bytes every time. That file is kept in ``work/videos/<sha256>.mp4`` and is
what the question table's ``path`` and ``media.json`` point to; ``source_id`` names the folder. A video that came as
bytes in a row is kept in the same place.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.media import MediaError, file_sha256, inspect_video, pack_frame_folder, perceptual_hash
from dataset_builder.media.folder import frame_names
from dataset_builder.stages import fingerprint, write_atomic
from dataset_builder.text import one_line

# Endings that a name without (or with another) ending is tried with, in this order.
ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".gif")
_FACTS_VERSION = 1  # raise it when the facts of a file are found out in another way
_KEPT = 4096  # videos whose facts stay in memory


@dataclass(frozen=True)
class Video:
    """Facts about a video.

    Attributes:
        path: the file on this machine.
        name: what the source calls it: its path inside the videos folder.
        sha256: of the file's bytes, 64 hex digits.
        phash: perceptual hash of its middle frame, 16 hex digits.
        duration: seconds.
    """

    path: str
    name: str
    sha256: str
    phash: str
    duration: float


class FactsCache:
    """Facts of files by path, size and time of change, in one SQLite file; losing it costs time only.

    Args:
        path: of the file; made when it is not there, made anew when it is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
            self._open()

    def _open(self) -> None:
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        self._connection.execute("PRAGMA synchronous=OFF")  # whole after a kill; a power cut costs the cache at most
        self._connection.execute("CREATE TABLE IF NOT EXISTS facts (path TEXT PRIMARY KEY, signature TEXT, video TEXT)")

    def get(self, path: str, signature: str) -> dict[str, Any] | None:
        """What was found out about this state of a file, or None."""
        row = self._connection.execute(
            "SELECT video FROM facts WHERE path = ? AND signature = ?", (_key(path), signature)
        ).fetchone()
        return json.loads(row[0]) if row else None

    def put(self, path: str, signature: str, facts: dict[str, Any]) -> None:
        """Keep facts; safe from a kill once this returns."""
        self._connection.execute(
            "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (_key(path), signature, json.dumps(facts))
        )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _key(path: str) -> str:
    """A path as SQLite can hold it: names that are not UTF-8 are written out."""
    return os.path.abspath(path).encode("utf-8", "backslashreplace").decode()


class VideoFolder:
    """The videos of one source. A broken file stays broken for all its rows.

    Args:
        folder: where names are looked up; None when every row carries its video.
        work: work folder, for packed frame folders and videos from rows.
        facts: kept from earlier runs.
        fps: frames per second of frame folders.
        key: of the folder in the configuration, for messages.

    Raises:
        KitError: there is no such folder.
    """

    def __init__(self, folder: str | None, work: Path, facts: FactsCache, fps: float, key: str):
        if folder is not None and not Path(folder).is_dir():
            raise KitError(f"{key}: {folder}: there is no such folder")
        self.folder = None if folder is None else Path(folder)
        self.root = None if folder is None else self.folder.resolve()
        self.store, self.facts, self.fps = work / "videos", facts, fps
        self._known: OrderedDict[Any, Video | MediaError] = OrderedDict()

    def get(self, value: str | dict[str, Any], youtube: bool = False) -> Video:
        """Facts of a video.

        Args:
            value: a name inside the folder (file, file without its ending, or frame folder), or a row's
                ``{"bytes", "path"}``.
            youtube: whether ``v_`` in front of a name and its ending do not count, as in ActivityNet.

        Raises:
            MediaError: it cannot be used.
        """
        if isinstance(value, dict):
            if value["bytes"] is not None:
                return self._from_bytes(value["bytes"], value["path"])
            value = self._inner_name(value["path"])
        key = (value, youtube)
        if key not in self._known:
            try:
                self._known[key] = self._read(value, youtube)
            except MediaError as error:
                self._known[key] = error
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        found = self._known[key]
        if isinstance(found, MediaError):
            raise found
        return found

    def names(self) -> Iterator[str]:
        """Every video file and frame folder inside the folder, sorted within each folder, links left out."""
        yield from self._walk(self.folder)

    def _walk(self, folder: Path) -> Iterator[str]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise KitError(f"{folder}: cannot be listed ({error.strerror})") from None
        for entry in entries:
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            inner = str(PurePosixPath(*Path(entry.path).relative_to(self.folder).parts))
            if entry.is_dir():
                try:
                    frame_names(entry.path)
                except MediaError:
                    yield from self._walk(Path(entry.path))
                else:
                    yield inner
            elif Path(entry.name).suffix.lower() in ENDINGS:
                yield inner

    def _read(self, name: str, youtube: bool) -> Video:
        path = self._find(name, youtube)
        inner = str(PurePosixPath(*path.relative_to(self.folder).parts))
        if path.is_dir():
            return self._from_frames(path, inner)
        return self._probe(path, inner, str(path), lambda: _file_signature(path))

    def _find(self, name: str, youtube: bool) -> Path:
        """The file or frame folder that a name means."""
        path = self._inside(name)
        if os.path.lexists(path) or not path.name:
            return path
        bare = [path.name]
        if youtube:
            stem = path.stem if path.suffix.lower() in ENDINGS else path.name
            stem = stem.removeprefix("v_")
            bare = [f"v_{stem}", stem]
        tried = [each + ending for each in bare for ending in ("", *ENDINGS, *map(str.upper, ENDINGS))]
        # Not by the first that is there: a file system that ignores case shows one file under two names.
        found = [path.with_name(each) for each in tried if os.path.exists(path.with_name(each))]
        found = [each for i, each in enumerate(found) if not any(os.path.samefile(each, other) for other in found[:i])]
        if len(found) > 1:
            listed = " and ".join(one_line(each.name) for each in found[:2])
            raise MediaError(f"{one_line(name)}: could be {listed}: name one of them in full", "ambiguous_video")
        return self._inside(str(found[0].relative_to(self.folder))) if found else path

    def _inside(self, name: str) -> Path:
        """The path, only if it lies inside the videos folder (a link that leads out does not)."""
        if self.folder is None:
            raise MediaError(f"{one_line(name)}: names a file, but the source has no `videos` folder", "missing_video")
        try:
            path = self.folder / Path(name)
            inside = path.resolve().is_relative_to(self.root) and ".." not in Path(name).parts
        except (OSError, ValueError, RuntimeError):  # a NUL character, links in a circle
            raise MediaError(f"{name!r}: is no name of a file", "missing_video") from None
        if not inside or Path(name).is_absolute():
            raise MediaError(
                f"{one_line(name)}: lies outside the videos folder {self.folder}; only files inside it are read",
                "outside_folder",
            )
        return path

    def _inner_name(self, path: str) -> str:
        """The name of a file that a `Video` column points to with its whole path."""
        if "://" in path:
            raise MediaError(
                f"{one_line(path)}: lies on the Hub as a file of its own: download the dataset and name its folder",
                "missing_video",
            )
        for root in (self.folder, self.root):
            if root is not None and Path(path).is_absolute() and Path(path).is_relative_to(root.absolute()):
                return str(Path(path).relative_to(root.absolute()))
        return path

    def _from_bytes(self, data: bytes, path: str | None) -> Video:
        """A video that a row carries, written out once under its hash."""
        digest = hashlib.sha256(data).hexdigest()
        # The row's name for it is a name only and never opened.
        name = one_line(path.replace("\\", "/").rsplit("/", 1)[-1]) if path and path.strip() else f"{digest[:16]}.mp4"
        target = self.store / f"{digest}.mp4"
        self._keep(target, data)
        return self._probe(target, name, str(target), lambda: f"{len(data)}:{digest}", digest, said=name)

    def _from_frames(self, path: Path, inner: str) -> Video:
        signature = self._folder_signature(path)
        kept = self.facts.get(str(path), signature)
        if kept is not None and _has_size(Path(kept["path"]), kept["bytes"]):
            return Video(kept["path"], inner, kept["sha256"], kept["phash"], kept["duration"])
        # Looked at before it is packed: that also says which frame is broken.
        info, frames = inspect_video(path, 1, folder_fps=self.fps)
        try:
            data = pack_frame_folder(path, self.fps)
        except ValueError as error:
            raise MediaError(f"{one_line(inner)}: cannot be packed as a video ({one_line(str(error))})") from None
        digest = hashlib.sha256(data).hexdigest()
        target = self.store / f"{digest}.mp4"
        self._keep(target, data)
        video = Video(str(target), inner, digest, perceptual_hash(frames.array[0]), info.duration)
        self.facts.put(str(path), signature, {**asdict(video), "bytes": len(data)})
        return video

    def _folder_signature(self, folder: Path) -> str:
        """Names, sizes and times of the frames; none may be a link that leads out of the videos folder."""
        parts = []
        for name in frame_names(folder):
            path = folder / name
            if path.is_symlink() and not path.resolve().is_relative_to(self.root):
                raise MediaError(f"{one_line(str(path))}: is a link out of the videos folder", "outside_folder")
            state = path.stat()
            parts.append([os.fsencode(name).hex(), state.st_size, state.st_mtime_ns])
        return f"{_FACTS_VERSION}:{self.fps}:{fingerprint(parts)}"

    def _probe(self, path: Path, name: str, key: str, sign, digest: str | None = None, said: str = "") -> Video:
        try:
            signature = f"{_FACTS_VERSION}:{sign()}"
        except (OSError, ValueError):
            signature = ""  # opening it says why
        kept = self.facts.get(key, signature) if signature else None
        if kept is None:
            try:
                digest = digest or file_sha256(path)
                info, frames = inspect_video(path, 1)
            except MediaError as error:
                if said:
                    raise MediaError(str(error).replace(str(path), said), error.kind) from None
                raise
            kept = {"sha256": digest, "phash": perceptual_hash(frames.array[0]), "duration": info.duration}
            self.facts.put(key, signature, kept)
        return Video(str(path), name, kept["sha256"], kept["phash"], kept["duration"])

    @staticmethod
    def _keep(target: Path, data: bytes) -> None:
        if not _has_size(target, len(data)):
            write_atomic(target, data)


def _file_signature(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size}:{state.st_mtime_ns}"


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
