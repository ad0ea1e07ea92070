"""What becomes of every question: two bytes each, and the reasons spelled out once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.selection.pairs import REASONS
from dataset_builder.table import QuestionTable


class Fates:
    """A reason or none for each of many things, in order.

    Args:
        count: their number.
    """

    def __init__(self, count: int):
        self.codes = np.zeros(count, dtype=np.int16)  # 0: none
        self.reasons: list[str] = [""]
        self._code: dict[str, int] = {"": 0}

    def __getitem__(self, index: int) -> str:
        return self.reasons[self.codes[index]]

    def code(self, reason: str) -> int:
        """The number of a reason."""
        if reason not in self._code:
            self._code[reason] = len(self.reasons)
            self.reasons.append(reason)
        return self._code[reason]

    def set(self, where: int | np.ndarray, reason: str) -> None:
        """Give one or more things a reason, unless they have one."""
        index = np.atleast_1d(np.asarray(where, dtype=np.int64))
        self.codes[index[self.codes[index] == 0]] = self.code(reason)

    def free(self) -> np.ndarray:
        """Indices of those without a reason."""
        return np.flatnonzero(self.codes == 0)

    def counts(self) -> dict[str, int]:
        """Number of things by reason, in the order in which reasons are looked for."""
        found = np.bincount(self.codes, minlength=len(self.reasons))
        named = {reason: int(n) for reason, n in zip(self.reasons, found) if reason and n}
        place = {reason: number for number, reason in enumerate(REASONS)}
        return {key: named[key] for key in sorted(named, key=lambda key: (place.get(key, len(place)), key))}


def write_outcomes(table: QuestionTable, fates: Fates, pairs: np.ndarray, path: Path) -> None:
    """Write ``question_id, drop, pairs`` of every question as Parquet, in the table's order."""
    schema = pa.schema([("question_id", pa.string()), ("drop", pa.string()), ("pairs", pa.int32())])
    reasons = pa.array([reason or None for reason in fates.reasons])
    start = 0
    with pq.ParquetWriter(path, schema) as writer:
        for number in range(table.block_count):
            ids = table.batch(number).column("question_id")
            part = slice(start, start + len(ids))
            drop = reasons.take(pa.array(fates.codes[part]))
            writer.write_table(pa.table([ids, drop, pa.array(pairs[part], pa.int32())], schema=schema))
            start += len(ids)


def dropped_ids(table: QuestionTable, fates: Fates) -> dict[str, str]:
    """``{question_id: reason}`` of the questions without a pair."""
    found, start = {}, 0
    for number in range(table.block_count):
        for offset, key in enumerate(table.batch(number).column("question_id").to_pylist()):
            if reason := fates[start + offset]:
                found[key] = reason
        start += table.batch(number).num_rows
    return found
