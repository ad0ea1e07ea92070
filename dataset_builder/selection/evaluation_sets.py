"""Evaluation sets to keep out of the pairs: from a dataset of the kit, a file of questions, or a folder of videos."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.loading import dataset_folder, split_files, stream_batches
from dataset_builder.settings import DecontaminationConfig
from dataset_builder.text import one_line

VIDEO_ENDINGS = frozenset((".mp4", ".webm", ".mkv", ".avi", ".mov", ".gif", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv"))
_NAMES = ("video_id", "source_id", "video", "video_name")
_FIELDS = (*_NAMES, "sha256", "phash", "question")


@dataclass(frozen=True)
class EvaluationRow:
    """What is known of one row of an evaluation set: any of its video's names and hashes, and its question."""

    names: tuple[str, ...] = ()
    sha256: str | None = None
    phash: str | None = None
    question: str | None = None


def read_evaluation_set(config: DecontaminationConfig) -> list[EvaluationRow]:
    """All rows of an evaluation set, each kind of row once.

    Raises:
        KitError: it cannot be read, or a row of it says nothing.
    """
    rows: list[EvaluationRow] = []
    if config.dataset:
        rows += _from_dataset(config)
    if config.questions:
        rows += _from_file(Path(config.questions))
    if config.videos:
        rows += _from_videos(Path(config.videos))
    return list(dict.fromkeys(rows))


def _from_dataset(config: DecontaminationConfig) -> Iterator[EvaluationRow]:
    folder = dataset_folder(
        config.dataset, f"questions/{config.split}-*.parquet", f"benchmark/{config.split}-*.parquet"
    )
    found = {name: split_files(folder, name) for name in ("questions", "benchmark") if any((folder / name).glob("*-*"))}
    # The questions config has hashes that the benchmark lacks; whose video_id is the start of the content hash.
    name = next((name for name, files in found.items() if config.split in files), None)
    if name is None:
        raise KitError(f"{config.dataset}: has no split '{config.split}' of the configs questions or benchmark")
    columns = ["video_id", "question"] + (["source_id", "sha256", "phash"] if name == "questions" else [])
    for batch in stream_batches(found[name][config.split], columns):
        for number, row in enumerate(batch.to_pylist(), 1):
            yield _row(row, f"{config.dataset} ({name})", number)


def _from_file(path: Path) -> Iterator[EvaluationRow]:
    for number, row in enumerate(_rows_of(path), 1):
        yield _row(row, str(path), number)


def _rows_of(path: Path) -> Iterable[Any]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                names = [name for name in file.schema_arrow.names if name in _FIELDS]
                for batch in file.iter_batches(4096, columns=names):
                    yield from batch.to_pylist()
        elif path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                yield from csv.DictReader(file)
        else:
            with open(path, encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
    except (OSError, ValueError, csv.Error) as error:  # Arrow's and JSON's errors are ValueErrors
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or ["damaged"])[0]
        raise KitError(f"{path}: cannot be read as JSONL, CSV or Parquet ({one_line(reason)})") from None


def _row(row: Any, file: str, number: int) -> EvaluationRow:
    if not isinstance(row, dict):
        raise KitError(f"{file}:{number}: expected an object with any of {', '.join(_FIELDS)}")
    values = {name: row.get(name) for name in _FIELDS}
    if values["question"] is None and isinstance(row.get("conversations"), list):
        values["question"] = _first_turn(row["conversations"])
    # A video column may hold the video itself; only a name is of use here.
    values = {name: value for name, value in values.items() if isinstance(value, str) and value.strip()}
    if not values:
        raise KitError(f"{file}:{number}: has none of {', '.join(_FIELDS)}")
    phash, sha256 = values.get("phash"), values.get("sha256")
    for name, value, digits in (("phash", phash, 16), ("sha256", sha256, 64)):
        if value is not None and not _is_hex(value, digits):
            raise KitError(f"{file}:{number}: field '{name}': expected {digits} hexadecimal digits")
    return EvaluationRow(
        names=tuple(sorted({values[name] for name in _NAMES if name in values})),
        sha256=sha256 and sha256.lower(),
        phash=phash and phash.lower(),
        question=values.get("question"),
    )


def _first_turn(turns: list) -> str | None:
    """The question of a LLaVA-Hound test row: its first turn's text."""
    from dataset_builder.sources.readers import plain_text

    value = turns[0].get("value") if turns and isinstance(turns[0], dict) else None
    return plain_text(value) if isinstance(value, str) else None


def _is_hex(value: str, digits: int) -> bool:
    return len(value) == digits and all(c in "0123456789abcdefABCDEF" for c in value)


def _from_videos(folder: Path) -> Iterator[EvaluationRow]:
    if not folder.is_dir():
        raise KitError(f"{folder}: no such folder of videos")
    for path in _videos(folder):
        sha256, phash = video_hashes(path)
        yield EvaluationRow((path.relative_to(folder).as_posix(),), sha256, phash)


def _videos(folder: Path) -> Iterator[Path]:
    """Video files and frame folders, sorted."""
    from dataset_builder.media import MediaError
    from dataset_builder.media.folder import frame_names

    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            try:
                frames = bool(frame_names(path))
            except MediaError:
                frames = False
            if frames:
                yield path
            else:
                yield from _videos(path)
        elif path.suffix.lower() in VIDEO_ENDINGS:
            yield path


def video_hashes(path: Path) -> tuple[str, str]:
    """``(sha256, phash)`` of a video as the question table has them: the latter of its middle frame.

    Raises:
        MediaError: it cannot be read; an evaluation video that is passed over would be kept in.
    """
    from dataset_builder.media import file_sha256, inspect_video, perceptual_hash

    return file_sha256(path), perceptual_hash(inspect_video(path, 1)[1].array[0])
