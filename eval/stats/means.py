"""Means, paired tests and corrections for answers that come in clusters: several questions about one video.

Questions about one video succeed and fail together, so a video, not a question, is the unit that was sampled. Every
number here treats it so: a test that ignores it (McNemar's, say) fires three times too often on data like ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

LEVEL = 0.95
_CELLS_PER_CHUNK = 4_000_000  # 32 MB of drawn signs at a time


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and 95 % interval, both clustered.

    Attributes:
        mean: mean over rows.
        se: cluster-robust standard error; NaN with a single cluster.
        low: lower end of the interval.
        high: upper end of the interval.
        n: rows.
        clusters: distinct clusters (videos).
    """

    mean: float
    se: float
    low: float
    high: float
    n: int
    clusters: int

    def as_dict(self) -> dict:
        """The fields as JSON values (NaN becomes null)."""
        return jsonable(asdict(self))


@dataclass(frozen=True)
class Paired:
    """What a paired comparison ``a - b`` found.

    Attributes:
        difference: mean of ``a - b`` over rows.
        low: lower end of the clustered 95 % interval of the difference.
        high: upper end of it.
        p: two-sided p-value of the sign-flip test, never 0.
        n: rows compared.
        clusters: distinct clusters (videos) among them.
        mean_a: mean of ``a`` over the compared rows.
        mean_b: mean of ``b`` over them.
        left_out: rows that only one side has, or without a verdict on one side.
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    mean_a: float = math.nan
    mean_b: float = math.nan
    left_out: int = 0

    def as_dict(self) -> dict:
        """The fields as JSON values (NaN becomes null)."""
        return jsonable(asdict(self))


def cluster_mean(values: Sequence[float], clusters: Sequence, bounds: tuple[float, float] | None = None) -> Estimate:
    """Mean of ``values`` with a standard error and interval that are robust to clustering.

    The variance is the sandwich estimator ``G/(G-1) * sum_g (sum_{i in g} (v_i - mean))^2 / n^2`` (Liang and Zeger,
    1986, with the usual small-sample factor); the interval uses Student's t with ``G - 1`` degrees of freedom. It is
    clipped to the values' range if that is known. If all values stand at one end of it that variance says nothing; the
    exact binomial bound over clusters is used then, ``1 - 0.025^(1/G)`` of the range.

    Args:
        values: [N] numbers.
        clusters: [N] hashable labels, such as video ids.
        bounds: the least and the largest possible value, such as (0, 5) for a judge's score; by default (0, 1) if all
            values lie in it, else unknown.

    Raises:
        ValueError: if there are no rows, the lengths differ, a value is not finite, or lies outside `bounds`.
    """
    values = vector(values, "values")
    if bounds is None:
        bounds = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (-math.inf, math.inf)
    elif values.min() < bounds[0] or values.max() > bounds[1]:
        raise ValueError(f"values reach from {values.min():g} to {values.max():g}, beyond their bounds {bounds}")
    sizes, sums = cluster_sums(values, clusters)  # [G], [G]
    n, groups = len(values), len(sizes)
    mean = float(values.mean())
    if groups == 1:
        return Estimate(mean, math.nan, *map(float, bounds), n, 1)
    se = cluster_se(sums, sizes, mean)
    half = student_quantile(groups - 1) * se
    if mean in bounds:
        half = unanimous_width(groups) * (bounds[1] - bounds[0])
    return Estimate(mean, se, max(mean - half, bounds[0]), min(mean + half, bounds[1]), n, groups)


def paired_test(
    a: Sequence[float], b: Sequence[float], clusters: Sequence, draws: int = 100_000, seed: int = 0
) -> Paired:
    """Test whether ``a`` and ``b``, measured on the same rows, have the same mean.

    Under the null hypothesis the two systems are exchangeable on each video, so the sign of a video's summed difference
    is a coin. All signs are flipped ``draws`` times; ``p = (1 + hits) / (1 + draws)``, where a hit is a flipped sum at
    least as far from 0 as the observed one. Videos whose sums have the same size are drawn together as one binomial
    number, which has the same distribution and is much faster. The interval is that of :func:`cluster_mean` for the
    differences.

    Args:
        a: [N] scores of the first system, such as 0/1 verdicts.
        b: [N] scores of the second system on the same rows.
        clusters: [N] hashable labels, such as video ids.
        draws: random sign assignments; the smallest possible p is ``1 / (1 + draws)``.
        seed: of the draws; the same inputs and seed give the same p.

    Raises:
        ValueError: if there are no rows, the lengths differ, or a value is not finite.
    """
    a, b = vector(a, "a"), vector(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} rows and b has {len(b)}; a paired test needs the same rows on both sides")
    if draws < 1:
        raise ValueError("draws must be at least 1")
    sizes, sums = cluster_sums(a - b, clusters)
    n, groups = len(a), len(sizes)
    difference = float(sums.sum() / n)
    low, high = difference_interval(sums, sizes, difference)
    if min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1:
        low, high = max(low, -1.0), min(high, 1.0)
    p = _sign_flip_p(sums, draws, seed)
    return Paired(difference, low, high, p, n, groups, float(a.mean()), float(b.mean()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may be compared with the level for the whole family.

    Args:
        p_values: [M] raw p-values in 0–1.

    Returns:
        [M] adjusted p-values in the order given, each at least its raw value and at most 1.

    Raises:
        ValueError: if a value is not in 0–1.
    """
    raw = [float(p) for p in p_values]
    if any(not 0.0 <= p <= 1.0 for p in raw):
        raise ValueError(f"p-values must lie in 0–1, got {raw}")
    adjusted, running = [0.0] * len(raw), 0.0
    for rank, index in enumerate(sorted(range(len(raw)), key=raw.__getitem__)):
        running = max(running, min(1.0, (len(raw) - rank) * raw[index]))
        adjusted[index] = running
    return adjusted


