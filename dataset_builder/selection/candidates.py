"""Candidate pairs of all questions into one Parquet file; what the later rules need of them stays as small arrays."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.assemble import PAIR_SCHEMA
from dataset_builder.errors import KitError
from dataset_builder.selection import pairs as rules
from dataset_builder.selection.fates import Fates
from dataset_builder.selection.scored import Scored
from dataset_builder.settings import PairsConfig
from dataset_builder.table import QuestionTable

_ROWS = 8192


@dataclass
class Candidates:
    """The candidate pairs, in the questions' order, the widest margin of a question first; about 40 bytes a pair.

    Attributes:
        path: Parquet file with the columns of ``pairs.parquet``.
        question: int64, position of the pair's question in the table.
        rank: int32, place among the pairs of its question.
        margin: float64; NaN where unknown.
        chosen, rejected: int32, lengths of the answers in characters.
        member_chosen, member_rejected: int32, index in ``members``.
        members: names.
    """

    path: Path
    question: array = field(default_factory=lambda: array("q"))
    rank: array = field(default_factory=lambda: array("i"))
    margin: array = field(default_factory=lambda: array("d"))
    chosen: array = field(default_factory=lambda: array("i"))
    rejected: array = field(default_factory=lambda: array("i"))
    member_chosen: array = field(default_factory=lambda: array("i"))
    member_rejected: array = field(default_factory=lambda: array("i"))
    members: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.question)

    def column(self, name: str) -> np.ndarray:
        """One of the arrays, as NumPy sees it."""
        return np.asarray(getattr(self, name))


class CandidateWriter:
    """Writes candidate pairs a few thousand at a time; use as a context manager."""

    def __init__(self, path: Path):
        self.found = Candidates(path)
        self._rows: list[tuple] = []
        self._member: dict[str, int] = {}
        self._last, self._rank = -1, 0

    def __enter__(self) -> CandidateWriter:
        self.found.path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self.found.path, PAIR_SCHEMA)
        return self

    def __exit__(self, *error: Any) -> None:
        self._flush()
        self._writer.close()

    def add(self, position: int, row: tuple) -> None:
        """One pair, as a tuple of the values of ``PAIR_SCHEMA``."""
        self._rank = self._rank + 1 if position == self._last else 0
        self._last = position
        found = self.found
        found.question.append(position)
        found.rank.append(self._rank)
        found.margin.append(float("nan") if row[9] is None else row[9])
        found.chosen.append(len(row[3]))
        found.rejected.append(len(row[4]))
        found.member_chosen.append(self._code(row[5]))
        found.member_rejected.append(self._code(row[6]))
        self._rows.append(row)
        if len(self._rows) >= _ROWS:
            self._flush()

    def _code(self, name: str) -> int:
        code = self._member.get(name)
        if code is None:
            code = self._member[name] = len(self.found.members)
            self.found.members.append(name)
        return code

    def _flush(self) -> None:
        if self._rows:
            columns = [pa.array(values, kind) for values, kind in zip(zip(*self._rows), PAIR_SCHEMA.types)]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=PAIR_SCHEMA))
            self._rows = []


def find_candidates(
    table: QuestionTable,
    answers: Iterator[Scored],
    config: PairsConfig,
    weights: dict[str, float] | None,
    fates: Fates,
    path: Path,
    labels: Any = None,
    watch: tuple[Any, ...] = (),
) -> tuple[Candidates, Counter]:
    """Candidate pairs of every question that has no reason to be left out yet.

    Args:
        table: the questions.
        answers: in the table's order.
        config: the rules.
        weights: of the judges.
        fates: of the questions; those that give no pair get their reason.
        path: of the file to write.
        labels: see :func:`~dataset_builder.selection.pairs.pick`.
        watch: objects with ``add(scored)``, shown every batch of answers.

    Returns:
        The pairs, and the number of answers that were left out, by flag.

    Raises:
        KitError: the answers are not in the table's order.
    """
    excluded: Counter = Counter()
    groups = _groups(answers, config, weights, labels, watch)
    key, group = next(groups, (None, None))
    position = 0
    with CandidateWriter(path) as writer:
        for number in range(table.block_count):
            for question_id in table.batch(number).column("question_id").to_pylist():
                mine = group if key == question_id else None
                if fates.codes[position] == 0:
                    if mine is None:
                        fates.set(position, rules.NO_ANSWERS)
                    else:
                        rows, drop = mine(excluded)
                        for row in rows:
                            writer.add(position, row)
                        if drop:
                            fates.set(position, drop)
                if mine is not None:
                    key, group = next(groups, (None, None))
                position += 1
    if key is not None:
        raise KitError(f"{table.path}: the answers of question {key} are not in its order: run the same command again")
    return writer.found, excluded


def _groups(answers: Iterator[Scored], config: PairsConfig, weights, labels, watch) -> Iterator[tuple[str, Any]]:
    """(question id, function that makes its rows)."""
    for scored in answers:
        for one in watch:
            one.add(scored)
        batch = _Batch(scored, config, weights, labels)
        for index, question_id in enumerate(scored.questions):
            yield question_id, partial(batch.rows, index)


class _Batch:
    """Some questions; the arithmetic is done for all of them at once."""

    def __init__(self, scored: Scored, config: PairsConfig, weights: dict[str, float] | None, labels: Any):
        self.scored, self.config, self.labels = scored, config, labels
        self.common = scored.common(weights)
        self.value = scored.aggregate(weights, self.common).tolist()
        self.names = _Names(scored.judges)
        self.fit, self.flag, self.starts = scored.candidates().tolist(), scored.flag.tolist(), scored.starts.tolist()
        self.comparable = self.common.any(axis=1).tolist()

    def rows(self, index: int, excluded: Counter) -> tuple[list[tuple], str | None]:
        """The candidate pairs of one question as rows of ``PAIR_SCHEMA``, and why there are none."""
        scored, flag = self.scored, self.flag
        begin, end = self.starts[index], self.starts[index + 1]
        usable = [i for i in range(begin, end) if flag[i] < 0]
        if len(usable) < end - begin:
            excluded.update(scored.flags[flag[i]] for i in range(begin, end) if flag[i] >= 0)
        if len(usable) < 2:
            return [], rules.FLAGGED
        found = [i for i in usable if self.fit[i]]
        if len(found) < len(usable):
            excluded["unscored"] += len(usable) - len(found)
        if len(found) < 2:
            return [], rules.UNSCORED
        if not self.comparable[index]:
            return [], rules.NO_COMMON_JUDGE
        ids, texts = [scored.ids[i] for i in found], [scored.texts[i] for i in found]
        values = [self.value[i] for i in found]
        picked, drop = rules.pick(ids, texts, values, self.config, self.labels)
        if not picked:
            return [], drop
        question_id, judges = scored.questions[index], self.names(self.common[index])
        return [
            (
                *(question_id, ids[a], ids[b], texts[a], texts[b], scored.models[found[a]], scored.models[found[b]]),
                *(values[a], values[b], margin, judges),
            )
            for a, b, margin in picked
        ], None


class _Names:
    """Lists of judge names, made once for each set of judges."""

    def __init__(self, judges: list[str]):
        self.judges, self.known = judges, {}

    def __call__(self, row: np.ndarray) -> list[str]:
        key = row.tobytes()
        if key not in self.known:
            self.known[key] = [name for name, holds in zip(self.judges, row) if holds]
        return self.known[key]
