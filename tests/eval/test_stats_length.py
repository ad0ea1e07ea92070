"""Figures at equal length: recovered slopes, what the model leaves alone, and the cover of the interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.stats import cluster_mean, length_sensitivity


def simulate(seed: int, slope: float = 0.1, gap: float = 0.05, videos: int = 60, questions: int = 3):
    """Differences between two models: `gap` at equal length, `slope` per unit of log length; by video."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(videos), questions)
    words_a, words_b = rng.integers(5, 60, len(clusters)), rng.integers(2, 30, len(clusters))
    noise = rng.normal(0, 0.2, len(clusters)) + np.repeat(rng.normal(0, 0.2, videos), questions)
    values = gap + slope * (np.log1p(words_a) - np.log1p(words_b)) + noise
    return values, words_a, words_b, clusters


def test_difference_at_equal_length():
    values, words_a, words_b, clusters = simulate(0)
    found = length_sensitivity(values, words_a, clusters, words_b)
    assert found.adjusted.low < 0.05 < found.adjusted.high
    assert found.slope.low < 0.1 < found.slope.high
    assert found.adjusted.mean < np.mean(values) - 0.05  # a is longer, and length paid
    assert found.reference is None and "log(1 + words)" in found.model


def test_known_answer_without_noise():
    words = [1, 3, 7, 15, 31, 63]
    found = length_sensitivity([0.1 * math.log2(1 + w) for w in words], words, range(6), reference=127)
    assert found.adjusted.mean == pytest.approx(0.7) and found.adjusted.se == pytest.approx(0, abs=1e-9)
    assert found.slope.mean == pytest.approx(0.1 / math.log(2))


def test_at_its_own_mean_length_a_system_keeps_its_mean():
    values, words, _, clusters = simulate(1)
    found = length_sensitivity(values, words, clusters)
    assert found.adjusted.mean == pytest.approx(np.mean(values))
    assert found.reference == pytest.approx(math.expm1(np.mean(np.log1p(words))))
    assert found.adjusted.se < cluster_mean(values, clusters).se  # length explained a part


def test_swapping_the_systems_changes_the_sign_only():
    values, words_a, words_b, clusters = simulate(2)
    there = length_sensitivity(values, words_a, clusters, words_b)
    back = length_sensitivity(-values, words_b, clusters, words_a)
    assert (back.adjusted.mean, back.adjusted.low) == pytest.approx((-there.adjusted.mean, -there.adjusted.high))
    assert back.slope.mean == pytest.approx(there.slope.mean)


def test_one_question_a_video_is_the_textbook_regression():
    from scipy.stats import linregress

    values, words, _, _ = simulate(3, questions=1)
    line = linregress(np.log1p(words), values)
    found = length_sensitivity(values, words, range(60))
    assert found.slope.mean == pytest.approx(line.slope)
    assert found.slope.se == pytest.approx(line.stderr, rel=0.25)  # robust against its homoscedastic one


def test_nothing_to_tell():
    assert length_sensitivity([1, 0, 1, 1], [5, 5, 5, 5], range(4)) is None
    assert length_sensitivity([1, 0, 1, 1], [5, 6, 7, 8], "aabb") is None
    assert length_sensitivity([1, 0, 1, 1], [5, 6, 7, 8], range(4), [5, 6, 7, 8]) is None


@pytest.mark.parametrize(
    "broken",
    [
        lambda: length_sensitivity([1, 0, 1], [1, -2, 3], range(3)),
        lambda: length_sensitivity([1, 0, 1], [1, 2], range(3)),
        lambda: length_sensitivity([1, 0, 1], [1, 2, 3], range(2)),
        lambda: length_sensitivity([1, 0, 1], [1, 2, 3], range(3), [1, 2]),
        lambda: length_sensitivity([1, 0, 1], [1, 2, 3], range(3), [1, 2, 3], reference=5),
    ],
)
def test_nonsense_is_refused(broken):
    with pytest.raises(ValueError):
        broken()


def test_interval_covers():
    inside = 0
    for seed in range(300):
        values, words_a, words_b, clusters = simulate(1000 + seed)
        found = length_sensitivity(values, words_a, clusters, words_b)
        inside += found.adjusted.low <= 0.05 <= found.adjusted.high
    assert inside / 300 >= 0.91  # 95 % and three standard errors
