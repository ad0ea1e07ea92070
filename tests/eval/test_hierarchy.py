"""Known answers, degenerate cases, and how often the intervals hold the truth when seeds are few."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.stats import (
    cluster_mean,
    hierarchical_difference,
    hierarchical_mean,
    paired_test,
    sign_flip_over_seeds,
    student_quantile,
)

rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40
)


def test_every_seed_has_the_same_weight():
    values, seeds = [1, 1, 1, 0, 0, 1], ["a", "a", "a", "a", "b", "b"]
    found = hierarchical_mean(values, seeds, range(6))
    assert found.mean == pytest.approx((0.75 + 0.5) / 2)
    assert found.by_seed == {"a": 0.75, "b": 0.5}
    assert (found.n, found.seeds, found.clusters) == (6, 2, 6)
    assert 0 <= found.low < found.mean < found.high <= 1


def test_without_noise_within_seeds_the_interval_is_students():
    """Two-point seeds: 40 of them, every video of a seed alike, so that only the spread between seeds is left."""
    count, rng = 40, np.random.default_rng(5)
    means = rng.normal(3.0, 1.0, count)
    found = hierarchical_mean(np.repeat(means, 4), np.repeat(range(count), 4), list(range(4)) * count, draws=40_000)
    half = student_quantile(count - 1) * means.std(ddof=1) / math.sqrt(count)
    assert found.mean == pytest.approx(means.mean())
    assert (found.mean - found.low, found.high - found.mean) == pytest.approx((half, half), rel=0.06)


def test_without_spread_between_seeds_the_videos_are_left():
    """Copies of one seed: the interval is that of the videos pooled, wider by Student's t over the seeds only."""
    count, videos = 12, np.random.default_rng(1).integers(0, 2, 300)
    values, seeds = np.tile(videos, count), np.repeat(range(count), 300)
    found = hierarchical_mean(values, seeds, np.tile(range(300), count), draws=40_000)
    se = videos.std() / math.sqrt(300 * count)
    assert found.high - found.low == pytest.approx(2 * student_quantile(count - 1) * se, rel=0.06)


def test_the_same_video_in_two_seeds_is_two_clusters():
    values = [1, 0, 1, 1, 0, 0]
    once = hierarchical_mean(values, ["a"] * 3 + ["b"] * 3, ["x", "y", "z"] * 2)
    apart = hierarchical_mean(values, ["a"] * 3 + ["b"] * 3, range(6))
    assert once == apart and once.clusters == 6


def test_questions_of_one_video_are_no_new_information():
    values, seeds, videos = [1, 0, 0, 1, 1, 1], [1, 1, 1, 2, 2, 2], [1, 2, 3, 4, 5, 6]
    once = hierarchical_mean(values, seeds, videos)
    thrice = hierarchical_mean(np.repeat(values, 3), np.repeat(seeds, 3), np.repeat(videos, 3))
    assert replace(thrice, n=6) == once


def test_pairing_takes_out_what_a_seed_shares():
    rng = np.random.default_rng(2)
    level = rng.uniform(0.2, 0.8, (6, 1))  # how good the seed's base is
    draw = rng.random((6, 200))
    a, b = (draw < level + 0.1).astype(float), (draw < level).astype(float)
    seeds, videos = np.repeat(range(6), 200), list(range(200)) * 6
    found = hierarchical_difference(a.ravel(), b.ravel(), seeds, videos)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert found.low > 0.05 and found.high < 0.15
    alone = hierarchical_mean(a.ravel(), seeds, videos)
    assert alone.high - alone.low > 3 * (found.high - found.low)
    swapped = hierarchical_difference(b.ravel(), a.ravel(), seeds, videos)
    assert swapped.mean == -found.mean
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=0.005)


def test_one_seed_says_nothing_about_others():
    found = hierarchical_mean([1, 0, 1], [7, 7, 7], "abc")
    assert (found.low, found.high, found.seeds) == (0.0, 1.0, 1)
    assert hierarchical_mean([10, 0], [7, 7], "ab").as_dict()["low"] is None
    assert hierarchical_difference([1, 0], [0, 0], [7, 7], "ab").high == 1.0
    assert cluster_mean([1, 0, 1], ["a"] * 3).low == found.low, "as with a single video"


