"""Questions that ask the same of the same video: all but the one with the smallest id are left out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.selection.fates import Fates
from dataset_builder.selection.pairs import DUPLICATE
from dataset_builder.selection.similar import embedder, meaning_groups, near_groups
from dataset_builder.settings import DedupConfig
from dataset_builder.table import QuestionTable, sort_parquet
from dataset_builder.text import normalise

_ENCODE = 1024  # texts embedded at a time
_SCHEMA = pa.schema(
    [("cluster", pa.uint64()), ("question_id", pa.string()), ("position", pa.int64()), ("question", pa.string())]
)


def drop_duplicates(table: QuestionTable, config: DedupConfig, fates: Fates, work: Path) -> None:
    """Mark questions that an earlier one makes superfluous; only those without a reason yet are compared.

    ``exact`` compares the normalised text of questions on the same file and time range, in one pass over the table,
    which is sorted by file. ``near`` and ``meaning`` also take copies with the same perceptual hash for one video.
    """
    if config.questions == "exact":
        _drop_exact(table, fates)
    elif config.questions != "none":
        _drop_similar(table, config, fates, work)


def _drop_exact(table: QuestionTable, fates: Fates) -> None:
    seen: set[tuple] = set()
    last = None
    position = 0
    for number in range(table.block_count):
        batch = table.batch(number)
        columns = [batch.column(name).to_pylist() for name in ("sha256", "start", "end", "question")]
        for sha256, start, end, question in zip(*columns):
            if sha256 != last:
                seen, last = set(), sha256
            if fates.codes[position] == 0:
                key = (start, end, normalise(question))
                if key in seen:
                    fates.set(position, DUPLICATE)
                seen.add(key)
            position += 1


def _drop_similar(table: QuestionTable, config: DedupConfig, fates: Fates, work: Path) -> None:
    loose, ordered = work / "selection" / "clusters.parquet", work / "selection" / "clusters-sorted.parquet"
    loose.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_clusters(table, fates, loose)
        sort_parquet(loose, ordered, ("cluster", "question_id"))
        groups = _groups(ordered)
        for positions in _near(groups, config) if config.questions == "near" else _meaning(groups, config):
            fates.set(np.array(positions, dtype=np.int64), DUPLICATE)
    finally:
        loose.unlink(missing_ok=True)
        ordered.unlink(missing_ok=True)


def _write_clusters(table: QuestionTable, fates: Fates, path: Path) -> None:
    """One row a question: a number for its video (and time range), equal for copies of one perceptual hash."""
    start = 0
    with pq.ParquetWriter(path, _SCHEMA) as writer:
        for number in range(table.block_count):
            batch = table.batch(number)
            free = np.flatnonzero(fates.codes[start : start + batch.num_rows] == 0)
            names = ("sha256", "phash", "start", "end")
            keys = zip(*(batch.column(name).to_pylist() for name in names))
            clusters = [cluster_key(*key) for key in keys]
            rows = {
                "cluster": pa.array(clusters, pa.uint64()),
                "question_id": batch.column("question_id"),
                "position": pa.array(np.arange(start, start + batch.num_rows)),
                "question": batch.column("question"),
            }
            writer.write_table(pa.table(rows, schema=_SCHEMA).take(pa.array(free)))
            start += batch.num_rows


def cluster_key(sha256: str, phash: str | None, start: float | None, end: float | None) -> int:
    """64 bits that stand for a video: its perceptual hash where that says something, else its content hash."""
    from hashlib import blake2b

    video = phash if phash and telling(phash) else sha256
    return int.from_bytes(blake2b(f"{video}\0{start}\0{end}".encode(), digest_size=8).digest(), "big")


def telling(phash: str) -> bool:
    """Whether a perceptual hash tells videos apart: those of blank pictures have hardly a bit set."""
    return 4 <= int(phash, 16).bit_count() <= 60


def _groups(path: Path) -> Iterator[list[tuple[int, str]]]:
    """(position, question) of the questions of each video with more than one, one video at a time."""

    def rows() -> Iterator[tuple]:
        for batch in pq.ParquetFile(path).iter_batches(8192):
            yield from zip(*(batch.column(name).to_pylist() for name in ("cluster", "position", "question")))

    for _, group in groupby(rows(), key=lambda row: row[0]):
        found = [(position, question) for _, position, question in group]
        if len(found) > 1:
            yield found


def _near(groups: Iterator[list[tuple[int, str]]], config: DedupConfig) -> Iterator[list[int]]:
    for group in groups:
        kept = near_groups([question for _, question in group], config.threshold)
        yield [position for number, (position, _) in enumerate(group) if kept[number] != number]


def _meaning(groups: Iterator[list[tuple[int, str]]], config: DedupConfig) -> Iterator[list[int]]:
    encode = embedder(config.model)

    def finish(chunk: list[list[tuple[int, str]]]) -> Iterator[list[int]]:
        vectors, start = encode([question for group in chunk for _, question in group]), 0
        for group in chunk:
            kept = meaning_groups(vectors[start : start + len(group)], config.threshold)
            start += len(group)
            yield [position for number, (position, _) in enumerate(group) if kept[number] != number]

    chunk: list[list[tuple[int, str]]] = []
    for group in groups:
        chunk.append(group)
        if sum(map(len, chunk)) >= _ENCODE:
            yield from finish(chunk)
            chunk = []
    if chunk:
        yield from finish(chunk)
