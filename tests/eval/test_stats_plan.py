"""Plans against simulation: how many gold videos an interval needs, and which difference a set can show."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.debias_coverage import VIDEOS, Cell, Design, draw
from eval.stats import (
    Spread,
    debiased_mean,
    expected_half_width,
    gold_needed,
    paired_test,
    planned_difference,
    smallest_difference,
)
from eval.stats.prediction_powered import fit


def measured(gold: int, questions: int, rates: tuple[float, float, float], estimand: str, studies: int = 200) -> float:
    """Mean half-width over simulated studies."""
    drawn, _ = draw(Cell(Design("", gold, questions, questions), *rates), studies, np.random.default_rng(3))
    found = fit(drawn.sums(), estimand == "benchmark")
    return float((found.high - found.low).mean() / 2)


RATES = [(0.5, 0.05, 0.05), (0.7, 0.05, 0.2), (0.6, 0.3, 0.1), (0.5, 0.5, 0.5)]


@pytest.mark.parametrize("estimand", ["benchmark", "population"])
@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize(("gold", "questions"), [(25, 5), (60, 3)])
def test_expected_half_width_is_what_simulation_gives(rates, estimand, gold, questions):
    spread = Spread.from_rates(VIDEOS, questions, *rates)
    foretold = expected_half_width(gold, spread, estimand)
    assert foretold == pytest.approx(measured(gold, questions, rates, estimand), rel=0.08)


@pytest.mark.parametrize("estimand", ["benchmark", "population"])
def test_the_planned_videos_give_the_wanted_interval(estimand):
    rates = (0.7, 0.1, 0.15)
    plan = gold_needed(0.07, Spread.from_rates(VIDEOS, 4, *rates), estimand)
    assert plan.half_width <= 0.07 and plan.labels == 4 * plan.videos
    assert measured(plan.videos, 4, rates, estimand) == pytest.approx(0.07, rel=0.08)
    assert plan.gold_only_videos > 1.5 * plan.videos


def pilot(seed: int, videos: int = 300, gold_videos: int = 40):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, videos)
    clusters = np.repeat(np.arange(videos), sizes)
    truth = (rng.random(len(clusters)) < np.repeat(rng.beta(2, 1, videos), sizes)).astype(float)
    verdicts = np.where(rng.random(len(truth)) < 0.12, 1 - truth, truth)
    gold = [float(y) if c < gold_videos else None for y, c in zip(truth, clusters)]
    return verdicts.tolist(), clusters.tolist(), gold


@pytest.mark.parametrize("estimand", ["benchmark", "population"])
def test_a_pilot_foretells_its_own_interval(estimand):
    for seed in range(5):
        verdicts, clusters, gold = pilot(seed)
        found = debiased_mean(verdicts, clusters, gold, estimand)
        spread = Spread.from_pilot(verdicts, clusters, gold)
        assert expected_half_width(40, spread, estimand) == pytest.approx((found.high - found.low) / 2, rel=0.15)
        alone = (found.gold_only.high - found.gold_only.low) / 2
        assert expected_half_width(40, spread, estimand, judge=False) == pytest.approx(alone, rel=0.15)


def test_a_small_pilot_foretells_a_larger_sample():
    foretold = [expected_half_width(80, Spread.from_pilot(*pilot(seed, gold_videos=20))) for seed in range(20)]
    found = [debiased_mean(*pilot(seed, gold_videos=80)) for seed in range(20)]
    assert np.mean(foretold) == pytest.approx(np.mean([f.high - f.low for f in found]) / 2, rel=0.1)


def test_a_pilot_of_differences():
    verdicts, clusters, gold = pilot(1)
    other = [1.0 - v if i % 5 == 0 else v for i, v in enumerate(verdicts)]
    other_gold = [None if y is None else (1.0 - y if i % 5 == 0 else y) for i, y in enumerate(gold)]
    spread = Spread.from_pilot_difference(verdicts, other, clusters, gold, other_gold)
    assert spread.paired and gold_needed(0.1, spread).videos < gold_needed(0.05, spread).videos


def test_the_population_may_be_out_of_reach():
    spread = Spread.from_rates(50, 3, 0.6, 0.1, 0.1)
    with pytest.raises(ValueError, match=r"gold labels on all 50 videos would give ±0\.1\d+, wider than ±0.02"):
        gold_needed(0.02, spread, "population")
    assert gold_needed(0.02, spread, "benchmark").videos <= 50


def test_never_fewer_than_an_interval_needs():
    assert gold_needed(0.4, Spread.from_rates(400, 5, 0.5, 0.1, 0.1)).videos == 20
    assert gold_needed(0.4, Spread.from_rates(12, 5, 0.5, 0.1, 0.1)).videos == 12


@pytest.mark.parametrize(
    "broken",
    [
        lambda: gold_needed(0, Spread.from_rates(100, 3, 0.5, 0.1, 0.1)),
        lambda: gold_needed(0.1, Spread.from_rates(100, 3, 0.5, 0.1, 0.1), "set"),
        lambda: Spread.from_rates(100, 3, 1.5, 0.1, 0.1),
        lambda: Spread.from_rates(100, 0, 0.5, 0.1, 0.1),
        lambda: Spread.from_pilot([1.0] * 8, range(8), [1.0] * 4 + [None] * 4),
        lambda: smallest_difference([], []),
        lambda: smallest_difference([1, 0], "ab", power=0.4),
        lambda: planned_difference(1, 3, 0.2),
        lambda: planned_difference(100, 3, 0.0),
    ],
)
def test_nonsense_is_refused(broken):
    with pytest.raises(ValueError):
        broken()


def test_smallest_difference_known_answer():
    # 50 videos, one question each, half of the differences ±1: se = sqrt(0.5 / 49 · 50 / 50), t(49) 2.010 and 0.849
    differences = [1, -1, 0, 0] * 12 + [1, -1]
    se = np.std(differences, ddof=1) / np.sqrt(50)
    assert smallest_difference(differences, range(50)) == pytest.approx((2.0096 + 0.8490) * se, rel=1e-3)
    assert smallest_difference(differences, range(50), power=0.9) > smallest_difference(differences, range(50))
    assert smallest_difference([0] * 9, range(9)) is None and smallest_difference([0, 1], "aa") is None


def paired_set(rng: np.random.Generator, gap: float, videos: int = 60, questions: int = 4):
    """Two models that a video can favour, `gap` apart: differences in {-1, 0, 1} of disagreement 0.4."""
    favour = np.clip(0.5 + gap / 0.8 + rng.uniform(-0.35, 0.35, (videos, 1)), 0, 1)
    differs = rng.random((videos, questions)) < 0.4
    values = np.where(differs, np.where(rng.random((videos, questions)) < favour, 1, -1), 0)
    return values.ravel(), np.repeat(np.arange(videos), questions)


def found_share(gap: float, trials: int) -> float:
    rng, hits = np.random.default_rng(4), 0
    for trial in range(trials):
        values, clusters = paired_set(rng, gap)
        hits += paired_test(values, np.zeros(len(values)), clusters, draws=400, seed=trial).p < 0.05
    return hits / trials


def shown() -> tuple[float, float]:
    rng = np.random.default_rng(5)
    sets = [paired_set(rng, 0.0) for _ in range(50)]
    icc = 0.4**2 * 4 * 0.35**2 / 3 / 0.4  # of the differences: their mean given the video is 0.8 (favour - 0.5)
    return float(np.mean([smallest_difference(*s) for s in sets])), planned_difference(60, 4, 0.4, icc)


def test_observed_and_planned_agree():
    observed, planned = shown()
    assert observed == pytest.approx(planned, rel=0.03)


@pytest.mark.parametrize("trials", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_that_difference_is_found_four_times_in_five(trials):
    gap = shown()[0]
    assert found_share(gap, trials) == pytest.approx(0.8, abs=3 * (0.16 / trials) ** 0.5 + 0.02)
    assert found_share(gap / 2, trials) < 0.5
