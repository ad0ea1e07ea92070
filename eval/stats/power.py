"""The smallest true difference between two models that a set of questions can be expected to show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eval.stats.means import cluster_se, cluster_sums, student_quantile, vector


def smallest_difference(
    differences: Sequence[float], clusters: Sequence, power: float = 0.8, level: float = 0.05
) -> float | None:
    """Smallest difference that a paired, two-sided test on these questions finds with the given power.

    ``(t_{1 - level/2} + t_{power}) * se`` with the clustered standard error of the observed paired differences (Bloom,
    *Minimum Detectable Effects*, 1995) and ``G - 1`` degrees of freedom. It tells what the set could have shown,
    whatever it did show; it does not depend on the observed difference but through its noise.

    Args:
        differences: [N] ``a - b`` per question.
        clusters: [N] hashable labels, such as video ids.
        power: probability of finding it, above 0.5.
        level: of the test.

    Returns:
        On the scale of the differences; None with one cluster, or if the two never differ: the noise is unknown then.

    Raises:
        ValueError: if there are no rows, the lengths differ, a value is not finite, or `power` or `level` is no
            probability that makes sense.
    """
    differences = vector(differences, "differences")
    _check(power, level)
    sizes, sums = cluster_sums(differences, clusters)
    if len(sizes) < 2:
        return None
    se = cluster_se(sums, sizes, float(differences.mean()))
    return _detectable(se, len(sizes) - 1, power, level) if se > 1e-12 else None


def planned_difference(
    videos: int, questions: float, disagreement: float, icc: float = 0.3, power: float = 0.8, level: float = 0.05
) -> float:
    """As :func:`smallest_difference`, for a set that is only planned.

    Args:
        videos: how many there will be.
        questions: about each of them, in the mean.
        disagreement: expected share of questions that exactly one of the two models answers rightly.
        icc: correlation of the differences of two questions about one video.
        power: probability of finding the difference, above 0.5.
        level: of the test.

    Returns:
        Difference of two accuracies in 0–1.

    Raises:
        ValueError: if a number is outside its range.
    """
    _check(power, level)
    if videos < 2 or questions < 1 or not 0 < disagreement <= 1 or not 0 <= icc <= 1:
        raise ValueError("a plan needs 2 videos or more, 1 question or more, and rates in 0–1")
    se = math.sqrt(disagreement * (1 + (questions - 1) * icc) / (questions * videos))
    return min(1.0, _detectable(se, videos - 1, power, level))


def _detectable(se: float, df: int, power: float, level: float) -> float:
    return (student_quantile(df, 1 - level) + student_quantile(df, 2 * power - 1)) * se


def _check(power: float, level: float) -> None:
    if not 0.5 < power < 1 or not 0 < level < 1:
        raise ValueError(f"power must lie in 0.5–1 and level in 0–1, got {power} and {level}")
