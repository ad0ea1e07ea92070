"""Accuracy at equal length: a sensitivity figure beside the headline, never in its place.

Judges tend to favour longer answers, and longer answers also say more. Regressing length out takes out both: what a
judge gave for length alone, and what a complete answer rightly earned. So the figure tells how much of a result hangs
together with length, not what the result would be with a fair judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.stats.means import Estimate, cluster_sums, jsonable, student_quantile, vector

MODEL = "least squares on log(1 + words)"


@dataclass(frozen=True)
class LengthSensitivity:
    """What a linear model makes of a mean at another length.

    Attributes:
        adjusted: the mean at the reference length, with an interval clustered by video.
        slope: change of the value per unit of log(1 + words), with its interval.
        reference: the length in words that `adjusted` stands for; None for a difference at equal length.
        model: name of the model.
    """

    adjusted: Estimate
    slope: Estimate
    reference: float | None
    model: str = MODEL

    def as_dict(self) -> dict:
        """The fields as JSON values (NaN becomes null)."""
        fields = {"adjusted": self.adjusted.as_dict(), "slope": self.slope.as_dict()}
        return jsonable({**fields, "reference": self.reference, "model": self.model})


def length_sensitivity(
    values: Sequence[float],
    words: Sequence[float],
    clusters: Sequence,
    other_words: Sequence[float] | None = None,
    reference: float | None = None,
) -> LengthSensitivity | None:
    """A mean, or a paired difference, at equal length, by a linear model on ``log(1 + words)``.

    For a paired difference of two systems (`other_words` given) the regressor is ``log(1 + words) - log(1 +
    other_words)`` and the adjusted figure the difference where it is 0: both answers of one length. For one system it
    is the mean at `reference` words, by default at the mean of ``log(1 + words)``, where it equals the plain mean; give
    the same reference to several systems to compare them. The interval is the cluster-robust sandwich's (Liang and
    Zeger, 1986) with Student's t, as in `eval.stats.cluster_mean`.

    Args:
        values: [N] verdicts of one system, or differences ``a - b`` of two.
        words: [N] length of the system's (of a's) answers in words.
        clusters: [N] hashable labels, such as video ids.
        other_words: [N] length of b's answers, for differences.
        reference: length in words, for one system.

    Returns:
        None if length does not vary, or there are fewer than three clusters: no slope can be told then.

    Raises:
        ValueError: if there are no rows, the lengths differ, or a length is negative or not finite.
    """
    values = vector(values, "values")
    x = _log_words(words, "words", len(values))
    if other_words is not None:
        if reference is not None:
            raise ValueError("a difference at equal length has no reference length")
        x, centre = x - _log_words(other_words, "other_words", len(values)), 0.0
    else:
        centre = float(x.mean()) if reference is None else math.log1p(reference)
        reference = math.expm1(centre)
    groups = len(cluster_sums(values, clusters)[0])
    around = x - x.mean()
    if groups < 3 or float(around @ around) < 1e-12:
        return None
    slope = float(around @ values) / float(around @ around)
    residual = values - values.mean() - slope * around
    shift = centre - float(x.mean())
    n = len(values)
    # Each estimate is a weighted sum of the values; its clustered variance is that of the weighted residuals.
    by_slope = around / float(around @ around)  # [N]
    by_level = 1 / n + shift * by_slope
    level = float(values.mean()) + shift * slope
    adjusted = _estimate(level, by_level * residual, clusters, n, groups)
    return LengthSensitivity(adjusted, _estimate(slope, by_slope * residual, clusters, n, groups), reference)


def _estimate(value: float, parts: np.ndarray, clusters: Sequence, n: int, groups: int) -> Estimate:
    sums = cluster_sums(parts, clusters)[1]  # [G]
    se = math.sqrt(groups / (groups - 1) * (n - 1) / max(n - 2, 1) * float((sums**2).sum()))
    half = student_quantile(groups - 2) * se
    return Estimate(value, se, value - half, value + half, n, groups)


def _log_words(words: Sequence[float], name: str, n: int) -> np.ndarray:
    words = vector(words, name)
    if len(words) != n:
        raise ValueError(f"{n} values but {len(words)} lengths in {name}")
    if words.min() < 0:
        raise ValueError(f"{name} holds {words.min():g}; a length in words cannot be negative")
    return np.log1p(words)
