"""The inverse of the final writer: from a dataset folder back to the rows it was written from.

``attach`` and ``reselect`` change one thing of a finished dataset, its videos or its pairs, and then have the same
writer write all of it again. What they start from is what a build has in its work folder just before writing: the
question table and the assembled responses and pairs. Everything is read as a stream, a few rows with videos or a few
thousand without in memory at a time.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.assemble import PAIR_SCHEMA, PAIRS, RESPONSE_SCHEMA, RESPONSES
from dataset_builder.errors import KitError
from dataset_builder.loading import VIDEO_BATCH, dataset_folder, read_media, split_files, stream_batches
from dataset_builder.schema import DEFAULT_CONFIG, FEATURES
from dataset_builder.stages import write_atomic
from dataset_builder.table import QuestionTable, write_questions

VIDEO_ID_DIGITS = 16
_VIDEO_CONFIGS = [name for name, features in FEATURES.items() if "video" in features]
_ROWS, _BLOCK_SIZE = 1024, 64
GROUP_ROWS = 4096  # rows of one row group of the assembled files


@dataclass(frozen=True)
class Assembled:
    """What a dataset was taken apart into.

    Attributes:
        provenance: its ``provenance.json`` (empty when it has none).
        questions, responses, pairs: numbers of rows.
        videos_present: different videos that are there, in the dataset or in ``media``.
        videos_absent: different videos that are not; their rows' ``video`` will be null.
    """

    provenance: dict
    questions: int
    responses: int
    pairs: int
    videos_present: int
    videos_absent: int


@dataclass(frozen=True)
class Videos:
    """The videos of a dataset's rows.

    Attributes:
        files: extracted files, by sha256.
        rows: rows whose video is in the dataset, by video id.
        null: rows whose video is null, by video id.
    """

    files: dict[str, str] = field(default_factory=dict)
    rows: Counter = field(default_factory=Counter)
    null: Counter = field(default_factory=Counter)


def assembled_from_dataset(
    dataset: str | Path, work: Path, media: dict[str, str] | str | Path | None = None, block_size: int | None = None
) -> Assembled:
    """Make ``questions.arrow``, ``assembled/responses.parquet`` and ``assembled/pairs.parquet`` from a dataset.

    Args:
        dataset: a dataset folder or a Hub id.
        work: where to put them; videos that the dataset carries go to ``videos/`` in it.
        media: more videos, by sha256 (or a ``media.json``), for those that the dataset does not carry.
        block_size: questions per block of the table; None takes the dataset's own.

    Raises:
        KitError: there is no such dataset, or it is damaged or not whole.
    """
    folder = dataset_folder(dataset)
    files = {digest: path for digest, path in read_media(media).items() if os.path.isfile(path)}
    return assemble(folder, work, files | extract_videos(folder, work).files, block_size)


def assemble(folder: Path, work: Path, videos: dict[str, str], block_size: int | None = None) -> Assembled:
    """:func:`assembled_from_dataset` with all videos found already.

    Args:
        folder: the dataset.
        work: as above.
        videos: files by sha256.
        block_size: as above.
    """
    from dataset_builder.mmaip_v import read_provenance

    path, provenance = work / "questions.arrow", read_provenance(folder) or {}
    write_questions(_questions(folder, videos), path, block_size or provenance.get("block_size") or _BLOCK_SIZE)
    table = QuestionTable(path)
    (work / RESPONSES).parent.mkdir(parents=True, exist_ok=True)
    responses = _write(work / RESPONSES, RESPONSE_SCHEMA, _in_order(table, folder, "responses", RESPONSE_SCHEMA.names))
    pairs = 0
    if (folder / DEFAULT_CONFIG).is_dir():
        columns = [name for name in PAIR_SCHEMA.names if name != "judges"]
        batches = _in_order(table, folder, DEFAULT_CONFIG, columns)
        pairs = _write(work / PAIRS, PAIR_SCHEMA, (_plain_pairs(batch) for batch in batches))
    else:  # no question gave a pair
        _write(work / PAIRS, PAIR_SCHEMA, iter(()))
    present, absent, last = 0, 0, None
    for index in range(table.block_count):
        batch = table.batch(index)
        for digest, embed in zip(batch.column("sha256").to_pylist(), batch.column("embed").to_pylist()):
            present += embed and digest != last
            absent += not embed and digest != last
            last = digest
    return Assembled(provenance, len(table), responses, pairs, present, absent)


def extract_videos(folder: Path, work: Path) -> Videos:
    """Write every video that a dataset carries to ``work/videos/SHA256.EXT``, and count the rows with and without.

    Raises:
        KitError: a file of the dataset is damaged, or holds another video than its row says.
    """
    found, target, last = Videos(), work / "videos", None
    for config in _VIDEO_CONFIGS:
        if not (folder / config).is_dir():
            continue
        for files in split_files(folder, config).values():
            for batch in stream_batches(files, ["video_id", "video"], VIDEO_BATCH):
                for video_id, video in zip(batch.column("video_id").to_pylist(), batch.column("video")):
                    data = video["bytes"].as_buffer() if video.is_valid else None
                    if data is None:
                        found.null[video_id] += 1
                        continue
                    found.rows[video_id] += 1
                    if video_id == last:  # rows are sorted by video
                        continue
                    last = video_id
                    digest = hashlib.sha256(data).hexdigest()
                    if digest[:VIDEO_ID_DIGITS] != video_id:
                        raise KitError(f"{folder}: a row holds another video than {video_id}: the dataset is damaged")
                    path = target / f"{digest}{PurePosixPath(video['path'].as_py() or '').suffix.lower() or '.mp4'}"
                    if not path.is_file():
                        write_atomic(path, data)
                    found.files[digest] = str(path)
    return found


def _questions(folder: Path, videos: dict[str, str]) -> Iterator[dict]:
    """Rows of the question table, in any order; a question's split is the one its row is in."""
    columns = list(FEATURES["questions"])
    for split, files in split_files(folder, "questions").items():
        for batch in stream_batches(files, columns, _ROWS):
            for row in batch.to_pylist():
                path = videos.get(row["sha256"])
                yield {**row, "split": split, "path": path or "", "embed": path is not None}


