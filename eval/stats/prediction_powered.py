"""The arithmetic of clustered, power-tuned prediction-powered inference, for one study or for thousands at once.

A judge's verdict ``f`` is known for every question of every video; the gold label ``y`` only for the questions of some
videos, drawn at random. The estimate is that of PPI++ (Angelopoulos, Duchi and Zrnic, 2023, arXiv:2311.01453, eq. 3),

    mean = gold_L + lam * (verdicts_U - verdicts_L)

with L the gold videos, U the others, and every term a mean over rows. What differs from the paper is that a video, not
a question, is one draw: all variances are over per-video sums (ratio estimators, as videos differ in their number of
questions), and 20 draws are few. `eval.stats.debias` is the front door; this file takes sums and does not check them.

Leading axes ``...`` are studies; G is the number of videos, g that of gold videos.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from eval.stats.means import LEVEL, student_quantile, unanimous_width

_LARGEST_LEVERAGE = 0.9


@dataclass(frozen=True)
class Sums:
    """What the estimate needs to know of a study.

    Attributes:
        sizes: [..., G] questions per video.
        verdicts: [..., G] sum of the judge's verdicts per video.
        gold_sizes: [..., g] questions per gold video.
        gold: [..., g] sum of the gold labels per gold video.
        gold_verdicts: [..., g] sum of the judge's verdicts per gold video.
        gold_variance: [...] variance of single gold labels, whatever their video.
        verdict_variance: [...] variance of the verdicts on the labelled questions.
        covariance: [...] of the two.
        labelled: [...] share of the gold videos' questions that have a label.
        paired: values are differences between two models in −1–1, not in 0–1.
    """

    sizes: np.ndarray
    verdicts: np.ndarray
    gold_sizes: np.ndarray
    gold: np.ndarray
    gold_verdicts: np.ndarray
    gold_variance: np.ndarray
    verdict_variance: np.ndarray
    covariance: np.ndarray
    labelled: np.ndarray
    paired: bool = False


@dataclass(frozen=True)
class Fit:
    """Estimates [...] with their standard errors, intervals, and what they were made with.

    Attributes:
        mean: the estimate.
        se: its standard error.
        low: lower end of the 95 % interval.
        high: upper end.
        lam: the weight of the verdicts, PPI++'s lambda.
        df: degrees of freedom of Student's t.
    """

    mean: np.ndarray
    se: np.ndarray
    low: np.ndarray
    high: np.ndarray
    lam: np.ndarray
    df: np.ndarray


def fit(sums: Sums, benchmark: bool, lam: float | None = None) -> Fit:
    """Estimate the mean of the gold labels from verdicts on all videos and gold labels on some.

    **Lambda** is the least-squares slope of the gold videos' gold residual sums on their verdict residual sums, times
    the share of rows outside the gold videos, clipped to 0–1 as in the paper (the slope on the gold videos alone: with
    a good judge it varies far less than the paper's ratio of a covariance to the variance over all videos).

    **Variance.** The tuned estimate is linear in the gold sums, so each gold video has a weight (the general regression
    estimator of survey sampling; Särndal, Swensson and Wretman, 1992, section 6.6) and its squared residual is divided
    by one minus its leverage (Bell and McCaffrey, 2002): the price of tuning lambda on 20 videos is in it, and no
    cross-fitting is needed. For the benchmark, a fixed set of G videos, it is multiplied by ``1 - g/G``; for the
    population the variance of ``verdicts_U`` is added.

    **Few errors.** A judge that is right on all of 60 labels is not always right. So labels are added, evenly over
    the four cells of (gold, verdict): four without a judge, as to a proportion (Agresti and Coull, 1998), two with a
    perfect one, as to paired proportions (Agresti and Min, 2005), in between by lambda; each counts with the design
    effect of the residuals (Franco, Little, Louis and Slud, 2019). They widen the interval and move its centre, not the
    estimate, by amounts that vanish with more labels. If no error is seen, errors may come in whole videos; if all gold
    labels are equal, the exact binomial (hypergeometric) bound over videos is used.

    **What it holds** (`benchmarks/debias_coverage.py`, 20 to 60 gold videos, 448 intervals of 1,000 studies): 94–97 %
    where ten effective judge errors, wrong and right answers or more are among the gold labels, 92–99.6 % where they
    are fewer. Outside that grid it can fall to 88 %: if the few errors of a judge come in whole videos (correlation
    0.7, two or three such videos expected among the gold ones).

    **Degrees of freedom**: the effective number of gold videos (unequal ones count for less; Carter, Schnepel and
    Steigerwald, 2017) minus one, minus one more for lambda; Satterthwaite's formula joins the two parts of the
    population's variance.

    Args:
        sums: of the studies.
        benchmark: estimate the mean over exactly these questions; else over the population the videos came from.
        lam: a lambda of one's own in place of the tuned one; 0 ignores the judge.
    """
    G, g = sums.sizes.shape[-1], sums.gold_sizes.shape[-1]
    rows, all_rows = sums.gold_sizes.sum(-1), sums.sizes.sum(-1)  # [...]
    gold, verdicts, everywhere = sums.gold.sum(-1) / rows, sums.gold_verdicts.sum(-1) / rows, _mean_verdict(sums)
    outside = 1 - rows / all_rows  # [...] share of the rows outside the gold videos
    a = sums.gold - sums.gold_sizes * gold[..., None]  # [..., g] residual sums
    b = sums.gold_verdicts - sums.gold_sizes * verdicts[..., None]
    b_square = (b * b).sum(-1)
    varies = b_square > 1e-9
    b_safe = np.where(varies, b_square, 1.0)
    raw = np.round(np.where(varies, (a * b).sum(-1) / b_safe, 0.0) * outside, 12)  # so that a zero is one on both sides
    lam = np.clip(raw, 0.0, 1.0) if lam is None else np.full_like(raw, lam)
    tuned = (lam == raw) & varies & (outside > 0)
    slope = np.where(outside > 0, lam / np.where(outside > 0, outside, 1.0), 0.0)
    mean = gold + slope * (everywhere - verdicts)

    # Influence of each gold video on the estimate: through the rectifier, and through lambda.
    residual = a - slope[..., None] * b
    through_lam = np.where(tuned, (everywhere - verdicts) / b_safe, 0.0)[..., None] * b * residual
    rectifier = residual if benchmark else a - lam[..., None] * b
    influence = rectifier / rows[..., None] + through_lam
    leverage = sums.gold_sizes / rows[..., None] + np.where(tuned, 1 / b_safe, 0.0)[..., None] * b * b
    variance = (influence**2 / (1 - np.minimum(leverage, _LARGEST_LEVERAGE))).sum(-1)

    # The added labels.
    used = slope if benchmark else lam
    single = sums.gold_variance - 2 * used * sums.covariance + used**2 * sums.verdict_variance
    design, largest = _design_effect(sums, a - used[..., None] * b, single)
    weight = added_labels(used, sums.paired) * design
    middle, middle_variance = (0.0, 0.5) if sums.paired else (0.5, 0.25)
    off_centre = middle * (1 - used) - (gold - used * verdicts)
    pseudo = middle_variance * (1 + used**2) + off_centre**2
    variance = (variance * rows**2 + weight * design * pseudo) / (rows + weight) ** 2
    left = np.maximum(1 - g / G * sums.labelled, 0.0) if benchmark else np.ones_like(mean)
    variance = left * variance
    centre = mean + left * weight / (rows + weight) * off_centre

    df = np.maximum(_effective_videos(sums, design, largest) - 1 - tuned, 1.0)
    if not benchmark:
        second = lam**2 * _verdict_variance(sums, everywhere) / max(G - g, 1)
        total = variance + second
        df = total**2 / (variance**2 / df + second**2 / max(G - 1, 1))
        variance = total
    half = _quantiles(df) * np.sqrt(variance)

    unanimous = sums.gold_variance < 1e-12
    if unanimous.any():
        width = _unanimous(G, g, sums.labelled) if benchmark else np.full_like(mean, unanimous_width(g))
        half, centre = np.where(unanimous, width, half), np.where(unanimous, mean, centre)
    bottom = -1.0 if sums.paired else 0.0
    mean = np.clip(mean, bottom, 1.0)
    low = np.clip(np.minimum(centre - half, mean), bottom, 1.0)
    high = np.clip(np.maximum(centre + half, mean), bottom, 1.0)
    return Fit(mean, np.sqrt(variance), low, high, lam, df)


def added_labels(lam: np.ndarray, paired: bool) -> np.ndarray:
    """How many labels are added to the gold ones: four to a proportion, two to a difference of paired ones."""
    return np.full_like(lam, 2.0) if paired else 4.0 - 2.0 * np.minimum(lam, 1.0)


def moments(sums: Sums) -> dict[str, float]:
    """What one study tells for planning another: the fields of `eval.stats.gold_plan.Spread`."""
    g = sums.gold_sizes.shape[-1]
    rows, everywhere = sums.gold_sizes.sum(), _mean_verdict(sums)
    gold, verdicts = sums.gold.sum() / rows, sums.gold_verdicts.sum() / rows
    a, b = sums.gold - sums.gold_sizes * gold, sums.gold_verdicts - sums.gold_sizes * verdicts  # [g]
    design, largest = _design_effect(sums, a, sums.gold_variance)
    scale = (g - 1) * (rows / g) ** 2
    verdict_variance = float(_verdict_variance(sums, everywhere))
    # the slope from the gold videos, the variance from all: the verdicts of all are known
    slope = float(a @ b) / float(b @ b) if float(b @ b) > 1e-9 else 0.0
    residual = a - slope * b
    return {
        "gold": float(gold),
        "verdicts": float(everywhere),
        "gold_variance": float(residual @ residual) / (scale * (g - 2) / (g - 1)) + slope**2 * verdict_variance,
        "verdict_variance": verdict_variance,
        "covariance": slope * verdict_variance,
        "single_gold": float(sums.gold_variance),
        "single_verdict": float(sums.verdict_variance),
        "single_covariance": float(sums.covariance),
        "effective": float(_effective_videos(sums, design, largest)) / g,
    }


def _mean_verdict(sums: Sums) -> np.ndarray:
    return sums.verdicts.sum(-1) / sums.sizes.sum(-1)


def _verdict_variance(sums: Sums, mean: np.ndarray) -> np.ndarray:
    """Variance [...] between videos of the verdicts, on the scale of means over rows."""
    G = sums.sizes.shape[-1]
    residual = sums.verdicts - sums.sizes * mean[..., None]
    return (residual**2).sum(-1) / (G - 1) / sums.sizes.mean(-1) ** 2


def _design_effect(sums: Sums, residual: np.ndarray, single: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how much clustering multiplies a variance, and the most it can: [...], [...].

    From residual sums per gold video [..., g] and the variance of single residuals [...]; if nothing varies, the most.
    """
    g = sums.gold_sizes.shape[-1]
    rows = sums.gold_sizes.sum(-1)
    largest = (sums.gold_sizes**2).sum(-1) / rows
    independent = rows * single
    known = independent > 1e-9
    seen = (residual**2).sum(-1) * g / (g - 1) / np.where(known, independent, 1.0)
    return np.where(known, np.clip(seen, 1.0, largest), largest), largest


def _effective_videos(sums: Sums, design: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """How many videos of equal size carry as much information on the variance as the gold videos: [...]."""
    correlation = np.where(largest > 1, (design - 1) / np.where(largest > 1, largest - 1, 1.0), 0.0)[..., None]
    share = sums.gold_sizes * (1 + (sums.gold_sizes - 1) * np.clip(correlation, 0.0, 1.0))  # of the variance
    return share.sum(-1) ** 2 / (share**2).sum(-1)


def _quantiles(df: np.ndarray) -> np.ndarray:
    """Student's quantile for each df, on the chord between tenths, so that few must be integrated.

    The quantile is convex in df, so a chord is never below it; rounding df to tenths would make it jump.
    """
    tenths = np.minimum(df, 1e6) * 10
    below = np.floor(tenths)
    grid, where = np.unique(np.stack([below, below + 1]), return_inverse=True)
    low, high = np.array([student_quantile(t / 10) for t in grid])[where.reshape(2, *np.shape(df))]
    return low + (tenths - below) * (high - low)


def _unanimous(G: int, g: int, labelled: np.ndarray) -> np.ndarray:
    """`unanimous_in_set` with the set enlarged where gold videos have questions without a label."""
    known, where = np.unique(np.ceil(G / labelled), return_inverse=True)
    return np.array([unanimous_in_set(g, int(size)) for size in known.ravel()])[where].reshape(np.shape(labelled))


@functools.lru_cache(maxsize=4096)
def unanimous_in_set(drawn: int, videos: int) -> float:
    """Exact hypergeometric bound: the share of `videos` that may be otherwise although none of those `drawn` was."""
    chance, otherwise = 1.0, 0
    while otherwise < videos - drawn:
        chance *= (videos - drawn - otherwise) / (videos - otherwise)
        if chance < (1 - LEVEL) / 2:
            break
        otherwise += 1
    return otherwise / videos if not math.isclose(videos, drawn) else 0.0
