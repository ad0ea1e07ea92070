"""How far the judges agree, added up while the answers stream by."""

from __future__ import annotations

import math

import numpy as np

from dataset_builder.selection.scored import Scored

_BINS = 1000
QUANTILES = (0.5, 0.9, 0.99)


class Agreement:
    """Disagreement of the judges on an answer, and the correlation of every two of them over all answers."""

    def __init__(self):
        self.counts = np.zeros(_BINS + 1, dtype=np.int64)
        self.total = 0.0
        self.sums: dict[tuple[str, str], np.ndarray] = {}

    def add(self, scored: Scored) -> None:
        """Take some answers into account; flagged ones too, since judges saw them."""
        values = scored.values
        both = (~np.isnan(values)).sum(axis=1) > 1
        if both.any():
            spread = np.nanmax(values[both], axis=1) - np.nanmin(values[both], axis=1)
            self.total += float(spread.sum())
            self.counts += np.bincount(np.rint(np.clip(spread, 0, 1) * _BINS).astype(int), minlength=_BINS + 1)
        for i, left in enumerate(scored.judges):
            for j in range(i + 1, len(scored.judges)):
                rows = ~np.isnan(values[:, i]) & ~np.isnan(values[:, j])
                x, y = values[rows, i], values[rows, j]
                sums = np.array([len(x), x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum()])
                key = (left, scored.judges[j])
                self.sums[key] = self.sums.get(key, 0) + sums

    def report(self) -> dict | None:
        """``{answers, mean, quantiles, correlation}``; None when no answer has two judges.

        Quantiles are right to a thousandth; ``correlation`` holds Pearson's for every two judges, ``"a / b"``.
        """
        answers = int(self.counts.sum())
        if not answers:
            return None
        below = np.cumsum(self.counts)
        places = [int(np.searchsorted(below, math.ceil(q * answers))) / _BINS for q in QUANTILES]
        return {
            "answers": answers,
            "mean": round(self.total / answers, 6),
            "quantiles": {f"{q:g}": value for q, value in zip(QUANTILES, places)},
            "correlation": {" / ".join(key): _pearson(sums) for key, sums in sorted(self.sums.items())},
        }


def _pearson(sums: np.ndarray) -> float | None:
    count, x, y, xx, yy, xy = sums.tolist()
    spread = (count * xx - x * x) * (count * yy - y * y)
    if count < 2 or spread <= 1e-12 * count**4:
        return None
    return round(min(1.0, max(-1.0, (count * xy - x * y) / math.sqrt(spread))), 6)
