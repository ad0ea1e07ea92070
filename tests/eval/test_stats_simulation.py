"""The simulation of `benchmarks.debias_coverage`: a part of it in the fast suite, the whole in the slow one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.debias_coverage import LEAST_BIAS, Cell, Design, band, cells, draw, null_tests, problems, run
from eval.stats import debiased_difference, debiased_mean
from eval.stats.prediction_powered import fit


def test_band_is_that_of_exact_binomial_tails():
    low, high = band(1000, 100)

    def tail(counts) -> float:
        return sum(math.comb(1000, k) * 0.95**k * 0.05 ** (1000 - k) for k in counts)

    count = round(1000 * low)
    assert tail(range(count)) < 0.05 / 200 <= tail(range(count + 1))
    count = round(1000 * high)
    assert tail(range(count + 1, 1001)) <= 0.05 / 200 < tail(range(count, 1001))
    assert band(1000, 1)[0] > low and band(200, 100)[0] < low


def test_the_simulation_runs_what_the_package_offers():
    for gap in (None, 0.1):
        drawn, _ = draw(Cell(Design("", 20, 1, 6), 0.7, 0.1, 0.2, gap), 2, np.random.default_rng(0))
        there = drawn.there[1]
        clusters = np.nonzero(there)[0]
        gold = [float(y) if video < 20 else None for y, video in zip(drawn.gold[1][there], clusters)]
        verdicts = drawn.verdicts[1][there].astype(float)
        for estimand in ("benchmark", "population"):
            whole = fit(drawn.sums(), estimand == "benchmark")
            if gap is None:
                one = debiased_mean(verdicts, clusters, gold, estimand)
            else:  # split into two models with the same differences
                up, down = np.maximum(verdicts, 0), np.maximum(-verdicts, 0)
                parts = [[None if y is None else max(sign * y, 0.0) for y in gold] for sign in (1, -1)]
                one = debiased_difference(up, down, clusters, *parts, estimand)
            assert (one.mean, one.low, one.high) == pytest.approx((whole.mean[1], whole.low[1], whole.high[1]))


def test_part_of_the_simulation():
    rows = run(300, seed=1, only=slice(3, None, 9))
    assert problems(rows) == []
    low, _ = band(300, len(rows))
    assert sum(row["unclustered_coverage"] < low for row in rows) > len(rows) / 2
    assert any(abs(row["naive_bias"]) >= LEAST_BIAS for row in rows)


def test_problems_are_found():
    rows = run(300, seed=1, only=slice(20, 21))
    assert problems(rows) == []
    kinds = {"coverage": rows[0]["unclustered_coverage"] - 0.1, "gold_coverage": 0.8, "ours": 2 * rows[0]["peer"]}
    for name, value in kinds.items():
        assert problems([{**rows[0], name: value}])
    assert problems([{**rows[0], "coverage": 1.0, "scarce": 20}])


@pytest.mark.slow
def test_the_whole_simulation():
    """1,000 studies in every cell: coverage within one band, widths as promised, and what fails without clusters."""
    rows = run(1000)
    assert len(rows) == 2 * len(list(cells()))
    assert problems(rows) == []
    low, _ = band(1000, len(rows))
    assert sum(row["unclustered_coverage"] < low for row in rows) > 0.7 * len(rows)
    assert sum(row["plain_coverage"] < low for row in rows) > 30  # the textbook's interval, few and unequal videos
    biased = [row for row in rows if abs(row["naive_bias"]) >= LEAST_BIAS]
    assert len(biased) > 100 and all(row["coverage"] >= low for row in biased)
    fired = null_tests(1000, seed=0)
    assert fired["mcnemar"] > 0.12 and fired["clustered"] < 0.07  # 5 % and three standard errors
