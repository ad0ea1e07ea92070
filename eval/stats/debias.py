"""What a judge's verdicts are worth, put right with gold labels: clustered prediction-powered inference (PPI++).

A judge that errs makes an accuracy that is off, and more questions do not help. People's labels on some videos do: they
tell how the judge errs, and the verdicts on all videos then make the estimate sharper than the labels alone would. The
gold videos must be a random sample of the set's videos, each labelled whole (`eval.gold` draws such samples).

Two things can be estimated, and the caller says which:

* ``"benchmark"``: the mean over exactly these questions. Labelling all of them would leave nothing uncertain.
* ``"population"``: the mean over all videos that might have been drawn in place of these.

Missing values are treated so that the result stays unbiased. A question **without a verdict** stays in: its verdict
counts as the judge's mean (on gold and other videos alike, so the rectifier takes out whatever that does). A question
**without a gold label** in a gold video (an annotator was unsure) is stood for by the labelled questions of its video,
which is right if unsure questions are no harder than the others of their video; a video with no label at all counts as
not drawn. The arithmetic is in `eval.stats.prediction_powered`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from eval.stats.means import Estimate, cluster_mean, cluster_se, cluster_sums, difference_interval, jsonable
from eval.stats.prediction_powered import Fit, Sums, fit

MIN_GOLD_CLUSTERS = 20
ESTIMANDS = ("benchmark", "population")


@dataclass(frozen=True)
class Debiased:
    """A mean of gold correctness from verdicts on all questions and gold labels on some videos.

    Attributes:
        mean: the estimate.
        se: its standard error, clustered by video.
        low: lower end of the 95 % interval, which is not symmetric about the mean (see `prediction_powered.fit`).
        high: upper end of it.
        lam: the weight that the verdicts got, PPI++'s lambda: 0 leaves them out, 1 takes them at their word.
        n: questions.
        clusters: videos.
        gold_n: questions with a gold label.
        gold_clusters: videos with one.
        naive: what the verdicts alone say, over the questions that have one; its interval knows nothing of the judge's
            errors.
        gold_only: what the gold labels alone say, by the same method.
        estimand: "benchmark" or "population".
    """

    mean: float
    se: float
    low: float
    high: float
    lam: float
    n: int
    clusters: int
    gold_n: int
    gold_clusters: int
    naive: Estimate
    gold_only: Estimate
    estimand: str

    def as_dict(self) -> dict:
        """The fields as JSON values (NaN becomes null)."""
        fields = asdict(self) | {"naive": self.naive.as_dict(), "gold_only": self.gold_only.as_dict()}
        return jsonable(fields)


def debiased_mean(
    verdicts: Sequence[float | None],
    clusters: Sequence,
    gold: Sequence[float | None],
    estimand: str = "benchmark",
    lam: float | None = None,
    min_gold_clusters: int = MIN_GOLD_CLUSTERS,
) -> Debiased:
    """Accuracy by gold standards, from a judge's verdicts on all questions and gold labels on some videos.

    Args:
        verdicts: [N] the judge's verdicts in 0–1; None without one.
        clusters: [N] hashable labels, such as video ids.
        gold: [N] gold labels in 0–1; None without one.
        estimand: "benchmark" or "population", see the head of this file.
        lam: a lambda of one's own in 0–1 in place of the tuned one.
        min_gold_clusters: with fewer gold videos an interval is refused; the coverage was measured from 20 on
            (`benchmarks/debias_coverage.py`).

    Raises:
        ValueError: if the lengths differ, a value lies outside its range, there is no verdict at all, or there are too
            few gold videos.
    """
    verdicts, gold = check_rows(verdicts, "verdicts"), check_rows(gold, "gold")
    naive_rows = ~np.isnan(verdicts)
    if not naive_rows.any():
        raise ValueError("verdicts: there is none, so there is nothing to debias")
    if len(clusters) == len(verdicts):
        kept = [label for label, keep in zip(clusters, naive_rows) if keep]
        naive = cluster_mean(verdicts[naive_rows], kept, bounds=(0.0, 1.0))
        return _debiased(filled(verdicts), clusters, gold, estimand, lam, min_gold_clusters, naive, paired=False)
    raise ValueError(f"{len(verdicts)} verdicts but {len(clusters)} cluster labels")


def debiased_difference(
    verdicts_a: Sequence[float | None],
    verdicts_b: Sequence[float | None],
    clusters: Sequence,
    gold_a: Sequence[float | None],
    gold_b: Sequence[float | None],
    estimand: str = "benchmark",
    lam: float | None = None,
    min_gold_clusters: int = MIN_GOLD_CLUSTERS,
) -> Debiased:
    """How much more often model ``a`` is right than model ``b`` on the same questions, by gold standards.

    As :func:`debiased_mean` for the differences ``a - b``, in −1–1. A question counts as labelled if both models'
    answers to it are.

    Args:
        verdicts_a: [N] verdicts on the first model's answers; None without one.
        verdicts_b: [N] verdicts on the second model's answers to the same questions.
        clusters: [N] hashable labels, such as video ids.
        gold_a: [N] gold labels of the first model's answers; None without one.
        gold_b: [N] gold labels of the second model's answers.
        estimand: "benchmark" or "population".
        lam: a lambda of one's own in 0–1 in place of the tuned one.
        min_gold_clusters: with fewer gold videos an interval is refused.

    Raises:
        ValueError: as in :func:`debiased_mean`.
    """
    a, b = check_rows(verdicts_a, "verdicts_a"), check_rows(verdicts_b, "verdicts_b")
    gold_a, gold_b = check_rows(gold_a, "gold_a"), check_rows(gold_b, "gold_b")
    if not len(a) == len(b) == len(clusters) == len(gold_a) == len(gold_b):
        raise ValueError("verdicts, clusters and gold labels of both models must be of the same rows")
    both = ~np.isnan(a - b)
    if not both.any():
        raise ValueError("verdicts: no question has one for both models")
    sizes, sums = cluster_sums((a - b)[both], [label for label, keep in zip(clusters, both) if keep])
    mean = float(sums.sum() / sizes.sum())
    low, high = difference_interval(sums, sizes, mean)
    se = cluster_se(sums, sizes, mean) if len(sizes) > 1 else float("nan")
    naive = Estimate(mean, se, max(low, -1.0), min(high, 1.0), int(sizes.sum()), len(sizes))
    verdicts, gold = filled(a) - filled(b), gold_a - gold_b
    return _debiased(verdicts, clusters, gold, estimand, lam, min_gold_clusters, naive, paired=True)


def sums_by_video(verdicts: np.ndarray, clusters: Sequence, gold: np.ndarray, paired: bool = False) -> Sums:
    """The sums that the estimate is made of: verdicts [N] without gaps, gold [N] with NaN where there is no label.

    Raises:
        ValueError: if the lengths differ.
    """
    if not len(verdicts) == len(clusters) == len(gold):
        raise ValueError(f"{len(verdicts)} verdicts, {len(clusters)} cluster labels and {len(gold)} gold labels")
    numbers: dict = {}
    index = np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=int)
    count = len(numbers)
    has = ~np.isnan(gold)
    sizes = np.bincount(index, minlength=count).astype(float)  # [G]
    labels = np.bincount(index[has], minlength=count).astype(float)
    drawn = labels > 0
    scale = sizes[drawn] / labels[drawn]  # a question without a label is stood for by those of its video
    sums = [np.bincount(index[has], weights=values[has], minlength=count)[drawn] for values in (gold, verdicts)]
    spread = np.cov(gold[has], verdicts[has], ddof=0) if has.any() else np.zeros((2, 2))
    return Sums(
        sizes=sizes,
        verdicts=np.bincount(index, weights=verdicts, minlength=count),
        gold_sizes=sizes[drawn],
        gold=sums[0] * scale,
        gold_verdicts=sums[1] * scale,
        gold_variance=spread[0, 0],
        verdict_variance=spread[1, 1],
        covariance=spread[0, 1],
        labelled=np.asarray(labels.sum() / max(sizes[drawn].sum(), 1.0)),
        paired=paired,
    )


def _debiased(
    verdicts: np.ndarray,
    clusters: Sequence,
    gold: np.ndarray,
    estimand: str,
    lam: float | None,
    least: int,
    naive: Estimate,
    paired: bool,
) -> Debiased:
    if estimand not in ESTIMANDS:
        raise ValueError(f"estimand must be one of {', '.join(ESTIMANDS)}, got '{estimand}'")
    if lam is not None and not 0.0 <= lam <= 1.0:
        raise ValueError(f"lam must lie in 0–1, got {lam}")
    sums = sums_by_video(verdicts, clusters, gold, paired)
    drawn, least = sums.gold.shape[-1], max(least, 3)
    if drawn < least:
        raise ValueError(
            f"gold labels on {drawn} videos are too few for an interval: label {least - drawn} more, drawn at random"
        )
    benchmark, labels = estimand == "benchmark", int((~np.isnan(gold)).sum())
    found, alone = fit(sums, benchmark, lam), fit(sums, benchmark, lam=0.0)
    return Debiased(
        **_numbers(found),
        lam=float(found.lam),
        n=len(verdicts),
        clusters=sums.sizes.shape[-1],
        gold_n=labels,
        gold_clusters=drawn,
        naive=naive,
        gold_only=Estimate(**_numbers(alone), n=labels, clusters=drawn),
        estimand=estimand,
    )


def _numbers(found: Fit) -> dict[str, float]:
    return {name: float(getattr(found, name)) for name in ("mean", "se", "low", "high")}


def check_rows(values: Sequence[float | None], name: str) -> np.ndarray:
    """Values in 0–1 as an array [N] with NaN for None.

    Raises:
        ValueError: naming the row whose value lies outside 0–1, or if there are no rows.
    """
    array = np.array([np.nan if value is None else float(value) for value in values])
    if not len(array):
        raise ValueError(f"{name} must be a non-empty list")
    for row, value in enumerate(values):
        if value is not None and not 0.0 <= array[row] <= 1.0:
            raise ValueError(f"{name}: row {row + 1} is {value}; it must lie in 0–1, or be None")
    return array


def filled(verdicts: np.ndarray) -> np.ndarray:
    """The verdicts with their mean where there is none."""
    return np.where(np.isnan(verdicts), np.nanmean(verdicts), verdicts)
