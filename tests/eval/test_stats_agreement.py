"""Agreement: published examples, what perfect and chance raters get, invariants, and the cover of the intervals."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.stats import cohen_kappa, krippendorff_alpha, unanimous_width

N = None
# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section D: four observers, twelve units
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
labels = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 5)), min_size=2, max_size=30)


def pairs(table: list[list[int]]) -> tuple[list[int], list[int]]:
    cells = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in cells], [j for _, j in cells]


def test_kappa_published_examples():
    # Cohen (1960), table 1: 200 judgements in three categories, kappa 0.492
    a, b = pairs([[88, 10, 2], [14, 40, 6], [18, 10, 12]])
    found = cohen_kappa(a, b, range(200))
    assert found.value == pytest.approx(0.492, abs=5e-4)
    assert (found.n, found.clusters) == (200, 200)
    a, b = pairs([[20, 5], [10, 15]])
    assert cohen_kappa(a, b, range(50)).value == pytest.approx(0.4)


def test_kappa_interval_is_the_large_sample_one_for_single_questions():
    # Fleiss, Cohen and Everitt (1969), formula 13, on Cohen's example
    table = np.array([[88, 10, 2], [14, 40, 6], [18, 10, 12]]) / 200
    rows, columns = table.sum(1), table.sum(0)
    observed, expected = np.trace(table), rows @ columns
    kappa = (observed - expected) / (1 - expected)
    diagonal = sum(table[i, i] * (1 - (rows[i] + columns[i]) * (1 - kappa)) ** 2 for i in range(3))
    off = sum(table[i, j] * (columns[i] + rows[j]) ** 2 for i in range(3) for j in range(3) if i != j)
    spread = diagonal + (1 - kappa) ** 2 * off - (kappa - expected * (1 - kappa)) ** 2
    se = math.sqrt(spread / 200) / (1 - expected)
    found = cohen_kappa(*pairs([[88, 10, 2], [14, 40, 6], [18, 10, 12]]), range(200))
    assert (found.high - found.low) / 2 == pytest.approx(1.972 * se, rel=0.02)


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_published_example(level, value):
    found = krippendorff_alpha(OBSERVERS, level)
    assert found.value == pytest.approx(value, abs=5e-4)
    assert found.n == found.clusters == 11  # the twelfth unit has one rating
    assert -1 <= found.low < found.value < found.high <= 1


def test_alpha_published_binary_example():
    # the same paper, section A: two observers, ten units, alpha 0.095
    a, b = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    for level in ("nominal", "ordinal", "interval"):  # two values: all levels are one
        assert krippendorff_alpha([a, b], level).value == pytest.approx(0.095, abs=5e-4)


def test_names_do_for_nominal_ratings():
    named = [[N if v is N else "_abcde"[v] for v in rater] for rater in OBSERVERS]
    assert krippendorff_alpha(named) == krippendorff_alpha(OBSERVERS)


def test_perfect_agreement_is_one_and_not_certain():
    a = [0, 1, 0, 1, 1, 0, 1, 0] * 3
    for found in (
        cohen_kappa(a, a, np.repeat(range(12), 2)),
        krippendorff_alpha([a, a], "interval", np.repeat(range(12), 2)),
    ):
        assert (found.value, found.high) == (1.0, 1.0)
        assert found.low == pytest.approx(1 - 2 * unanimous_width(12), abs=0.02)  # chance disagrees on half


def test_chance_is_zero():
    a, b = np.random.default_rng(0).integers(0, 3, (2, 20_000))
    assert abs(cohen_kappa(a, b, range(20_000)).value) < 0.02
    assert abs(krippendorff_alpha([a, b], clusters=np.arange(20_000) % 50).value) < 0.02


def test_ratings_that_are_all_the_same_say_nothing():
    for found in (cohen_kappa([1, 1], [1, 1], "ab"), krippendorff_alpha([[1, 1], [1, 1]], "interval")):
        assert math.isnan(found.value) and found.as_dict()["low"] is None


def test_one_video_says_nothing_about_others():
    found = cohen_kappa([0, 1, 1], [0, 1, 0], ["v"] * 3)
    assert (found.low, found.high) == (-1.0, 1.0)


def test_copies_within_a_video_narrow_nothing():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 2, 60)
    b = np.where(rng.random(60) < 0.25, 1 - a, a)
    once, thrice = (cohen_kappa(np.repeat(a, k), np.repeat(b, k), np.repeat(range(60), k)) for k in (1, 3))
    assert (once.value, once.low, once.high) == pytest.approx((thrice.value, thrice.low, thrice.high))


@given(labels, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_invariants(rows, rng: random.Random):
    a, b, videos = (list(column) for column in zip(*rows))
    kappa = cohen_kappa(a, b, videos)
    names = dict(zip(range(3), rng.sample(["x", "y", "z"], 3)))
    others = [
        cohen_kappa(b, a, videos),
        cohen_kappa([names[v] for v in a], [names[v] for v in b], videos),
        cohen_kappa(*zip(*rng.sample(rows, len(rows)))),
        cohen_kappa([*a, None], [*b, 1], [*videos, 99]),
    ]
    for other in others:
        assert other.value == pytest.approx(kappa.value, nan_ok=True)
        assert (other.low, other.high) == pytest.approx((kappa.low, kappa.high), nan_ok=True)
    for level in ("nominal", "ordinal", "interval"):
        alpha = krippendorff_alpha([a, b], level, videos)
        swapped = krippendorff_alpha([b, a], level, videos)
        assert (swapped.value, swapped.low) == pytest.approx((alpha.value, alpha.low), nan_ok=True)
        if not math.isnan(alpha.value):
            assert alpha.low <= alpha.value <= alpha.high
    shifted = krippendorff_alpha([[1000 + 3 * v for v in a], [1000 + 3 * v for v in b]], "interval", videos)
    assert shifted.value == pytest.approx(krippendorff_alpha([a, b], "interval", videos).value, nan_ok=True)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda: cohen_kappa([1], [1, 2], ["a"]), "1 and 2 ratings"),
        (lambda: cohen_kappa([1, None], [None, 1], "ab"), "no item has a rating of both"),
        (lambda: krippendorff_alpha([[1, 2], [1]]), "one value"),
        (lambda: krippendorff_alpha([]), "no item"),
        (lambda: krippendorff_alpha([[1, 2]]), "no item has ratings of two"),
        (lambda: krippendorff_alpha([[1], [2]], "ratio"), "level must be one of"),
        (lambda: krippendorff_alpha([["a"], ["b"]], "ordinal"), "'a', which is no finite number"),
    ],
)
def test_nonsense_is_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        broken()


def coverage(trials: int, coefficient) -> float:
    """Share of intervals that hold the coefficient of a large sample: 40 videos × 4, raters that err by video."""
    rng, inside = np.random.default_rng(2), 0

    def draw(videos: int):
        easy, shape = rng.beta(6, 1.5, (videos, 1)), (videos, 4)
        truth = rng.random(shape) < rng.beta(2, 1, (videos, 1))
        a, b = (np.where(rng.random(shape) < easy, truth, ~truth).astype(int).ravel() for _ in range(2))
        return a, b, np.repeat(np.arange(videos), 4)

    aim = coefficient(*draw(20_000), whole=True)
    for _ in range(trials):
        found = coefficient(*draw(40))
        inside += found.low <= aim.value <= found.high
    return inside / trials


def kappa_of(a, b, videos, whole=False):
    return cohen_kappa(a, b, videos if not whole else videos % 50)


def alpha_of(a, b, videos, whole=False):
    return krippendorff_alpha([a, b], "nominal", videos if not whole else videos % 50)


def test_intervals_cover():
    assert coverage(200, kappa_of) >= 0.90  # 95 % and three standard errors


@pytest.mark.slow
@pytest.mark.parametrize("coefficient", [kappa_of, alpha_of])
def test_intervals_cover_in_many_trials(coefficient):
    assert 0.93 <= coverage(2000, coefficient) <= 0.97
