"""Put a person's own copies of the videos into a dataset that was released without them (ids only).

Such a dataset says of every video what its source calls it and the SHA-256 of its file. A copy is looked for under that
name first; where there is none, or its hash is another, all files of the folder are hashed. Only the very file that
the dataset was made from is taken: answers and scores belong to its frames, and another cut or encoding has others.
A folder of frames is found by its name, and packed as a build packs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from dataset_builder.disassemble import VIDEO_ID_DIGITS, Videos, assemble, extract_videos
from dataset_builder.errors import KitError
from dataset_builder.loading import dataset_folder, split_files, stream_batches
from dataset_builder.media import MediaError, file_sha256, pack_frame_folder
from dataset_builder.media.folder import frame_names
from dataset_builder.stages import ShardStore, canonical_json, fingerprint, write_atomic
from dataset_builder.text import one_line

MAX_SHARD_MB = 256
NOT_ATTACHED = "not_attached.jsonl"
_MADE = ("videos", "copies", "assembled", "questions.arrow", "writer-cache", "stages")  # large, and quickly made again
# Endings that say how a video is stored; a name such as "v_1.5" has none.
_SUFFIXES = (".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")


@dataclass(frozen=True)
class NotAttached:
    """A video that stays null.

    Attributes:
        video_id: first 16 hex digits of its hash.
        source_id: what its source calls it.
        rows: rows of the dataset that stay without video.
        expected: SHA-256 of the video.
        file: the file of that name that holds something else, None when there is no such file.
        found: SHA-256 of that file, None when there is none or it cannot be read.
    """

    video_id: str
    source_id: str
    rows: int
    expected: str
    file: str | None = None
    found: str | None = None

    def __str__(self) -> str:
        what = f"video {self.video_id} ({one_line(self.source_id)}, {self.rows} rows)"
        if self.file is None:
            return f"{what}: no file has its hash {self.expected}"
        if self.found is None:
            return f"{self.file}: cannot be read as {what}"
        return f"{self.file}: is not {what}: its sha256 is {self.found}, expected {self.expected}"


@dataclass(frozen=True)
class AttachReport:
    """What :func:`attach` did.

    Attributes:
        dataset: the dataset folder that was written.
        fingerprint: of the new dataset.
        rows: rows that can carry a video (preferences and benchmark).
        null: those of them whose video is still null.
        attached: videos that were put in.
        present: videos that were there before.
        refused: videos for which only files with another hash were found under their name.
        missing: videos for which no file was found.
    """

    dataset: str
    fingerprint: str
    rows: int
    null: int
    attached: int
    present: int
    refused: list[NotAttached] = field(default_factory=list)
    missing: list[NotAttached] = field(default_factory=list)

    def __str__(self) -> str:
        numbers = {
            "attached": f"{self.attached} videos",
            "present": f"{self.present} videos were there before",
            "refused": f"{len(self.refused)} videos: the file has another hash",
            "missing": f"{len(self.missing)} videos: no such file",
            "rows": f"{self.rows}, {self.null} of them without video",
            "dataset": self.dataset,
        }
        return "\n".join(f"{name:<10} {value}" for name, value in numbers.items())


def attach(
    dataset: Path | str, videos: Path | str, output: Path | str, progress: bool = True, overwrite: bool = False
) -> AttachReport:
    """Write a dataset with the person's own copies of its videos in it.

    The result is the dataset that a build with embedded videos would have written, file by file; only
    ``provenance.json`` says that the videos were attached. Copies are put in whatever their licence: the result is for
    oneself where that does not allow redistribution.

    Args:
        dataset: a dataset folder or a Hub id.
        videos: folder of the person's video files, at any depth.
        output: the dataset folder to write; the same as ``dataset`` replaces it.
        progress: show progress bars on stderr.
        overwrite: replace another dataset at ``output``.

    Returns:
        What was attached, and each video that was not, which is also in ``.NAME-attach/not_attached.jsonl`` beside the
        output.

    Raises:
        KitError: there is no such dataset or folder, or the output may not be replaced.
    """
    from dataset_builder import mmaip_v
    from dataset_builder.build import check_output, work_folder

    videos, output = Path(videos), Path(output)
    if not videos.is_dir():
        raise KitError(f"--videos {videos}: there is no such folder")
    work_folder(output)  # refuses an output without a name
    work = output.with_name(f".{output.name}-attach")
    with ShardStore(work).lock():
        mmaip_v.recover(output)
        source = dataset_folder(dataset)
        in_place = output.exists() and source.resolve() == output.resolve()
        try:
            there = extract_videos(source, work)
            wanted = _wanted(source, there)
            copies = _Copies(videos, work, progress)
            found, not_attached = copies.match(wanted, there.null)
            write_atomic(work / NOT_ATTACHED, "".join(f"{canonical_json(asdict(entry))}\n" for entry in not_attached))
            old = mmaip_v.read_provenance(source) or {}
            key = fingerprint({"from": old.get("fingerprint"), "attached": sorted(found)})
            if in_place and not found:
                key = old.get("fingerprint") or key
            elif not _is_done(output, key, None if in_place else check_output(output, key, overwrite)):
                # What the dataset calls the file decides its ending, as in a build; a copy may be called otherwise.
                named = {digest: _named(path, wanted[digest].names, digest, work) for digest, path in found.items()}
                assemble(source, work, there.files | named)
                said = {
                    **old,
                    "config_hash": key,
                    "fingerprint": key,
                    "attached_from": old.get("fingerprint"),
                    "attached": len(found),
                }
                mmaip_v.write_dataset(
                    work,
                    output,
                    embed=True,
                    extra={"provenance.json": said, **_extra(source)},
                    max_shard_size=f"{old.get('max_shard_mb', MAX_SHARD_MB)}MB",
                )
        finally:
            _remove_made(work)
    return AttachReport(
        dataset=str(output),
        fingerprint=key,
        rows=sum(there.rows.values()) + sum(there.null.values()),
        null=sum(entry.rows for entry in not_attached),
        attached=len(found),
        present=len(there.files),
        refused=[entry for entry in not_attached if entry.file is not None],
        missing=[entry for entry in not_attached if entry.file is None],
    )


@dataclass
class _Wanted:
    """A video that is looked for: what its source calls it, and its seconds."""

    names: list[str]
    duration: float


def _wanted(source: Path, there: Videos) -> dict[str, _Wanted]:
    """The videos of rows that have none, by sha256.

    Raises:
        KitError: a row's video is not in the ``questions`` config.
    """
    wanted: dict[str, _Wanted] = {}
    for files in split_files(source, "questions").values():
        for batch in stream_batches(files, ["video_id", "sha256", "source_id", "duration"]):
            for row in batch.to_pylist():
                if row["video_id"] in there.null:
                    video = wanted.setdefault(row["sha256"], _Wanted([], row["duration"]))
                    if row["source_id"] not in video.names:
                        video.names.append(row["source_id"])
    unknown = set(there.null) - {digest[:VIDEO_ID_DIGITS] for digest in wanted}
    if unknown:
        raise KitError(f"{source}: the 'questions' config says nothing of video {min(unknown)}: it is not whole")
    return dict(sorted(wanted.items()))


class _Copies:
    """The files of a folder, each hashed at most once.

    Args:
        folder: the person's videos.
        work: has the hashes of an earlier run, which was perhaps stopped (a file counts as the same while its size and
            time are), and takes packed frame folders.
        progress: show progress bars.
    """

    def __init__(self, folder: Path, work: Path, progress: bool):
        self.folder, self.work, self.progress = folder, work, progress
        self.known = work / "hashes.jsonl"
        self._hashes: dict[str, tuple[list[int], str]] = {}
        if self.known.is_file():
            for line in self.known.read_text(encoding="utf-8").splitlines():
                try:
                    path, stat, digest = json.loads(line)
                except ValueError:  # the line that was being written when the run was stopped
                    continue
                self._hashes[path] = (stat, digest)
        self.files: list[str] = []
        self._by_name: dict[str, list[str]] = {}
        for root, folders, names in os.walk(folder):
            folders.sort()
            self.files += [os.path.join(root, name) for name in sorted(names)]
            for name in (*sorted(names), *folders):
                for word in {name, PurePosixPath(name).stem}:
                    self._by_name.setdefault(word, []).append(os.path.join(root, name))

    def match(self, wanted: dict[str, _Wanted], rows: Counter) -> tuple[dict[str, str], list[NotAttached]]:
        """Find the copy of each video.

        Args:
            wanted: the videos by sha256.
            rows: rows without video, by video id.

        Returns:
            (file by sha256, the videos that have none).
        """
        found: dict[str, str] = {}
        tried: dict[str, list[tuple[str, str | None]]] = {}
        for digest in self._bar(wanted, "videos by name"):
            for path in self._candidates(wanted[digest].names):
                actual, file = self._look(path, digest, wanted[digest].duration)
                if file is not None:
                    found[digest] = file
                    break
                tried.setdefault(digest, []).append((path, actual))
        if len(found) < len(wanted):
            for path in self._bar(self.files, "files by hash"):
                digest = self.sha256(path)
                if digest in wanted:
                    found.setdefault(digest, path)
        left = []
        for digest, video in wanted.items():
            if digest not in found:
                file, actual = tried.get(digest, [(None, None)])[0]
                video_id = digest[:VIDEO_ID_DIGITS]
                left.append(NotAttached(video_id, video.names[0], rows[video_id], digest, file, actual))
        return found, left

    def _candidates(self, names: list[str]) -> list[str]:
        """Files that may be a video, the best first: at its path, of its name, of its name with another ending."""
        paths: list[str] = []
        for name in names:
            inner = PurePosixPath(name)
            # A name comes with the dataset, from anywhere: it must not lead out of the folder.
            if name and "\0" not in name and ".." not in inner.parts and not inner.is_absolute():
                path = os.path.join(self.folder, *inner.parts)
                if os.path.exists(path):
                    paths.append(path)
            paths += self._by_name.get(inner.name, [])
            stem = inner.stem if inner.suffix.lower() in _SUFFIXES else inner.name
            paths += self._by_name.get(stem, [])
        return list(dict.fromkeys(paths))

    def _look(self, path: str, digest: str, duration: float) -> tuple[str | None, str | None]:
        """(hash of a file or of a packed frame folder, the file to take if it is the right one)."""
        if not os.path.isdir(path):
            actual = self.sha256(path)
            return actual, path if actual == digest else None
        try:
            data = pack_frame_folder(path, len(frame_names(path)) / duration)
        except (MediaError, ValueError, ZeroDivisionError):  # some other folder of that name
            return None, None
        actual = hashlib.sha256(data).hexdigest()
        if actual != digest:
            return actual, None
        file = self.work / "copies" / f"{digest}.mp4"
        write_atomic(file, data)
        return actual, str(file)

    def sha256(self, path: str) -> str | None:
        """Hash of a file; None when it cannot be read."""
        try:
            status = os.stat(path)
            stat = [status.st_size, status.st_mtime_ns]
            if path in self._hashes and self._hashes[path][0] == stat:
                return self._hashes[path][1]
            digest = file_sha256(path)
        except (OSError, MediaError):
            return None
        self._hashes[path] = (stat, digest)
        with open(self.known, "a", encoding="utf-8") as stream:
            stream.write(json.dumps([path, stat, digest]) + "\n")
        return digest

    def _bar(self, values, what: str):
        from tqdm.auto import tqdm

        return tqdm(values, desc=what, unit="file", disable=not self.progress)


def _named(path: str, names: list[str], digest: str, work: Path) -> str:
    """The copy under the ending that the dataset's source gave the video."""
    endings = [PurePosixPath(name).suffix.lower() for name in names]
    ending = next((suffix for suffix in endings if suffix in _SUFFIXES), None)
    if ending in (None, Path(path).suffix.lower()):
        return path
    link = work / "copies" / f"{digest}{ending}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.abspath(path))
    return str(link)


def _is_done(output: Path, key: str, old: dict | None) -> bool:
    from dataset_builder import mmaip_v

    return old is not None and old.get("fingerprint") == key and mmaip_v.is_intact(output, old)


def _extra(source: Path) -> dict[str, dict]:
    """The other JSON files of a dataset."""
    return {
        path.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(source.glob("*.json"))
        if path.name != "provenance.json"
    }


def _remove_made(work: Path) -> None:
    for name in _MADE:
        path = work / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
