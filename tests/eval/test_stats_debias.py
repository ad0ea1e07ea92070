"""Debiased means: known answers, degenerate judges, gaps, invariants, and the authors' own package as an oracle."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.stats import cluster_mean, debiased_difference, debiased_mean, student_quantile, unanimous_width
from eval.stats.prediction_powered import _quantiles, unanimous_in_set


def study(seed: int, videos: int = 100, questions: int = 4, gold_videos: int = 30, missed=0.1, passed=0.2):
    """Verdicts, video labels, gold labels (None outside the gold videos), and the truth of every row."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(videos), questions)
    truth = (rng.random(videos * questions) < np.repeat(rng.beta(2, 1.5, videos), questions)).astype(float)
    wrong = rng.random(len(truth)) < np.where(truth == 1, missed, passed)
    verdicts = np.where(wrong, 1 - truth, truth)
    drawn = set(rng.choice(videos, gold_videos, replace=False).tolist())
    gold = [float(y) if c in drawn else None for y, c in zip(truth, clusters)]
    return verdicts.tolist(), clusters.tolist(), gold, truth


def width(estimate) -> float:
    return estimate.high - estimate.low


def test_known_answer_with_a_lambda_of_ones_own():
    # videos a b c with gold, d e without; lam = 1: gold mean 3/5, verdicts 4/5 there and 1/4 outside
    clusters = ["a", "a", "b", "c", "c", "d", "d", "e", "e"]
    verdicts = [1, 1, 1, 0, 1, 0, 0, 1, 0]
    gold = [1, 1, 0, 0, 1, None, None, None, None]
    found = debiased_mean(verdicts, clusters, gold, lam=1.0, min_gold_clusters=3)
    assert found.mean == pytest.approx(3 / 5 + (1 / 4 - 4 / 5))
    assert (found.n, found.clusters, found.gold_n, found.gold_clusters) == (9, 5, 5, 3)
    assert found.naive == cluster_mean(verdicts, clusters)
    assert found.gold_only.mean == pytest.approx(3 / 5)
    assert debiased_mean(verdicts, clusters, gold, lam=0.5, min_gold_clusters=3).mean == pytest.approx(0.6 - 0.275)


def test_lambda_is_the_slope_between_videos_times_the_share_outside():
    verdicts, clusters, gold, _ = study(0)
    found = debiased_mean(verdicts, clusters, gold)
    drawn = sorted({c for c, y in zip(clusters, gold) if y is not None})
    y, f = (np.array([sum(v for v, c in zip(x, clusters) if c == video) for video in drawn]) for x in (gold, verdicts))
    assert found.lam == pytest.approx(np.polyfit(f, y, 1)[0] * 0.7)
    assert 0 < found.lam < 1


def test_a_judge_that_is_right_about_all_gold_labels_is_taken_at_its_word():
    verdicts, clusters, gold, truth = study(1, missed=0.0, passed=0.0)
    found = debiased_mean(verdicts, clusters, gold)
    assert found.lam == pytest.approx(0.7)  # the share of rows outside the gold videos
    assert found.mean == pytest.approx(truth.mean()) == pytest.approx(found.naive.mean)
    assert 0 < width(found) < 0.7 * width(found.gold_only)  # no error seen is not no error


@pytest.mark.parametrize("spoil", [lambda v: [1.0] * len(v), lambda v: [0.5] * len(v), lambda v: [1 - x for x in v]])
@pytest.mark.parametrize("estimand", ["benchmark", "population"])
def test_a_constant_or_contrary_judge_is_left_out(spoil, estimand):
    verdicts, clusters, gold, _ = study(2)
    found = debiased_mean(spoil(verdicts), clusters, gold, estimand)
    assert found.lam == 0
    assert (found.mean, found.low, found.high) == (found.gold_only.mean, found.gold_only.low, found.gold_only.high)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_equal_gold_labels_are_not_certainty(right):
    verdicts, clusters, gold, _ = study(3)
    gold = [None if y is None else right for y in gold]
    benchmark, population = (debiased_mean(verdicts, clusters, gold, name) for name in ("benchmark", "population"))
    assert benchmark.mean == population.mean == right
    assert width(population) == pytest.approx(unanimous_width(30))
    assert width(benchmark) == pytest.approx(unanimous_in_set(30, 100)) and width(benchmark) < width(population)


