"""From the scored answers of one question to at most one preference pair: best against worst.

Pure functions: no files, no models. Every question ends as a pair or as one drop with a reason, so that
``questions = pairs + sum(drops)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from dataset_builder.judges.base import aggregate, judge_values
from dataset_builder.text import normalise

# Reasons for which a question gives no pair, in the order in which they are looked for.
NO_ANSWERS = "no_answers"  # no candidate at all
FLAGGED = "fewer_than_two_usable_answers"  # after leaving out empty, cut and refused answers
UNSCORED = "fewer_than_two_scored_answers"  # after leaving out answers that every judge failed on
NO_COMMON_JUDGE = "no_common_judge"  # no judge scored all candidates, so scores cannot be compared
IDENTICAL = "identical_answers"  # all candidates say the same
TIE = "tie"  # best and worst have the same score
MARGIN = "margin_too_small"
HELD_OUT = "test_split"  # test questions are kept for the benchmark
REASONS = (NO_ANSWERS, FLAGGED, UNSCORED, NO_COMMON_JUDGE, IDENTICAL, TIE, MARGIN, HELD_OUT)

EXCLUDING_FLAGS = frozenset({"empty", "cut", "refusal"})
_DIGITS = 9  # differences below this are rounding, not preference


@dataclass(frozen=True)
class Pair:
    """The best and the worst answer of a question; scores and margin are aggregates in 0–1."""

    question_id: str
    chosen: str  # response ids
    rejected: str
    score_chosen: float
    score_rejected: float
    margin: float
    judges: tuple[str, ...]  # the judges common to all candidates, which the scores are made of


@dataclass
class Outcome:
    """What became of one question: a pair, or the reason why there is none."""

    question_id: str
    pair: Pair | None = None
    drop: str | None = None
    excluded: Counter = field(default_factory=Counter)  # answers left out, by flag (or "unscored")


@dataclass
class Selection:
    """Outcomes of many questions with their counts; ``len(outcomes) == len(pairs) + sum(drops.values())``."""

    pairs: list[Pair]
    drops: dict[str, int]
    excluded: dict[str, int]
    outcomes: list[Outcome]


def scored_judges(response: dict) -> set[str]:
    """Names of the judges that gave this answer a score on every one of their criteria."""
    return {name for name, value in judge_values(response["scores"]).items() if value is not None}


def select_pair(
    question_id: str, responses: list[dict], min_margin: float = 0.0, weights: dict[str, float] | None = None
) -> Outcome:
    """Best against worst among the answers of one question.

    Args:
        question_id: goes into the outcome.
        responses: rows of the ``responses`` config (``response_id, response, flags, scores`` are read).
        min_margin: least difference of the aggregates (0–1) that makes a pair; equal scores never do.
        weights: weight of each judge in the aggregate; None weighs all alike.

    Returns:
        The outcome. Answers flagged empty, cut or refused, and answers that no judge could score, are left out and
        counted; the others are compared over the judges that scored all of them. Equal scores are ordered by response
        id (a hash, so that no member is favoured), whatever the order of the input. The rejected answer is the worst
        whose normalised text differs from the chosen one's.
    """
    outcome = Outcome(question_id)
    if not responses:
        outcome.drop = NO_ANSWERS
        return outcome
    usable = []
    for response in responses:
        flags = sorted(EXCLUDING_FLAGS.intersection(response["flags"]))
        outcome.excluded.update(flags[:1])  # one count an answer, so that the counts add up
        if not flags:
            usable.append(response)
    if len(usable) < 2:
        outcome.drop = FLAGGED
        return outcome
    judges = [scored_judges(response) for response in usable]
    outcome.excluded["unscored"] += sum(not names for names in judges)
    candidates = [response for response, names in zip(usable, judges) if names]
    if len(candidates) < 2:
        outcome.drop = UNSCORED
        return outcome
    common = set.intersection(*(names for names in judges if names))
    common = {name for name in common if (weights or {}).get(name, 1.0) > 0}
    if not common:
        outcome.drop = NO_COMMON_JUDGE
        return outcome
    values = {r["response_id"]: common_score(r, common, weights) for r in candidates}
    texts = {r["response_id"]: normalise(r["response"]) for r in candidates}
    best = min(values, key=lambda key: (-values[key], key))
    others = [key for key in values if texts[key] != texts[best]]
    if not others:
        outcome.drop = IDENTICAL
        return outcome
    worst = min(others, key=lambda key: (values[key], key))
    margin = round(values[best] - values[worst], _DIGITS)
    if margin <= 0:
        outcome.drop = TIE
    elif margin < min_margin:
        outcome.drop = MARGIN
    else:
        outcome.pair = Pair(question_id, best, worst, values[best], values[worst], margin, judges=tuple(sorted(common)))
    return outcome


def common_score(response: dict, judges: set[str], weights: dict[str, float] | None) -> float:
    """Aggregate (0–1) of one answer over the given judges, rounded so that rounding noise cannot make a preference."""
    value = aggregate([score for score in response["scores"] if score["judge"] in judges], weights)
    return round(value, _DIGITS)


def select_pairs(
    questions: Iterable[tuple[str, str, list[dict]]],
    min_margin: float = 0.0,
    weights: dict[str, float] | None = None,
) -> Selection:
    """Select over many questions.

    Args:
        questions: (question_id, split, responses) for every question, also those without answers.
        min_margin: see :func:`select_pair`.
        weights: see :func:`select_pair`.

    Returns:
        The selection; questions of the test split give no pair and are counted as ``test_split``.
    """
    outcomes, drops, excluded = [], Counter(), Counter()
    for question_id, split, responses in questions:
        if split == "test":
            outcome = Outcome(question_id, drop=HELD_OUT)
        else:
            outcome = select_pair(question_id, responses, min_margin, weights)
        outcomes.append(outcome)
        excluded.update(outcome.excluded)
        if outcome.drop:
            drops[outcome.drop] += 1
    pairs = [outcome.pair for outcome in outcomes if outcome.pair is not None]
    ordered = {reason: drops[reason] for reason in REASONS if drops[reason]}
    return Selection(pairs, ordered, {key: n for key, n in sorted(excluded.items()) if n}, outcomes)