@functools.lru_cache(maxsize=4096)
def student_quantile(df: float, level: float = LEVEL) -> float:
    """The t with ``P(|T| <= t) = level`` for Student's T with ``df`` degrees of freedom.

    With ``t = sqrt(df) * tan(x)`` the density becomes ``cos(x)^(df - 1)``, which a fine grid integrates to about seven
    digits; that spares a dependency on SciPy.
    """
    if df < 1:
        raise ValueError("df must be at least 1")
    top = min(math.pi / 2, 12.0 / math.sqrt(df))  # beyond that the density is below 1e-30
    x = np.linspace(0.0, top, 40_001)
    density = np.cos(x) ** (df - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(df) * math.tan(float(np.interp(level, mass / mass[-1], x)))


def _sign_flip_p(sums: np.ndarray, draws: int, seed: int) -> float:
    """Two-sided Monte-Carlo p-value for per-cluster sums [G] under random signs."""
    sizes = np.abs(sums[sums != 0])
    if not len(sizes):
        return 1.0
    magnitudes, counts = np.unique(np.round(sizes, 12), return_counts=True)  # [U], [U]
    observed = abs(float(sums.sum()))
    bound = observed - 1e-9 * float(sizes.sum())  # equal sums must count as hits whatever the rounding
    rng = np.random.default_rng(seed)
    chunk = max(1, _CELLS_PER_CHUNK // len(magnitudes))
    hits = 0
    for start in range(0, draws, chunk):
        rows = min(chunk, draws - start)
        plus = rng.binomial(counts, 0.5, size=(rows, len(counts)))  # [rows, U]
        hits += int((np.abs((2 * plus - counts) @ magnitudes) >= bound).sum())
    return (1 + hits) / (1 + draws)


def difference_interval(sums: np.ndarray, sizes: np.ndarray, difference: float) -> tuple[float, float]:
    """95 % interval of a difference between means; if all videos agree, as wide as so few of them leave open."""
    if len(sizes) == 1:
        return -math.inf, math.inf
    se = cluster_se(sums, sizes, difference)
    half = student_quantile(len(sizes) - 1) * se if se > 1e-12 else unanimous_width(len(sizes))
    return difference - half, difference + half


def unanimous_width(clusters: int) -> float:
    """Exact binomial bound: the share of videos that may be otherwise although none of ``clusters`` was."""
    return 1.0 - ((1.0 - LEVEL) / 2) ** (1.0 / clusters)


def cluster_se(sums: np.ndarray, sizes: np.ndarray, mean: float) -> float:
    groups = len(sizes)
    residuals = sums - sizes * mean  # [G]
    return math.sqrt(groups / (groups - 1) * float((residuals**2).sum())) / float(sizes.sum())


def cluster_sums(values: np.ndarray, clusters: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Rows and sums per cluster, in order of first appearance so that labels of any hashable type will do."""
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values but {len(clusters)} cluster labels")
    numbers: dict = {}
    index = np.array([numbers.setdefault(label, len(numbers)) for label in clusters])
    return np.bincount(index).astype(float), np.bincount(index, weights=values)


def vector(values: Sequence[float], name: str) -> np.ndarray:
    """The values as an array [N] of floats.

    Raises:
        ValueError: naming `name`, if there are none or one of them is not finite.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be a non-empty list of numbers")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a value that is not finite; leave rows without a verdict out first")
    return array


def jsonable(fields: dict) -> dict:
    """The fields with NaN and infinity as None: JSON has neither."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
