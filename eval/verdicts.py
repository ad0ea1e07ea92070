"""From a judge's scores to right or wrong: one place, so that every way of evaluating says the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dataset_builder.answers import is_refusal

if TYPE_CHECKING:
    from dataset_builder.judges import Judge, JudgeItem, Score

RIGHT_FROM = 0.5  # share of a criterion's range from which an answer counts as right
VERDICT_CRITERIA = ("match", "correct")  # criteria that say right or wrong; otherwise a judge's first criterion does
REFUSED, SILENT = "the model refuses to answer", "the model gives no answer"


def verdict(scores: Sequence[Score]) -> dict[str, Any]:
    """What one answer's scores come to.

    Returns:
        ``correct`` (1 if the criterion ``match`` or ``correct``, else the first one, reaches half of its declared
        range; 0 if not; None if the judge could not say), ``score`` (aggregate over all criteria, 0 to 1), ``error``,
        ``reason`` (the judge's), ``scores`` (raw value by criterion) and ``probability`` (of being right, 0 to 1, where
        the judge gives more than yes and no).
    """
    from dataset_builder.judges import aggregate

    if not scores:
        return failed("the judge returned no score")
    decisive = next((s for s in scores if s.criterion in VERDICT_CRITERIA), scores[0])
    if decisive.score is None:
        return failed(decisive.error or "the judge gave no score")
    share = (decisive.score - decisive.low) / (decisive.high - decisive.low)
    uncertain = decisive.criterion in VERDICT_CRITERIA and 0 < share < 1
    return {
        "correct": int(share >= RIGHT_FROM),
        "score": aggregate(list(scores), None),
        "error": None,
        "reason": decisive.rationale,
        "scores": {s.criterion: s.score for s in scores},
        "probability": share if uncertain else None,
    }


def failed(reason: str) -> dict[str, Any]:
    """No verdict, and why: neither right nor wrong."""
    return {"correct": None, "score": None, "error": reason, "reason": None, "scores": None, "probability": None}


def wrong(reason: str, judge: Judge) -> dict[str, Any]:
    """An answer that needs no judge to be wrong: the lowest score in each of the judge's criteria."""
    lowest = {criterion.name: criterion.low for criterion in judge.criteria}
    return {**failed(""), "correct": 0, "score": 0.0, "error": None, "reason": reason, "scores": lowest}


def judge_answers(answers: Sequence[str | Exception], judge_items: Sequence[JudgeItem], judge: Judge) -> list[dict]:
    """Verdicts on answers, in order.

    A refusal by the model, or silence, is a wrong answer and costs no call; were it left out, a model could raise its
    accuracy by refusing what is hard. A failure of the judge is no verdict.

    Args:
        answers: texts, or exceptions that explain why there is none (such as a video that cannot be read).
        judge_items: what the judge is shown, one for each answer.
        judge: whose verdicts are asked for.
    """
    known = [_without_judge(answer, judge) for answer in answers]
    asked = [item for item, row in zip(judge_items, known, strict=True) if row is None]
    judged = iter(judge.score(asked) if asked else [])
    return [row if row is not None else verdict(next(judged)) for row in known]


def _without_judge(answer: str | Exception, judge: Judge) -> dict[str, Any] | None:
    if not isinstance(answer, str):
        return failed(str(answer))
    if not answer.strip():
        return wrong(SILENT, judge)
    return wrong(REFUSED, judge) if is_refusal(answer) else None
