"""What a judge is, and how several judges' scores become one number."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dataset_builder.errors import KitError

if TYPE_CHECKING:
    from dataset_builder.media import Frames


@dataclass(frozen=True)
class Criterion:
    """One thing a judge scores, and the range it declares for it (``low`` is worst, ``high`` best)."""

    name: str
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"criterion {self.name!r}: low must be below high, not {self.low} and {self.high}")


@dataclass(frozen=True, eq=False)
class JudgeItem:
    """One answer to be judged.

    Attributes:
        question: the question's text.
        answers: reference answers; may be empty.
        frames: the video, for judges with ``needs_frames``; None when it could not be read.
        response: the answer to judge.
        caption: what is known of the video in words, for judges that read it instead of looking; None without one.
    """

    question: str
    answers: list[str]
    frames: Frames | None
    response: str
    caption: str | None = None


@dataclass(frozen=True)
class Score:
    """One score of one criterion, as it stands in the dataset's ``scores`` column.

    Attributes:
        judge: the judge's name.
        judge_revision: changes whenever the judge does (weights, code).
        settings_hash: hash of the settings it judged with.
        criterion: which of its criteria.
        score: from ``low`` to ``high``, or None with ``error`` saying why there is none.
        low: worst possible score.
        high: best possible score.
        rationale: the judge's reasons, where it gives any.
        error: one line, or None.
    """

    judge: str
    judge_revision: str
    settings_hash: str
    criterion: str
    score: float | None
    low: float
    high: float
    rationale: str | None = None
    error: str | None = None


@runtime_checkable
class Judge(Protocol):
    """A scoring function over (question, references, frames, answer).

    ``settings`` is everything besides ``revision`` that decides a score; ``settings_hash`` is its hash. A judge with
    ``needs_frames`` looks at ``num_frames`` evenly spaced frames. ``model_name`` is what it asks as a configuration
    names it (None for a judge without a model), ``reported`` what an endpoint said so far that it is.
    """

    name: str
    kind: str
    revision: str
    model_name: str | None
    reported: set[str]
    settings: dict[str, Any]
    settings_hash: str
    criteria: tuple[Criterion, ...]
    needs_frames: bool
    num_frames: int
    weight: float

    def score(self, items: list[JudgeItem]) -> list[list[Score]]:
        """One list per item with one Score per criterion, in order. What fails is a Score with an error."""


def settings_hash(settings: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the settings' canonical JSON (sorted keys, no spaces).

    Raises:
        ValueError: the settings hold NaN or infinity, which JSON cannot.
        TypeError: the settings hold something that JSON cannot.
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_scores(
    judge: Judge, values: Iterable[float | None], rationale: str | None = None, error: str | None = None
) -> list[Score]:
    """A judge's Scores for one item, one value per criterion; a value outside the declared range becomes an error."""
    scores = []
    for criterion, value in zip(judge.criteria, values, strict=True):
        problem, number = error, None if value is None else float(value)
        if number is None:
            problem = problem or "the judge gave no score"
        elif not criterion.low <= number <= criterion.high:  # also true of NaN
            problem = f"score {number} is outside the declared range {criterion.low} to {criterion.high}"
        scores.append(
            Score(
                judge=judge.name,
                judge_revision=judge.revision,
                settings_hash=judge.settings_hash,
                criterion=criterion.name,
                score=None if problem else number,
                low=criterion.low,
                high=criterion.high,
                rationale=rationale,
                error=problem,
            )
        )
    return scores


def error_scores(judge: Judge, reason: str) -> list[Score]:
    """One error Score per criterion, for an item that cannot be judged."""
    return make_scores(judge, [None] * len(judge.criteria), error=reason)


def aggregate(scores: Iterable[Score | Mapping[str, Any]], weights: Mapping[str, float] | None = None) -> float | None:
    """One number from 0 to 1 out of all scores of one answer.

    Each score is normalised by its declared range; a judge is the mean of its criteria; the judges are averaged with
    their weights. The order of the scores does not matter.

    Args:
        scores: Scores, or rows of the ``scores`` column.
        weights: weight per judge name; a judge that is not named has 1. A judge of weight 0 is only shown: neither its
            scores nor its errors count.

    Returns:
        None when there is no score, or when a counted score is missing: a mean over fewer judges could not be compared.

    Raises:
        KitError: a weight is negative or not a number.
    """
    values = judge_values(scores)
    counted = {}
    for judge in values:
        weight = 1.0 if weights is None else float(weights.get(judge, 1.0))
        if not (math.isfinite(weight) and weight >= 0):
            raise KitError(f"judge '{judge}': weight must be 0 or more, not {weight}")
        if weight > 0:
            counted[judge] = weight
    if not counted or any(values[judge] is None for judge in counted):
        return None
    total = math.fsum(counted.values())
    value = math.fsum(weight * values[judge] for judge, weight in counted.items()) / total
    return min(1.0, max(0.0, value))  # rounding of the weights only


def disagreement(scores: Iterable[Score | Mapping[str, Any]]) -> float | None:
    """How far apart the judges are on one answer: highest minus lowest judge value, each 0 to 1.

    None with fewer than two judges that scored it.
    """
    values = [value for value in judge_values(scores).values() if value is not None]
    return max(values) - min(values) if len(values) > 1 else None


def judge_values(scores: Iterable[Score | Mapping[str, Any]]) -> dict[str, float | None]:
    """Each judge's value from 0 to 1: the mean of its normalised criteria, None if one of them is missing."""
    parts: dict[str, list[float | None]] = {}
    for score in scores:
        row = score if type(score) is dict or isinstance(score, Mapping) else vars(score)
        value = row["score"]
        normal = None if value is None else (value - row["low"]) / (row["high"] - row["low"])
        parts.setdefault(row["judge"], []).append(normal)
    return {
        judge: None if any(value is None for value in values) else math.fsum(values) / len(values)
        for judge, values in parts.items()
    }