def test_nothing_varies():
    seeds, videos = np.repeat(range(4), 25), list(range(25)) * 4
    right = hierarchical_mean([1] * 100, seeds, videos)
    assert (right.mean, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(0.025**0.01), "a hundred (seed, video) pairs, all right"
    same = hierarchical_difference([1, 0] * 50, [1, 0] * 50, seeds, videos)
    assert (same.low, same.mean, same.high) == pytest.approx((0.025**0.01 - 1, 0.0, 1 - 0.025**0.01))
    constant = hierarchical_mean([5.1] * 100, seeds, videos)
    assert (constant.low, constant.high) == pytest.approx((5.1, 5.1))


def test_seeds_of_one_video_each():
    found = hierarchical_mean([0.1, 0.5, 0.3, 0.4, 0.2], range(5), ["v"] * 5)
    assert found.low < 0.2 and found.high > 0.4


@given(rows)
@settings(max_examples=60, deadline=None)
def test_invariants(table):
    a, b, seeds, clusters = (list(column) for column in zip(*table, strict=True))
    found = hierarchical_difference(a, b, seeds, clusters, draws=200, seed=3)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    named = hierarchical_difference(a, b, [f"seed {s}" for s in seeds], clusters, draws=200, seed=3)
    assert (named.low, named.high) == (found.low, found.high)
    assert found.mean == pytest.approx(np.mean(list(found.by_seed.values())))
    assert found.clusters == len(set(zip(seeds, clusters)))
    mean = hierarchical_mean(a, seeds, clusters, draws=200)
    assert 0 <= mean.low <= mean.mean <= mean.high <= 1


@pytest.mark.parametrize(
    "broken",
    [
        lambda: hierarchical_mean([], [], []),
        lambda: hierarchical_mean([1, 0], [1], [1, 2]),
        lambda: hierarchical_mean([1, 0], [1, 1], [1]),
        lambda: hierarchical_mean([1, math.nan], [1, 1], [1, 2]),
        lambda: hierarchical_mean([1], [1], [1], draws=0),
        lambda: sign_flip_over_seeds([]),
        lambda: hierarchical_difference([1], [1, 0], [1, 1], [1, 2]),
    ],
)
def test_nonsense_is_refused(broken):
    with pytest.raises(ValueError):
        broken()


def test_sign_flip_over_seeds():
    assert sign_flip_over_seeds([0.1, 0.2, 0.3, 0.1, 0.4, 0.2]) == 2 / 64, "all six agree"
    assert sign_flip_over_seeds([1.0, 1.0, -1.0]) == 1.0
    assert sign_flip_over_seeds([1.0, 2.0, -0.5]) == 4 / 8, "3.5 and 2.5, and their opposites"
    assert sign_flip_over_seeds([0.0, 0.0]) == sign_flip_over_seeds([0.3]) == 1.0
    assert sign_flip_over_seeds([0.1] * 20, draws=999) == 1 / 1000
    many = np.random.default_rng(3).normal(0.2, 1.0, 16)
    assert sign_flip_over_seeds(many) == pytest.approx(paired_test(many, np.zeros(16), range(16)).p, abs=0.006)


def simulate(rng: np.random.Generator, seeds: int, spread: float, videos: int = 120, questions: int = 3):
    """Differences a − b in −1, 0, 1 whose true mean is 0.15; seeds spread by `spread` around it, videos by 0.2."""
    shift = 0.15 + spread * rng.standard_normal((seeds, 1, 1)) + 0.2 * rng.standard_normal((seeds, videos, 1))
    shape = (seeds, videos, questions)
    a = rng.random(shape) < 0.55 + shift / 2
    b = rng.random(shape) < 0.55 - shift / 2
    labels = np.indices(shape)
    return a.ravel().astype(float), b.ravel().astype(float), labels[0].ravel(), labels[1].ravel()


def coverage(seeds: int, spread: float, trials: int) -> float:
    """Share of simulated data sets whose interval holds the true difference."""
    rng, inside = np.random.default_rng(seeds), 0
    for trial in range(trials):
        found = hierarchical_difference(*simulate(rng, seeds, spread), draws=1000, seed=trial)
        inside += found.low <= 0.15 <= found.high
    return inside / trials


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_coverage_with_six_seeds(spread):
    """Without and with spread between seeds (0.1 is 2.6 times the standard error of one seed)."""
    assert coverage(6, spread, trials=150) >= 0.90  # 95 % and three standard errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "spread", "least"),
    [(2, 0.0, 0.97), (2, 0.1, 0.86), (3, 0.1, 0.91), (6, 0.0, 0.96), (6, 0.1, 0.925), (10, 0.1, 0.92), (20, 0.1, 0.92)],
)
def test_coverage(seeds, spread, least):
    """What the docstring of `hierarchical_mean` says, within three standard errors."""
    assert coverage(seeds, spread, trials=600) >= least