def test_hypergeometric_bound_known_answer():
    # 2 of 4 drawn, none otherwise: one other is missed with probability 1/2, two with 1/6, and there are no more
    assert unanimous_in_set(2, 4) == 0.5
    # 30 of 40: none of 3 others drawn with probability 10·9·8 / (40·39·38) = 0.012, of 2 with 0.058
    assert unanimous_in_set(30, 40) == pytest.approx(2 / 40)
    assert unanimous_in_set(30, 30) == 0
    assert unanimous_in_set(30, 10**6) == pytest.approx(unanimous_width(30), abs=1e-4)


def test_all_videos_labelled_leave_nothing_uncertain_about_the_benchmark():
    verdicts, clusters, gold, truth = study(4, gold_videos=100)
    found = debiased_mean(verdicts, clusters, gold)
    assert found.low == pytest.approx(truth.mean()) == pytest.approx(found.high) == pytest.approx(found.mean)
    population = debiased_mean(verdicts, clusters, gold, "population")
    assert population.mean == pytest.approx(truth.mean())
    assert width(population) == pytest.approx(width(cluster_mean(truth, clusters)), rel=0.03)


def test_the_population_is_less_certain_than_the_benchmark():
    verdicts, clusters, gold, _ = study(5)
    benchmark, population = (debiased_mean(verdicts, clusters, gold, name) for name in ("benchmark", "population"))
    assert benchmark.mean == population.mean
    assert width(benchmark) < width(population) < width(population.gold_only)


def test_copies_of_questions_within_their_video_narrow_nothing():
    verdicts, clusters, gold, _ = study(6, questions=1, gold_videos=40)
    once = debiased_mean(verdicts, clusters, gold)
    thrice = debiased_mean(np.repeat(verdicts, 3), np.repeat(clusters, 3), [y for y in gold for _ in range(3)])
    assert (thrice.mean, thrice.lam) == pytest.approx((once.mean, once.lam))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_a_question_without_a_verdict_counts_as_the_judges_mean():
    verdicts, clusters, gold, _ = study(7)
    gaps = [None if i % 7 == 0 else v for i, v in enumerate(verdicts)]
    mean = np.mean([v for v in gaps if v is not None])
    filled = [mean if v is None else v for v in gaps]
    found, same = debiased_mean(gaps, clusters, gold), debiased_mean(filled, clusters, gold)
    assert (found.mean, found.low, found.high, found.n) == (same.mean, same.low, same.high, 400)
    assert found.naive.n == 400 - 58  # the naive figure leaves them out


def test_a_question_without_a_gold_label_is_stood_for_by_those_of_its_video():
    # one of the two labels of a video is missing: as if the other one had been given twice
    verdicts, clusters, gold, _ = study(8, questions=2)
    gaps = [None if i % 2 else y for i, y in enumerate(gold)]
    twice = [gold[i - i % 2] for i in range(len(gold))]
    paired_with = [verdicts[i - i % 2] if y is not None else verdicts[i] for i, y in enumerate(gold)]
    found = debiased_mean(verdicts, clusters, gaps, lam=0.0)
    assert found.mean == pytest.approx(debiased_mean(paired_with, clusters, twice, lam=0.0).mean)
    assert (found.gold_n, found.gold_clusters) == (30, 30)
    # half the labels leave more of the benchmark open than the sampled videos' share says
    assert width(found) > width(debiased_mean(paired_with, clusters, twice, lam=0.0))


