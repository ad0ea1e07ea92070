"""Stored answers read in whole questions, their scores normalised and aggregated column by column."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataset_builder.selection.pairs import EXCLUDING_FLAGS

COLUMNS = ("response_id", "question_id", "model", "response", "flags", "scores")
_SCORE_FIELDS = ("judge", "score", "low", "high")
_FLAGS = sorted(EXCLUDING_FLAGS)
_ROWS = 8192
_DIGITS = 9


@dataclass
class Scored:
    """Some whole questions with their answers.

    Attributes:
        questions: question ids, in the file's order.
        starts: int64 [questions + 1], where each one's answers begin and the last ends.
        ids, models, texts: of the answers.
        flag: int8 [answers], index in ``flags`` of the first excluding flag, -1 without any.
        judges: names of the columns of ``values``, sorted.
        values: float64 [answers, judges], 0 to 1; NaN where a judge has no complete score.
    """

    questions: list[str]
    starts: np.ndarray
    ids: list[str]
    models: list[str]
    texts: list[str]
    flag: np.ndarray
    judges: list[str]
    values: np.ndarray
    flags = _FLAGS

    def __post_init__(self):
        self.group = np.repeat(np.arange(len(self.questions)), np.diff(self.starts))

    def candidates(self) -> np.ndarray:
        """bool [answers]: not flagged, and scored by at least one judge."""
        return (self.flag < 0) & ~np.isnan(self.values).all(axis=1)

    def common(self, weights: dict[str, float] | None) -> np.ndarray:
        """bool [questions, judges]: judges of positive weight that scored all of a question's candidates."""
        fits = ~np.isnan(self.values) | ~self.candidates()[:, None]
        return np.logical_and.reduceat(fits, self.starts[:-1], axis=0) & (self.weight(weights) > 0)

    def weight(self, weights: dict[str, float] | None) -> np.ndarray:
        """float64 [judges]; a judge that is not named has 1."""
        return np.array([float((weights or {}).get(name, 1.0)) for name in self.judges])

    def aggregate(self, weights: dict[str, float] | None, judges: np.ndarray) -> np.ndarray:
        """Weighted mean of each answer over its question's judges (0–1, rounded); NaN where one is missing.

        Args:
            weights: by judge name.
            judges: bool [questions, judges], what counts.
        """
        factor = (judges * self.weight(weights))[self.group]
        total = factor.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = np.where(factor > 0, self.values * factor, 0.0).sum(axis=1) / total
        return np.round(np.clip(value, 0.0, 1.0), _DIGITS)


def read_scored(path: Path, rows: int = _ROWS) -> Iterator[Scored]:
    """Read ``responses.parquet``; about ``rows`` answers in memory at a time, and never a part of a question."""
    file = pq.ParquetFile(path)
    wanted = []
    for number in range(len(file.schema)):
        leaf = file.schema.column(number).path
        parts = leaf.split(".")
        if parts[0] in COLUMNS and (parts[0] != "scores" or parts[-1] in _SCORE_FIELDS):
            wanted.append(leaf)
    rest: pa.Table | None = None
    for batch in file.iter_batches(rows, columns=wanted):
        table = pa.Table.from_batches([batch])
        if rest is not None:
            table = pa.concat_tables([rest, table]).combine_chunks()
        starts = _starts(table["question_id"])
        cut = int(starts[-1]) if len(starts) else 0  # the last question may go on in the next batch
        rest = table.slice(cut)
        if cut:
            yield _scored(table.slice(0, cut))
    if rest is not None and rest.num_rows:
        yield _scored(rest)


def _starts(column: pa.ChunkedArray) -> np.ndarray:
    """Where a new value begins."""
    if not len(column):
        return np.zeros(0, dtype=np.int64)
    changed = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))
    return np.concatenate([[0], np.flatnonzero(changed.to_numpy()) + 1])


def _scored(table: pa.Table) -> Scored:
    count, starts = table.num_rows, _starts(table["question_id"])
    judges, values = _values(_one(table["scores"]), count)
    return Scored(
        questions=table["question_id"].take(pa.array(starts)).to_pylist(),
        starts=np.append(starts, count),
        ids=table["response_id"].to_pylist(),
        models=table["model"].to_pylist(),
        texts=[text or "" for text in table["response"].to_pylist()],
        flag=_flag(_one(table["flags"]), count),
        judges=judges,
        values=values,
    )


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _flag(column: pa.Array, count: int) -> np.ndarray:
    first = np.full(count, len(_FLAGS), dtype=np.int8)
    found = pc.index_in(pc.list_flatten(column), pa.array(_FLAGS)).fill_null(len(_FLAGS)).to_numpy()
    np.minimum.at(first, pc.list_parent_indices(column).to_numpy(), found.astype(np.int8))
    return np.where(first == len(_FLAGS), -1, first).astype(np.int8)


def _values(column: pa.Array, count: int) -> tuple[list[str], np.ndarray]:
    flat, rows = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
    if not len(flat):
        return [], np.full((count, 0), np.nan)
    coded = pc.dictionary_encode(flat.field("judge"))
    names, codes = coded.dictionary.to_pylist(), coded.indices.to_numpy()
    score, low, high = (flat.field(name).to_numpy(zero_copy_only=False).astype(float) for name in _SCORE_FIELDS[1:])
    cell, width = rows * len(names) + codes, len(names)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.bincount(cell, weights=(score - low) / (high - low), minlength=count * width)
        values = (total / np.bincount(cell, minlength=count * width)).reshape(count, width)
    order = sorted(range(width), key=names.__getitem__)
    return [names[i] for i in order], values[:, order]
