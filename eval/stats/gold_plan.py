"""How many gold videos, and labels, an interval of a wanted width needs: from a pilot, or from assumed rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.stats.debias import ESTIMANDS, MIN_GOLD_CLUSTERS, check_rows, filled, sums_by_video
from eval.stats.means import student_quantile
from eval.stats.prediction_powered import Sums, added_labels, moments

_LEAST_PILOT = 5


@dataclass(frozen=True)
class Spread:
    """How gold labels and verdicts vary between videos, on the scale of means over rows.

    Attributes:
        videos: in the set.
        questions: per video, in the mean.
        gold: mean of the gold labels.
        verdicts: mean of the verdicts.
        gold_variance: of a video's gold mean.
        verdict_variance: of a video's verdict mean.
        covariance: of the two.
        single_gold: variance of single gold labels, whatever their video.
        single_verdict: variance of single verdicts.
        single_covariance: of the two.
        effective: effective number of videos per video (1 if all have the same number of questions).
        paired: the values are differences between two models.
    """

    videos: int
    questions: float
    gold: float
    verdicts: float
    gold_variance: float
    verdict_variance: float
    covariance: float
    single_gold: float
    single_verdict: float
    single_covariance: float
    effective: float = 1.0
    paired: bool = False

    @classmethod
    def from_pilot(cls, verdicts: Sequence[float | None], clusters: Sequence, gold: Sequence[float | None]) -> Spread:
        """From verdicts on the whole set and gold labels on a few of its videos, drawn at random.

        The fewer gold videos, the rougher: with 10 of them the half-width it foretells is off by a fifth or so.

        Args:
            verdicts: [N] verdicts in 0–1; None without one.
            clusters: [N] hashable labels, such as video ids.
            gold: [N] gold labels in 0–1; None without one.

        Raises:
            ValueError: if a value is outside its range, the lengths differ, or fewer than 5 videos have gold labels.
        """
        verdicts, gold = check_rows(verdicts, "verdicts"), check_rows(gold, "gold")
        return cls._from_sums(sums_by_video(filled(verdicts), clusters, gold))

    @classmethod
    def from_pilot_difference(
        cls,
        verdicts_a: Sequence[float | None],
        verdicts_b: Sequence[float | None],
        clusters: Sequence,
        gold_a: Sequence[float | None],
        gold_b: Sequence[float | None],
    ) -> Spread:
        """As :meth:`from_pilot`, for the difference between two models (see `eval.stats.debiased_difference`)."""
        a, b = check_rows(verdicts_a, "verdicts_a"), check_rows(verdicts_b, "verdicts_b")
        gold = check_rows(gold_a, "gold_a") - check_rows(gold_b, "gold_b")
        return cls._from_sums(sums_by_video(filled(a) - filled(b), clusters, gold, paired=True))

    @classmethod
    def _from_sums(cls, sums: Sums) -> Spread:
        drawn = sums.gold.shape[-1]
        if drawn < _LEAST_PILOT:
            raise ValueError(f"a pilot needs gold labels on {_LEAST_PILOT} videos or more, got {drawn}")
        return cls(sums.sizes.shape[-1], float(sums.sizes.mean()), **moments(sums), paired=sums.paired)

    @classmethod
    def from_rates(
        cls,
        videos: int,
        questions: float,
        accuracy: float,
        missed: float,
        false_alarms: float,
        icc: float = 0.3,
        judge_icc: float = 0.2,
    ) -> Spread:
        """From what one expects: rates, and how alike the questions of a video are.

        Args:
            videos: in the set.
            questions: about each of them.
            accuracy: of the model, by gold standards.
            missed: share of right answers that the judge calls wrong.
            false_alarms: share of wrong answers that the judge calls right.
            icc: correlation of correctness between two questions about one video.
            judge_icc: correlation of the judge's errors between two of them.

        Raises:
            ValueError: if a number is outside its range.
        """
        rates = (accuracy, missed, false_alarms, icc, judge_icc)
        if videos < 2 or questions < 1 or not all(0 <= rate <= 1 for rate in rates):
            raise ValueError("a plan needs 2 videos or more, 1 question or more, and rates in 0–1")
        p, q, m = accuracy, 1 - accuracy, questions
        right = 1 - missed - false_alarms  # how much more often a right answer is called right than a wrong one
        called = p * (1 - missed) + q * false_alarms
        between = icc * p * q  # covariance of two gold labels of a video
        errors = judge_icc * (
            missed * (1 - missed) * (p * p + between) + false_alarms * (1 - false_alarms) * (q * q + between)
        )
        return cls(
            videos=videos,
            questions=m,
            gold=p,
            verdicts=called,
            gold_variance=(p * q + (m - 1) * between) / m,
            verdict_variance=(called * (1 - called) + (m - 1) * (right**2 * between + errors)) / m,
            covariance=right * (p * q + (m - 1) * between) / m,
            single_gold=p * q,
            single_verdict=called * (1 - called),
            single_covariance=right * p * q,
        )


@dataclass(frozen=True)
class GoldPlan:
    """What a wanted interval needs.

    Attributes:
        videos: gold videos to draw.
        labels: about so many labels (videos × questions).
        half_width: that is then expected, at most the wanted one.
        gold_only_videos: gold videos that the same interval would need without a judge; None if all are too few.
    """

    videos: int
    labels: int
    half_width: float
    gold_only_videos: int | None


def gold_needed(half_width: float, spread: Spread, estimand: str = "benchmark") -> GoldPlan:
    """How many gold videos give a 95 % interval of ``mean ± half_width``, with the judge and without.

    Never fewer than the 20 that an interval needs at all (or all videos, if there are fewer).

    Args:
        half_width: wanted, in 0–1.
        spread: from a pilot or from rates.
        estimand: "benchmark" or "population".

    Raises:
        ValueError: if the estimand is unknown, the half-width is not positive, or gold labels on all videos give a
            wider interval (possible for the population: more videos are needed then).
    """
    if estimand not in ESTIMANDS:
        raise ValueError(f"estimand must be one of {', '.join(ESTIMANDS)}, got '{estimand}'")
    if not half_width > 0:
        raise ValueError(f"half_width must be positive, got {half_width}")
    videos = _fewest(half_width, spread, estimand, judge=True)
    if videos is None:
        best = expected_half_width(spread.videos, spread, estimand)
        raise ValueError(
            f"gold labels on all {spread.videos} videos would give ±{best:.3f}, wider than ±{half_width:g}: the "
            f"{estimand} needs more videos"
        )
    return GoldPlan(
        videos=videos,
        labels=math.ceil(videos * spread.questions),
        half_width=expected_half_width(videos, spread, estimand),
        gold_only_videos=_fewest(half_width, spread, estimand, judge=False),
    )


def expected_half_width(gold_videos: int, spread: Spread, estimand: str = "benchmark", judge: bool = True) -> float:
    """Half-width to expect of :func:`eval.stats.debiased_mean`: its formula with expectations in place of sums.

    Args:
        gold_videos: g, 4 or more.
        spread: from a pilot or from rates.
        estimand: "benchmark" or "population".
        judge: use the verdicts; else gold labels alone.
    """
    s, g, benchmark = spread, gold_videos, estimand == "benchmark"
    outside = 1 - g / s.videos
    slope = s.covariance / s.verdict_variance if judge and s.verdict_variance > 0 and outside > 0 else 0.0
    lam = float(np.clip(slope * outside, 0.0, 1.0))
    used = (lam / outside if outside > 0 else 0.0) if benchmark else lam
    rectifier = s.gold_variance - 2 * used * s.covariance + used**2 * s.verdict_variance
    tuned = 0 < lam < 1
    variance = rectifier / g * (1 + outside / (g - 3) if tuned else 1.0)
    single = s.single_gold - 2 * used * s.single_covariance + used**2 * s.single_verdict
    design = min(max(rectifier * s.questions / single, 1.0), s.questions) if single > 1e-9 else s.questions
    rows, weight = g * s.questions, float(added_labels(np.asarray(used), s.paired)) * design
    middle, middle_variance = (0.0, 0.5) if s.paired else (0.5, 0.25)
    added = middle_variance * (1 + used**2) + (middle * (1 - used) - (s.gold - used * s.verdicts)) ** 2
    variance = (variance * rows**2 + weight * design * added) / (rows + weight) ** 2
    df = max(g * s.effective - 1 - tuned, 1.0)
    if benchmark:
        variance *= outside
    elif lam > 0:
        second = lam**2 * s.verdict_variance / (s.videos - g)
        df = (variance + second) ** 2 / (variance**2 / df + second**2 / (s.videos - 1))
        variance += second
    return student_quantile(df) * math.sqrt(variance)


def _fewest(half_width: float, spread: Spread, estimand: str, judge: bool) -> int | None:
    """The least number of gold videos that reaches the half-width, by bisection; None if all do not."""
    low, high = min(MIN_GOLD_CLUSTERS, spread.videos), spread.videos
    if expected_half_width(high, spread, estimand, judge) > half_width:
        return None
    while low < high:
        middle = (low + high) // 2
        if expected_half_width(middle, spread, estimand, judge) <= half_width:
            high = middle
        else:
            low = middle + 1
    return high