def test_gaps_leave_it_unbiased_and_covered():
    """The judge fails more often on right answers, and one label in five is missing."""
    rng, inside, means = np.random.default_rng(0), 0, []
    for trial in range(300):
        verdicts, clusters, gold, truth = study(100 + trial)
        gaps = [None if rng.random() < (0.3 if y else 0.1) else v for v, y in zip(verdicts, truth)]
        unsure = [None if rng.random() < 0.2 else y for y in gold]
        found = debiased_mean(gaps, clusters, unsure)
        inside += found.low <= truth.mean() <= found.high
        means.append(found.mean - truth.mean())
    assert abs(np.mean(means)) < 3 * np.std(means) / np.sqrt(300) + 1e-9
    assert inside / 300 >= 0.91  # 95 % and three standard errors


def test_difference_of_two_models():
    verdicts_a, clusters, gold_a, truth_a = study(9)
    verdicts_b, _, _, truth_b = study(10, missed=0.3)
    gold_b = [None if y is None else float(t) for y, t in zip(gold_a, truth_b)]
    found = debiased_difference(verdicts_a, verdicts_b, clusters, gold_a, gold_b)
    back = debiased_difference(verdicts_b, verdicts_a, clusters, gold_b, gold_a)
    assert (found.mean, found.low, found.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert found.low <= (truth_a - truth_b).mean() <= found.high
    assert found.naive.mean == pytest.approx(np.mean(verdicts_a) - np.mean(verdicts_b))
    assert width(found) < width(found.gold_only)
    labelled = [y is not None and i % 3 for i, y in enumerate(gold_b)]
    fewer = debiased_difference(
        verdicts_a, verdicts_b, clusters, gold_a, [y if k else None for y, k in zip(gold_b, labelled)]
    )
    assert fewer.gold_n == sum(map(bool, labelled))


def test_the_same_model_twice_differs_by_nothing_that_was_seen():
    verdicts, clusters, gold, _ = study(11)
    found = debiased_difference(verdicts, verdicts, clusters, gold, gold, "population")
    assert found.mean == 0 and (found.low, found.high) == pytest.approx((-unanimous_width(30), unanimous_width(30)))


@given(st.integers(0, 10**6), st.randoms(use_true_random=False), st.sampled_from(["benchmark", "population"]))
@settings(max_examples=25, deadline=None)
def test_invariants(seed, rng: random.Random, estimand):
    verdicts, clusters, gold, _ = study(seed, videos=40, questions=3, gold_videos=25)
    kept = rng.sample(range(120), 110)  # unequal videos, shuffled rows
    rows = [(verdicts[i], clusters[i], gold[i]) for i in kept]
    found = debiased_mean(*zip(*rows), estimand)
    again = debiased_mean(*zip(*[(v, f"video {c}", y) for v, c, y in sorted(rows, key=str)]), estimand)
    assert (again.mean, again.low, again.high) == pytest.approx((found.mean, found.low, found.high))
    for estimate in (found, found.gold_only):
        assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert 0 <= found.lam <= 1
    flipped = debiased_mean(*zip(*[(1 - v, c, None if y is None else 1 - y) for v, c, y in rows]), estimand)
    assert (flipped.mean, flipped.low, flipped.high) == pytest.approx((1 - found.mean, 1 - found.high, 1 - found.low))


@pytest.mark.parametrize("df", [1.0, 7.3, 18.0, 23.45])
def test_quantiles_do_not_jump(df):
    """Rounding decides the last digit of df, so equal studies must not get unequal intervals by it."""
    below, at, above = _quantiles(np.array([max(df - 1e-12, 1.0), df, df + 1e-12]))
    assert below == pytest.approx(at, rel=1e-10) and above == pytest.approx(at, rel=1e-10)
    assert 0 <= at / student_quantile(df) - 1 < 1e-3 + (df < 2)  # on the chord: never below the quantile


def test_as_dict_is_json():
    verdicts, clusters, gold, _ = study(12)
    fields = json.loads(json.dumps(debiased_mean(verdicts, clusters, gold).as_dict(), allow_nan=False))
    assert fields["estimand"] == "benchmark" and fields["naive"]["n"] == 400 and fields["gold_only"]["clusters"] == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": [1.0] * 4 + [None] * 396}, "gold labels on 1 videos are too few for an interval: label 19 more"),
        ({"gold": [None] * 400}, "gold labels on 0 videos are too few"),
        ({"gold": [2.0] + [1.0] * 399}, "gold: row 1 is 2.0; it must lie in 0–1"),
        ({"verdicts": [1.0] * 399 + [-1.0]}, "verdicts: row 400 is -1.0"),
        ({"verdicts": [float("nan")] * 400}, "verdicts: row 1 is nan"),
        ({"verdicts": [None] * 400}, "verdicts: there is none"),
        ({"verdicts": [1.0] * 399}, "399 verdicts but 400 cluster labels"),
        ({"gold": [1.0] * 399}, "399 gold labels"),
        ({"verdicts": [], "gold": [], "clusters": []}, "verdicts must be a non-empty list"),
        ({"estimand": "set"}, "estimand must be one of benchmark, population, got 'set'"),
        ({"lam": 1.5}, "lam must lie in 0–1"),
    ],
)
def test_nonsense_is_refused(change, message):
    verdicts, clusters, gold, _ = study(13)
    with pytest.raises(ValueError, match=message):
        debiased_mean(**{"verdicts": verdicts, "clusters": clusters, "gold": gold, **change})


