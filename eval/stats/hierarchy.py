"""Means over training runs: several seeds, and within each of them videos with several questions.

An arm trained again with another seed is another arm. How much accuracy varies between seeds says how far a result can
be trusted to come again, and no number of test videos makes up for few seeds. So seeds are resampled as well as videos:
the hierarchical bootstrap of Davison and Hinkley, *Bootstrap Methods and their Application* (1997), section 3.8.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from eval.stats.means import LEVEL, jsonable, paired_test, student_quantile, unanimous_width, vector

_EXACT_SEEDS = 16  # 65,536 sign assignments
_CELLS_PER_CHUNK = 4_000_000  # 32 MB of drawn counts at a time


@dataclass(frozen=True)
class SeedEstimate:
    """A mean over seeds with its 95 % interval; every seed has the same weight.

    Attributes:
        mean: mean over seeds of the means over their rows.
        low: lower end of the interval.
        high: upper end of the interval.
        n: rows.
        seeds: seeds.
        clusters: distinct clusters (videos), counted within each seed.
        by_seed: each seed's own mean, in order of first appearance.
    """

    mean: float
    low: float
    high: float
    n: int
    seeds: int
    clusters: int
    by_seed: dict[Hashable, float]

    def as_dict(self) -> dict:
        """The fields as JSON values (infinity becomes null)."""
        return jsonable(asdict(self))


@dataclass(frozen=True)
class _Seed:
    """One seed's clusters, equal ones together.

    Attributes:
        sizes: [U] rows of each kind of cluster.
        sums: [U] sum of their values.
        counts: [U] how many clusters are of that kind.
        mean: over the seed's rows.
    """

    sizes: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    mean: float

    @property
    def clusters(self) -> int:
        return int(self.counts.sum())

    @property
    def variance(self) -> float:
        """Of the mean, when clusters are resampled."""
        residuals = self.sums - self.sizes * self.mean  # [U]
        return float((self.counts * residuals**2).sum()) / float((self.counts * self.sizes).sum()) ** 2


def hierarchical_mean(
    values: Sequence[float], seeds: Sequence, clusters: Sequence, draws: int = 10_000, seed: int = 0
) -> SeedEstimate:
    """Mean over seeds with an interval from resampling seeds and, within each drawn seed, its clusters.

    Sampling with replacement at both levels counts the noise within seeds twice, because the seeds' means hold it
    already, and takes the spread between S seeds for ``(S - 1) / S`` of what it is. Both are put right as in Davison
    and Hinkley (1997, section 3.8): the distances of the seeds' means from their mean are scaled by k before they are
    resampled, with ``k² = S / (S - 1) - within / between`` (0 if that is negative). The interval lies between the
    quantiles of the resampled means that a normal variable passes at Student's t with S - 1 degrees of freedom (after
    the expanded percentile interval of Hesterberg, *What Teachers Should Know About the Bootstrap*, 2015): the plain
    percentiles of 6 seeds are a quarter too narrow.

    Few seeds give an approximate interval. In simulations (`tests/eval/test_hierarchy.py`: 120 videos a seed, 600 data
    sets each) this share of the intervals meant for 95 % held the true mean, without spread between seeds / with one of
    2.6 times a seed's own standard error: 2 seeds 100 / 90 %, 3 seeds 100 / 94 %, 6 seeds 100 / 94 %, 10 seeds
    98 / 92 %, 20 seeds 97 / 96 %. So where runs differ much an interval may be up to 3 points short of its level (5
    with two seeds), and where they do not it is wider than it had to be.

    With one seed the interval is unbounded (0–1 for values in 0–1): one run says nothing about others. If nothing
    varies at all, values in 0–1 get the exact binomial bound over (seed, video) pairs, as in `eval.stats.means`.

    Args:
        values: [N] numbers, such as 0/1 verdicts.
        seeds: [N] hashable labels of the training runs.
        clusters: [N] hashable labels, such as video ids; the same label in two seeds is two clusters.
        draws: resampled means.
        seed: of the draws; the same rows in the same order give the same interval.

    Raises:
        ValueError: if there are no rows, the lengths differ, a value is not finite, or `draws` is below 1.
    """
    values = vector(values, "values")
    bounds = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else None
    return _estimate(values, seeds, clusters, draws, seed, bounds)


def hierarchical_difference(
    a: Sequence[float], b: Sequence[float], seeds: Sequence, clusters: Sequence, draws: int = 10_000, seed: int = 0
) -> SeedEstimate:
    """As :func:`hierarchical_mean`, for ``a - b``: two arms on the same questions of the same seeds.

    Pairing takes out what the two arms of a seed share: their base, their data and their test videos.

    Args:
        a: [N] scores of the first arm.
        b: [N] scores of the second arm on the same rows.
        seeds: [N] hashable labels of the training runs.
        clusters: [N] hashable labels, such as video ids.
        draws: resampled means.
        seed: of the draws.

    Raises:
        ValueError: as in :func:`hierarchical_mean`.
    """
    a, b = vector(a, "a"), vector(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} rows and b has {len(b)}; a paired difference needs the same rows")
    unit = min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1
    return _estimate(a - b, seeds, clusters, draws, seed, (-1.0, 1.0) if unit else None)


def sign_flip_over_seeds(differences: Sequence[float], draws: int = 100_000) -> float:
    """Two-sided p-value that the mean difference over training runs is 0: the share of sign assignments as far from it.

    Exact up to 16 seeds, so at least ``2 / 2^S`` (0.03 with six); drawn as in `eval.stats.paired_test` beyond.

    Args:
        differences: [S] one mean difference per seed.
        draws: sign assignments when they are too many to count.

    Raises:
        ValueError: if there are none, or one is not finite.
    """
    values = vector(differences, "differences")
    if len(values) > _EXACT_SEEDS:
        return paired_test(values, np.zeros(len(values)), range(len(values)), draws=draws).p
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])  # [2^S] in the end
    bound = abs(float(values.sum())) - 1e-9 * float(np.abs(values).sum())  # equal sums count, however rounded
    return float(np.mean(np.abs(sums) >= bound))


def _estimate(
    values: np.ndarray,
    seeds: Sequence,
    clusters: Sequence,
    draws: int,
    seed: int,
    bounds: tuple[float, float] | None,
) -> SeedEstimate:
    if draws < 1:
        raise ValueError("draws must be at least 1")
    groups = _group(values, seeds, clusters)
    means = np.array([group.mean for group in groups.values()])  # [S]
    mean, total = float(means.mean()), sum(group.clusters for group in groups.values())
    low, high = _interval(list(groups.values()), means, draws, seed, bounds, total)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    by_seed = dict(zip(groups, means.tolist(), strict=True))
    return SeedEstimate(mean, low, high, len(values), len(groups), total, by_seed)


def _interval(
    groups: list[_Seed],
    means: np.ndarray,
    draws: int,
    seed: int,
    bounds: tuple[float, float] | None,
    total: int,
) -> tuple[float, float]:
    """The interval before it is clipped; means is [S]."""
    count, mean = len(groups), float(means.mean())
    if count == 1:
        return -math.inf, math.inf
    between = float(means.var())
    within = sum(group.variance for group in groups) / count
    if between + within < 1e-24:  # no row differs from another but by rounding
        width = unanimous_width(total) if bounds is not None else 0.0
        return mean - width, mean + width
    scale = math.sqrt(max(0.0, count / (count - 1) - within / between)) if between > 1e-24 else 0.0
    shrunken = mean + scale * (means - mean)  # [S]
    drawn = _resample(groups, shrunken, draws, np.random.default_rng(seed))  # [draws]
    tail = math.erfc(student_quantile(count - 1, LEVEL) / math.sqrt(2)) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return min(float(low), mean), max(float(high), mean)


def _resample(groups: list[_Seed], means: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Resampled means [draws]: seeds with replacement around `means` [S], and each drawn seed's clusters likewise.

    Not rows but counts of equal clusters are drawn (0/1 verdicts on three questions have four kinds), which has the
    same distribution and makes a thousand videos as cheap as ten.
    """
    count = len(groups)
    which = rng.integers(count, size=(draws, count))  # [draws, S]
    values = np.empty((draws, count))
    for number, group in enumerate(groups):
        cells = np.flatnonzero(which == number)
        chunk = max(1, _CELLS_PER_CHUNK // len(group.counts))
        for start in range(0, len(cells), chunk):
            part = cells[start : start + chunk]
            times = rng.multinomial(group.clusters, group.counts / group.clusters, size=len(part))  # [part, U]
            values.flat[part] = means[number] + (times @ group.sums) / (times @ group.sizes) - group.mean
    return values.mean(axis=1)


def _group(values: np.ndarray, seeds: Sequence, clusters: Sequence) -> dict[Hashable, _Seed]:
    """The rows by seed, in order of first appearance."""
    if len(seeds) != len(values) or len(clusters) != len(values):
        raise ValueError(f"{len(values)} values, {len(seeds)} seed labels and {len(clusters)} cluster labels")
    seed_numbers: dict = {}
    pair_numbers: dict = {}
    seed_of = [seed_numbers.setdefault(label, len(seed_numbers)) for label in seeds]  # [N]
    pairs = zip(seed_of, clusters)
    index = np.array([pair_numbers.setdefault(pair, len(pair_numbers)) for pair in pairs])  # [N]
    owner = np.array([number for number, _ in pair_numbers])  # [clusters]
    sizes, sums = np.bincount(index).astype(float), np.bincount(index, weights=values)
    groups = {}
    for label, number in seed_numbers.items():
        mine = np.stack([sizes[owner == number], np.round(sums[owner == number], 12)])  # [2, clusters of the seed]
        kinds, counts = np.unique(mine, axis=1, return_counts=True)
        groups[label] = _Seed(kinds[0], kinds[1], counts, float(mine[1].sum() / mine[0].sum()))
    return groups
