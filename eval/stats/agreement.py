"""How far raters agree beyond chance: Cohen's kappa for two, Krippendorff's alpha for several with gaps.

Intervals leave out one video at a time (the delete-one-cluster jackknife: Efron and Stein, 1981) with Student's t.
Both coefficients are smooth functions of sums over videos, for which the jackknife is consistent; it draws nothing, so
the same ratings give the same interval, and it needs one recomputation per video where a bootstrap needs thousands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from eval.stats.means import jsonable, student_quantile, unanimous_width

LEVELS = ("nominal", "ordinal", "interval")


@dataclass(frozen=True)
class Agreement:
    """A coefficient of agreement: 1 is perfect, 0 what chance gives.

    Attributes:
        value: the coefficient; NaN if every rating is the same, which says nothing about agreement.
        low: lower end of its 95 % interval, clustered by video.
        high: upper end of it.
        n: items with two ratings or more.
        clusters: distinct clusters (videos) among them.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def as_dict(self) -> dict:
        """The fields as JSON values (NaN becomes null)."""
        return jsonable(asdict(self))


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable], clusters: Sequence) -> Agreement:
    """Cohen's (1960) kappa of two raters: ``(observed - expected) / (1 - expected)`` agreement.

    Args:
        a: [N] categories given by the first rater; an item with None on either side is left out.
        b: [N] categories given by the second rater to the same items.
        clusters: [N] hashable labels, such as video ids.

    Raises:
        ValueError: if the lengths differ, or no item has both ratings.
    """
    if not len(a) == len(b) == len(clusters):
        raise ValueError(
            f"{len(a)} and {len(b)} ratings, {len(clusters)} cluster labels: all must be of the same items"
        )
    rated = [(x, y, video) for x, y, video in zip(a, b, clusters) if x is not None and y is not None]
    if not rated:
        raise ValueError("no item has a rating of both raters")
    codes = _codes([value for x, y, _ in rated for value in (x, y)])
    first, second = ([codes[row[side]] for row in rated] for side in (0, 1))
    video, groups = _index([row[2] for row in rated])
    table = np.zeros((groups, len(codes), len(codes)))
    np.add.at(table, (video, first, second), 1.0)
    return _agreement(table, _kappa, len(rated))


