"""Which extrapolation step a round takes: a grid scored by log-probs, the best few of it by judged answers.

Generating and judging answers on the validation split is the expensive part of the search. Held-out preference pairs
need only log-probs of answers that exist already, so they rank the whole grid, and only the front runners answer. No
extrapolation (alpha 0) is always judged: on a run whose learning rate is tuned it is often the best choice.

The grid search over alpha on a validation set is that of ExPO (arXiv 2404.16792); the pre-selection is the kit's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dataset_builder.errors import KitError


@dataclass(frozen=True)
class AlphaChoice:
    """What a search found.

    Attributes:
        alpha: the chosen step.
        accuracy: its judged accuracy on validation, 0–1.
        curve: one dict per alpha in ascending order: ``alpha``, ``preference_accuracy`` (0–1), ``preference_margin``
            (nats), ``accuracy`` (0–1). What was not measured, or was not a finite number, is None.
    """

    alpha: float
    accuracy: float
    curve: list[dict]


def search_alpha(
    alphas: Iterable[float],
    preference: Callable[[float], tuple[float, float]] | None,
    judged: Callable[[float], float],
    keep: int | None = 2,
) -> AlphaChoice:
    """Choose an extrapolation step.

    Args:
        alphas: the grid, in any order; 0 is added when it is missing, repetitions count once.
        preference: alpha → (accuracy, margin) on held-out pairs, from log-probs only; called once for every alpha.
            None when there are no such pairs: every alpha is judged then.
        judged: alpha → accuracy on validation; called once for 0 and for the `keep` alphas that are best by
            (preference accuracy, preference margin), ties to the smaller step.
        keep: how many pass the pre-selection, 0 not counted unless it is one of them; None judges every alpha.

    Returns:
        The alpha of the best judged accuracy; ties go to the smaller step, then to the negative one.

    Raises:
        KitError: when an alpha is not a finite number, `keep` is below 1, or no judged accuracy is a finite number.
    """
    grid = _grid(alphas)
    if keep is not None and keep < 1:
        raise KitError(f"alpha search: keep is {keep}; at least one alpha has to be judged (None judges all of them)")
    points = {a: _point(a, preference) for a in grid}
    if keep is None or preference is None:
        finalists = set(grid)
    else:
        finalists = set(sorted(grid, key=lambda a: _promise(points[a]), reverse=True)[:keep]) | {0.0}
    for alpha in grid:  # the smallest step first
        if alpha in finalists:
            points[alpha]["accuracy"] = _finite(judged(alpha))
    measured = [a for a in grid if points[a]["accuracy"] is not None]
    if not measured:
        raise KitError("alpha search: no alpha, 0 included, has an accuracy on validation; the round has diverged")
    best = max(measured, key=lambda a: points[a]["accuracy"])  # the first of equals, so the smallest step
    return AlphaChoice(best, points[best]["accuracy"], [points[a] for a in sorted(grid)])


def plateau(
    history: Sequence[dict], patience: int = 1, start_accuracy: float | None = None, min_gain: float = 0.0
) -> bool:
    """Whether the rounds should stop: neither training nor extrapolating has helped lately.

    The rule: a round is idle when its validation accuracy is not above the best of everything before it **and** it
    chose alpha 0. The run stops after `patience` idle rounds in a row. A round that extrapolates is never idle, even
    below the best so far: some step did help it.

    Args:
        history: the rounds' metrics in order, with ``validation_accuracy`` (0–1) and ``alpha``.
        patience: idle rounds in a row that end the run.
        start_accuracy: the base's validation accuracy; without it the first round cannot be idle.
        min_gain: a round has to be above the best so far by more than this, in accuracy.

    Raises:
        KitError: when `patience` is below 1 or `min_gain` is negative.
    """
    if patience < 1 or min_gain < 0:
        raise KitError(f"plateau: patience is {patience} and min_gain {min_gain}; they must be at least 1 and 0")
    best = -math.inf if start_accuracy is None else start_accuracy
    idle = 0
    for metrics in history:
        accuracy = metrics["validation_accuracy"]
        helped = accuracy > best + min_gain or metrics["alpha"] != 0
        idle = 0 if helped else idle + 1
        best = max(best, accuracy)
    return idle >= patience


def _grid(alphas: Iterable[float]) -> list[float]:
    """Distinct alphas with 0, the smallest step first; of two equal steps the negative one, which holds back."""
    grid = {0.0}
    for alpha in alphas:
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise KitError(f"alpha search: {alpha!r} is not a finite number")
        grid.add(float(alpha))
    return sorted(grid, key=lambda a: (abs(a), a))


def _point(alpha: float, preference: Callable[[float], tuple[float, float]] | None) -> dict:
    accuracy, margin = (None, None) if preference is None else preference(alpha)
    return {
        "alpha": alpha,
        "preference_accuracy": _finite(accuracy),
        "preference_margin": _finite(margin),
        "accuracy": None,
    }


def _promise(point: dict) -> tuple[float, float, float, float]:
    """For ranking by preference: what is not a number (a step too far overflows) comes last."""
    values = (point["preference_accuracy"], point["preference_margin"])
    if None in values:
        values = (-math.inf, -math.inf)
    return (*values, -abs(point["alpha"]), -point["alpha"])


def _finite(value: float | None) -> float | None:
    """The number, or None: metrics are saved as JSON, which knows no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
