"""Known answers, invariants, and (slow) a simulation of what clustering does to a test's level."""

import math
import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.stats import cluster_mean, holm, paired_test, student_quantile

verdicts = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 6)), min_size=1, max_size=40)


def test_cluster_mean_of_one_row_per_cluster_is_the_textbook_standard_error():
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    estimate = cluster_mean(values, range(8))
    assert estimate.mean == 0.625
    assert estimate.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(8))
    assert (estimate.n, estimate.clusters) == (8, 8)
    assert estimate.high == 1.0  # 0.625 + 2.365 * 0.183 lies beyond


def test_cluster_mean_known_answer_with_unequal_clusters():
    # mean 0.6; residual sums: a 0.8, b -0.6, c -0.2; se = sqrt(3/2 * (0.64 + 0.36 + 0.04)) / 5
    estimate = cluster_mean([1, 1, 0, 1, 0], ["a", "a", "b", "c", "c"])
    assert estimate.se == pytest.approx(math.sqrt(1.5 * 1.04) / 5)
    wide = cluster_mean([10, 10, 0, 10, 0], ["a", "a", "b", "c", "c"])
    assert wide.low == pytest.approx(6 - 4.30265 * 10 * estimate.se, rel=1e-4)  # not clipped: not in 0–1


def test_copies_of_a_row_within_its_cluster_carry_no_information():
    values = [1, 0, 0, 1, 1, 0, 1]
    once = cluster_mean(values, range(7))
    thrice = cluster_mean(np.repeat(values, 3), np.repeat(range(7), 3))
    assert thrice.se == pytest.approx(once.se)