def test_differences_need_the_same_rows():
    verdicts, clusters, gold, _ = study(14)
    with pytest.raises(ValueError, match="of the same rows"):
        debiased_difference(verdicts, verdicts[:-1], clusters, gold, gold)
    with pytest.raises(ValueError, match="no question has one for both"):
        debiased_difference(verdicts, [None] * 400, clusters, gold, gold)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "tolerance", "lam_tolerance"), [(200, 0.03, 0.08), (4000, 0.003, 0.02)])
@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0, None])
def test_against_the_authors_package(labels, tolerance, lam_tolerance, lam):
    """One question a video, mean of the population: the point estimate is equal, the interval up to small samples.

    Theirs is normal, with variances divided by n; ours is Student's, with n - 1 or less, and has up to four labels
    added: 3 % with 200 labels. The tuned lambda is theirs but for the variance of the verdicts, which they take from
    all rows and we from the labelled ones.
    """
    from ppi_py import ppi_mean_ci, ppi_mean_pointestimate

    verdicts, clusters, gold, truth = study(20 + labels, videos=10 * labels, questions=1, gold_videos=labels)
    has = np.array([y is not None for y in gold])
    parts = truth[has], np.array(verdicts)[has], np.array(verdicts)[~has]
    found = debiased_mean(verdicts, clusters, gold, "population", lam=lam)
    point = float(np.squeeze(ppi_mean_pointestimate(*parts, lam=found.lam)))
    assert found.mean == pytest.approx(point, abs=1e-12)
    low, high = (float(np.squeeze(end)) for end in ppi_mean_ci(*parts, alpha=0.05, lam=lam))
    assert width(found) == pytest.approx(high - low, rel=tolerance)
    assert (found.low, found.high) == pytest.approx((low, high), abs=tolerance * 0.4)
    if lam is None:
        theirs = (high + low) / 2  # is linear in their lambda
        slope = float(np.squeeze(ppi_mean_pointestimate(*parts, lam=1.0) - ppi_mean_pointestimate(*parts, lam=0.0)))
        zero = float(np.squeeze(ppi_mean_pointestimate(*parts, lam=0.0)))
        assert found.lam == pytest.approx((theirs - zero) / slope, abs=lam_tolerance)