class _Stream:
    """The rows of one split, taken from the front question by question."""

    def __init__(self, files: list[Path], columns: list[str]):
        self._batches = stream_batches(files, columns, _ROWS)
        self.batch: pa.RecordBatch | None = None
        self.ids: list[str] = []
        self.position = 0
        self._next()

    def _next(self) -> None:
        self.position = 0
        for batch in self._batches:
            if batch.num_rows:
                self.batch, self.ids = batch, batch.column("question_id").to_pylist()
                return
        self.batch, self.ids = None, []

    @property
    def head(self) -> str | None:
        """Question of the next row."""
        return self.ids[self.position] if self.batch is not None else None

    def take(self, question_id: str) -> Iterator[tuple[pa.RecordBatch, int, int]]:
        """The rows of a question, if they are next: (batch, first row, row after the last)."""
        while self.head == question_id:
            start = self.position
            while self.position < len(self.ids) and self.ids[self.position] == question_id:
                self.position += 1
            yield self.batch, start, self.position
            if self.position == len(self.ids):
                self._next()


def _in_order(table: QuestionTable, folder: Path, config: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """All splits of a config as one stream in the question table's order.

    Each split is in that order by itself, so the splits only need to be merged; runs of rows that stand together in
    one batch stay together.

    Raises:
        KitError: a split is not in that order, or has rows of a question that is not in the table.
    """
    streams = {split: _Stream(files, columns) for split, files in split_files(folder, config).items()}
    run: tuple[pa.RecordBatch, int, int] | None = None
    for index in range(table.block_count):
        block = table.batch(index)
        for question_id, split in zip(block.column("question_id").to_pylist(), block.column("split").to_pylist()):
            for batch, start, end in streams[split].take(question_id) if split in streams else ():
                if run is not None and run[0] is batch and run[2] == start:
                    run = (batch, run[1], end)
                    continue
                if run is not None:
                    yield run[0].slice(run[1], run[2] - run[1])
                run = (batch, start, end)
    if run is not None:
        yield run[0].slice(run[1], run[2] - run[1])
    for split, stream in streams.items():
        if stream.head is not None:
            raise KitError(
                f"{folder / config}: the rows of question {stream.head} ({split}) are out of order or the question is "
                "missing in the 'questions' config: take the dataset as it was written"
            )


def _plain_pairs(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Pairs with their answers as texts again."""
    plain = {name: batch.column(name) for name in batch.schema.names}
    for name in ("chosen", "rejected"):
        plain[name] = pa.array([message_text(value) for value in plain[name].to_pylist()], pa.string())
    plain["judges"] = pa.nulls(batch.num_rows, PAIR_SCHEMA.field("judges").type)
    return pa.RecordBatch.from_pydict(plain)


def message_text(messages: list[dict]) -> str:
    """The text of a conversational completion."""
    return "".join(part["text"] or "" for message in messages for part in message["content"] if part["type"] == "text")


def _write(path: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> int:
    """Write batches as Parquet, in row groups of the size a build writes; the file has its name only when it is whole.

    The size matters: the final writer's own row groups follow it, and attaching must give the files of a direct build.
    """
    new = path.with_name(f".{path.name}.tmp")
    count, waiting, size = 0, [], 0
    with pq.ParquetWriter(new, schema) as writer:
        for batch in batches:
            count += batch.num_rows
            waiting.append(pa.Table.from_batches([batch]).select(schema.names).cast(schema))
            size += batch.num_rows
            while size >= GROUP_ROWS:
                table = pa.concat_tables(waiting)
                writer.write_table(table.slice(0, GROUP_ROWS))
                waiting, size = [table.slice(GROUP_ROWS)], size - GROUP_ROWS
        if size:
            writer.write_table(pa.concat_tables(waiting))
    new.replace(path)
    return count