def test_all_right_is_not_certainty():
    estimate = cluster_mean([1] * 30, np.repeat(range(10), 3))
    assert (estimate.mean, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(0.025**0.1)  # ten videos all right: at least 69 %
    assert cluster_mean([0] * 30, np.repeat(range(10), 3)).high == pytest.approx(1 - 0.025**0.1)


def test_one_cluster_says_nothing_about_others():
    estimate = cluster_mean([1, 0, 1], ["a"] * 3)
    assert math.isnan(estimate.se) and (estimate.low, estimate.high) == (0.0, 1.0)
    assert estimate.as_dict()["se"] is None


def test_scores_on_another_scale():
    scores, videos = [4.0, 5.0, 3.0, 0.0, 5.0, 2.0], [0, 0, 1, 1, 2, 2]
    unit = cluster_mean([s / 5 for s in scores], videos)
    found, bounded = cluster_mean(scores, videos), cluster_mean(scores, videos, bounds=(0, 5))
    assert (found.mean, found.se) == pytest.approx((5 * unit.mean, 5 * unit.se))
    assert (bounded.low, bounded.high) == pytest.approx((5 * unit.low, 5 * unit.high))
    assert found.high > 5 == bounded.high  # without bounds nothing says that more is impossible
    best = cluster_mean([5.0] * 10, range(10), bounds=(0, 5))
    assert (best.low, best.high) == (pytest.approx(5 * 0.025**0.1), 5)
    assert cluster_mean([3.0], ["a"], bounds=(1, 5)).low == 1
    with pytest.raises(ValueError, match="beyond their bounds"):
        cluster_mean([6.0], ["a"], bounds=(0, 5))


@pytest.mark.parametrize(
    ("df", "quantile"), [(1, 12.7062), (2, 4.30265), (9, 2.26216), (99, 1.98422), (10**6, 1.95997)]
)
def test_student_quantile(df, quantile):
    assert student_quantile(df) == pytest.approx(quantile, rel=2e-5)


def test_paired_test_agrees_with_all_sign_assignments():
    clusters = np.repeat(range(10), 2)
    a = [1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1]
    b = [0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1]
    sums = np.add.reduceat(np.subtract(a, b), range(0, 20, 2))
    flipped = np.array(list(product((-1, 1), repeat=10))) @ sums
    exact = float(np.mean(np.abs(flipped) >= abs(sums.sum())))
    paired = paired_test(a, b, clusters)
    assert paired.p == pytest.approx(exact, abs=0.005)
    assert paired.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert paired.low < paired.difference < paired.high


def test_many_wins_reach_the_smallest_possible_p():
    videos = range(60)
    assert paired_test([1] * 60, [0] * 60, videos, draws=999).p == 1 / 1000
    assert paired_test([1] * 60, [1] * 60, videos).p == 1.0


def test_no_difference_anywhere_leaves_room_for_one():
    paired = paired_test([1, 0] * 10, [1, 0] * 10, np.repeat(range(10), 2))
    assert (paired.low, paired.high) == pytest.approx((0.025**0.1 - 1, 1 - 0.025**0.1))
    assert paired_test([1], [0], ["a"]).as_dict()["low"] == -1.0


def test_fractional_scores_and_few_clusters():
    # three clusters with sums 0.3, 0.3, 0.3: two of eight assignments reach 0.9 however the sums are rounded
    paired = paired_test([0.1] * 9, [0.0] * 9, np.repeat(range(3), 3))
    assert paired.p == pytest.approx(0.25, abs=0.01)


@given(verdicts)
@settings(max_examples=60, deadline=None)
def test_paired_test_invariants(rows):
    a, b, clusters = (list(column) for column in zip(*rows, strict=True))
    forward = paired_test(a, b, clusters, draws=500, seed=3)
    backward = paired_test(b, a, clusters, draws=500, seed=3)
    assert 1 / 501 <= forward.p <= 1
    assert forward.p == backward.p
    assert forward.difference == pytest.approx(-backward.difference)
    assert paired_test(a, b, [f"video {c}" for c in clusters], draws=500, seed=3) == forward
    assert forward.low <= forward.difference <= forward.high


@given(verdicts, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_cluster_mean_ignores_row_order(rows, rng: random.Random):
    shuffled = rng.sample(rows, len(rows))
    first = cluster_mean([r[0] for r in rows], [r[2] for r in rows])
    second = cluster_mean([r[0] for r in shuffled], [r[2] for r in shuffled])
    assert first.mean == pytest.approx(second.mean)
    assert (first.low, first.high) == pytest.approx((second.low, second.high))
    assert 0 <= first.low <= first.mean <= first.high <= 1


def test_holm_known_answer():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_invariants(raw):
    adjusted = holm(raw)
    for (p, q), (p2, q2) in product(zip(raw, adjusted, strict=True), repeat=2):
        assert p <= q <= 1
        assert p > p2 or q <= q2  # the order is kept


@pytest.mark.parametrize(
    "broken",
    [
        lambda: cluster_mean([], []),
        lambda: cluster_mean([1, 0], ["a"]),
        lambda: cluster_mean([1, float("nan")], ["a", "b"]),
        lambda: paired_test([1], [1, 0], ["a"]),
        lambda: paired_test([1], [0], ["a"], draws=0),
        lambda: holm([0.1, 1.2]),
    ],
)
def test_nonsense_is_refused(broken):
    with pytest.raises(ValueError):
        broken()


def mcnemar_p(a: np.ndarray, b: np.ndarray) -> float:
    """Exact McNemar: a two-sided sign test over discordant rows, which takes rows for independent."""
    wins, losses = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    return min(1.0, 2 * tail)


@pytest.mark.slow
def test_clustered_test_holds_its_level_where_mcnemar_does_not():
    """Null with strong video effects: which model is better changes from video to video, neither is better overall."""
    rng = np.random.default_rng(0)
    videos, questions, trials = 100, 3, 1000
    clusters = np.repeat(np.arange(videos), questions)
    fired = {"clustered": 0, "mcnemar": 0, "outside": 0}
    for trial in range(trials):
        a_rate, b_rate = rng.beta(0.3, 0.3, size=(2, videos, 1))
        a = (rng.random((videos, questions)) < a_rate).astype(int).ravel()
        b = (rng.random((videos, questions)) < b_rate).astype(int).ravel()
        paired = paired_test(a, b, clusters, draws=2000, seed=trial)
        fired["clustered"] += paired.p < 0.05
        fired["mcnemar"] += mcnemar_p(a, b) < 0.05
        fired["outside"] += not paired.low <= 0 <= paired.high
    assert fired["clustered"] / trials < 0.07  # 5 % and three standard errors
    assert fired["outside"] / trials < 0.07
    assert fired["mcnemar"] / trials > 0.12