def krippendorff_alpha(
    ratings: Sequence[Sequence[object | None]], level: str = "nominal", clusters: Sequence | None = None
) -> Agreement:
    """Krippendorff's alpha: one minus observed over expected disagreement (*Computing Krippendorff's
    Alpha-Reliability*, 2011).

    Args:
        ratings: [raters][items] values, None where a rater did not rate an item. Items with fewer than two ratings are
            left out. Numbers, unless the level is nominal.
        level: "nominal" (equal or not), "ordinal" (by rank) or "interval" (squared difference).
        clusters: [items] hashable labels, such as video ids; by default every item is its own.

    Raises:
        ValueError: if the level is unknown, the lengths differ, a value is no finite number though the level needs
            one, or no item has two ratings.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got '{level}'")
    items = len(ratings[0]) if len(ratings) else 0
    clusters = range(items) if clusters is None else clusters
    if any(len(rater) != items for rater in ratings) or len(clusters) != items:
        raise ValueError("every rater needs one value (or None) per item, and every item one cluster label")
    columns = [[value for value in column if value is not None] for column in zip(*ratings)]
    kept = [(column, video) for column, video in zip(columns, clusters) if len(column) > 1]
    if not kept:
        raise ValueError("no item has ratings of two raters")
    if level != "nominal":
        kept = [([_number(value) for value in column], video) for column, video in kept]
    video, groups = _index([video for _, video in kept])
    if level == "interval":
        return _agreement(_moments([column for column, _ in kept], video, groups), _alpha_interval, len(kept))
    codes = _codes([value for column, _ in kept for value in column], in_order=level == "ordinal")
    table = np.zeros((groups, len(codes), len(codes)))  # coincidences of values, by video
    for (column, _), group in zip(kept, video):
        counts = np.bincount([codes[value] for value in column], minlength=len(codes)).astype(float)
        table[group] += (np.outer(counts, counts) - np.diag(counts)) / (len(column) - 1)
    return _agreement(table, _alpha_ordinal if level == "ordinal" else _alpha_nominal, len(kept))


def _agreement(parts: np.ndarray, coefficient: Callable[[np.ndarray], tuple[float, float]], n: int) -> Agreement:
    """The coefficient of the summed parts [G, ...], with its jackknife interval over the G videos."""
    groups, whole = len(parts), parts.sum(axis=0)
    value, expected = coefficient(whole)
    if math.isnan(value):
        return Agreement(value, math.nan, math.nan, n, groups)
    if groups == 1:
        return Agreement(value, -1.0, 1.0, n, groups)
    if value > 1 - 1e-12:  # no disagreement seen: as much as so few videos leave open
        return Agreement(1.0, max(-1.0, 1.0 - unanimous_width(groups) / expected), 1.0, n, groups)
    without = np.array([coefficient(whole - part)[0] for part in parts])  # [G]
    without = np.where(np.isnan(without), value, without)
    squares = float(((without - without.mean()) ** 2).sum())
    half = student_quantile(groups - 1) * math.sqrt((groups - 1) / groups * squares)
    return Agreement(value, max(-1.0, value - half), min(1.0, value + half), n, groups)


def _ratio(observed: float, expected: float) -> tuple[float, float]:
    """One minus observed over expected disagreement, and the latter; NaN if no disagreement could be expected."""
    return (float(1.0 - observed / expected) if expected > 1e-12 else math.nan), float(expected)


def _kappa(table: np.ndarray) -> tuple[float, float]:
    n = table.sum()
    if n <= 0:
        return math.nan, 0.0
    agreed = float(table.sum(axis=1) @ table.sum(axis=0)) / n**2
    return _ratio(1.0 - float(np.trace(table)) / n, 1.0 - agreed)


def _alpha(table: np.ndarray, distance: np.ndarray) -> tuple[float, float]:
    """From a coincidence matrix [K, K] and squared distances [K, K] of its values."""
    counts = table.sum(axis=0)
    n = counts.sum()
    if n <= 1:
        return math.nan, 0.0
    expected = float(counts @ distance @ counts) / (n * (n - 1))
    return _ratio(float((table * distance).sum()) / n, expected)


def _alpha_nominal(table: np.ndarray) -> tuple[float, float]:
    return _alpha(table, 1.0 - np.eye(len(table)))


def _alpha_ordinal(table: np.ndarray) -> tuple[float, float]:
    counts = table.sum(axis=0)
    ranks = np.cumsum(counts) - counts / 2  # the middle of a value's ranks; differences are Krippendorff's sums
    distance = (ranks[:, None] - ranks[None, :]) ** 2
    return _alpha(table, distance / max(float(distance.max()), 1e-300))


def _moments(columns: list[list[float]], video: np.ndarray, groups: int) -> np.ndarray:
    """[G, 4] by video: ratings, their sum, their sum of squares, and the observed squared differences."""
    centre = float(np.mean([value for column in columns for value in column]))
    parts = np.zeros((groups, 4))
    for column, group in zip(columns, video):
        values = np.array(column) - centre  # so that large numbers do not cancel
        m, total, squares = len(values), values.sum(), (values**2).sum()
        parts[group] += (m, total, squares, 2 * (m * squares - total**2) / (m - 1))
    return parts


def _alpha_interval(sums: np.ndarray) -> tuple[float, float]:
    n, total, squares, observed = sums
    if n <= 1:
        return math.nan, 0.0
    return _ratio(observed / n, 2 * (n * squares - total**2) / (n * (n - 1)))


def _codes(values: Sequence[Hashable], in_order: bool = False) -> dict[Hashable, int]:
    distinct = sorted(set(values)) if in_order else dict.fromkeys(values)
    return {value: number for number, value in enumerate(distinct)}


def _index(labels: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    codes = _codes(labels)
    return np.array([codes[label] for label in labels]), len(codes)


def _number(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"ratings hold {value!r}, which is no finite number; only level 'nominal' takes such values")
    return number
