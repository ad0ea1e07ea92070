"""Length balance: chosen answers should not be recognisable by their length."""

from __future__ import annotations

import numpy as np

from dataset_builder.selection.caps import beyond, widest_first

_RATIO = 1.5  # each length bin reaches so much further than the one before


def length_bins(lengths: np.ndarray) -> np.ndarray:
    """Bin of each length in characters: 0, 1, 2, 3–4, 5–7, … each about half as wide again."""
    return np.ceil(np.log(np.maximum(lengths, 0) + 1.0) / np.log(_RATIO) - 1e-9).astype(np.int64)


def surplus(chosen: np.ndarray, rejected: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Indices of the pairs to drop so that lengths are balanced; the narrowest margins go.

    For every two bins as many pairs stay with the chosen answer in the one and the rejected in the other as the other
    way round, and within one bin as many with the chosen one longer as shorter. So the distributions of both lengths
    over the bins become equal, and so do the longer and the shorter side of every difference.
    """
    if not len(chosen):
        return np.zeros(0, dtype=np.int64)
    left, right = length_bins(chosen), length_bins(rejected)
    width = int(max(left.max(), right.max())) + 1
    low, high = np.minimum(left, right), np.maximum(left, right)
    sign = np.sign(chosen - rejected)  # 0: equal lengths say nothing and stay
    cells = (low * width + high) * 2 + (sign > 0)
    cells[sign == 0] = 2 * width * width
    counts = np.bincount(cells, minlength=2 * width * width + 1)
    sides = counts[:-1].reshape(-1, 2)
    limits = np.append(np.repeat(sides.min(axis=1), 2), counts[-1])
    return beyond(cells, widest_first(margin), limits)


def length_report(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, float | int | None]:
    """How well length tells chosen from rejected answers.

    Returns:
        ``{pairs, longer, point_biserial, spearman}``: the share of pairs whose chosen answer is the longer one (equal
        lengths count half), and both correlations between length in characters and being chosen over all answers of
        the pairs; None where nothing varies.
    """
    count = len(chosen)
    if not count:
        return {"pairs": 0, "longer": None, "point_biserial": None, "spearman": None}
    lengths = np.concatenate([chosen, rejected]).astype(float)
    side = np.concatenate([np.ones(count), np.zeros(count)])
    return {
        "pairs": count,
        "longer": round(float((np.sign(chosen - rejected) + 1).mean() / 2), 6),
        "point_biserial": correlation(lengths, side),
        "spearman": correlation(ranks(lengths), side),
    }


def correlation(left: np.ndarray, right: np.ndarray) -> float | None:
    """Pearson's correlation; None when one of them does not vary."""
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return None
    return round(float(np.corrcoef(left, right)[0, 1]), 6)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts + 1) / 2)[inverse]
