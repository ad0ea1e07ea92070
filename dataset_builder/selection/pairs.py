"""From the scored answers of one question to its candidate pairs: best against worst, or all that pass.

Pure functions: no files, no models. Every question ends with pairs or as one drop with a reason, so that
``questions = questions with pairs + sum(drops)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from dataset_builder.judges.base import aggregate, judge_values
from dataset_builder.settings import PairsConfig
from dataset_builder.text import normalise

# Reasons for which a question gives no pair, in the order in which they are looked for.
NO_ANSWERS = "no_answers"  # no candidate at all
FLAGGED = "fewer_than_two_usable_answers"  # after leaving out empty, cut and refused answers
UNSCORED = "fewer_than_two_scored_answers"  # after leaving out answers that every judge failed on
NO_COMMON_JUDGE = "no_common_judge"  # no judge scored all candidates, so scores cannot be compared
IDENTICAL = "identical_answers"  # all candidates say the same
TIE = "tie"  # best and worst have the same score
MARGIN = "margin_too_small"
CHOSEN_LOW = "chosen_below_threshold"
REJECTED_HIGH = "rejected_above_threshold"
AMBIGUOUS = "tied_best_or_worst"  # only with the tie rule `drop`
HELD_OUT = "test_split"  # test questions are kept for the benchmark
DUPLICATE = "duplicate_question"
LEAK = "leak:"  # then the evaluation set and what matched
# Reasons for which a candidate pair goes; a question that loses all its pairs takes the reason of its widest.
QUESTION_CAP = "max_per_question"
VIDEO_CAP = "max_per_video"
CHOSEN_CAP = "max_chosen_per_member"
REJECTED_CAP = "max_rejected_per_member"
BALANCE = "length_balance"
UNCONFIRMED = "not_confirmed"
CONFIRM_ERROR = "confirm_error"
REASONS = (
    *(NO_ANSWERS, FLAGGED, UNSCORED, NO_COMMON_JUDGE, IDENTICAL, TIE, MARGIN, CHOSEN_LOW, REJECTED_HIGH, AMBIGUOUS),
    *(HELD_OUT, DUPLICATE, QUESTION_CAP, VIDEO_CAP, UNCONFIRMED, CONFIRM_ERROR, CHOSEN_CAP, REJECTED_CAP, BALANCE),
)

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


def pick(
    ids: Sequence[str],
    texts: Sequence[str],
    values: Sequence[float],
    rule: PairsConfig,
    labels: Callable[[Sequence[str]], Sequence[Hashable]] | None = None,
) -> tuple[list[tuple[int, int, float]], str | None]:
    """The candidate pairs among the comparable answers of one question, widest margin first.

    Args:
        ids: response ids; order decides nothing.
        texts: the answers.
        values: their aggregates (0–1) over the same judges, rounded.
        rule: which pairs are wanted; ``max_per_question`` is left to the caller.
        labels: of the texts, equal for answers that say the same; default: the normalised text.

    Returns:
        ``(index of chosen, index of rejected, margin)`` of each pair and None, or no pair and the reason. Answers of
        one label never make a pair. With ``all``, unless ``dedup.answers`` is ``none``, two labels make one pair only,
        the widest.
    """
    label = labels(texts) if labels else _Normalised(texts)
    place = _places(ids, texts, rule.ties)
    order = range(len(ids))
    best = min(order, key=lambda i: (-values[i], place[i]))
    lowest = sorted(order, key=lambda i: (values[i], place[i]))
    worst = next((i for i in lowest if label[i] != label[best]), None)
    if worst is None:
        return [], IDENTICAL
    if rule.select == "all" and (found := _all_pairs(values, label, place, rule)):
        return found, None
    margin = round(values[best] - values[worst], _DIGITS)
    if margin <= 0:
        return [], TIE
    if margin < rule.min_margin:
        return [], MARGIN
    if rule.min_chosen is not None and values[best] < rule.min_chosen:
        return [], CHOSEN_LOW
    if rule.select == "all" or (rule.max_rejected is not None and values[worst] > rule.max_rejected):
        return [], REJECTED_HIGH
    if rule.ties == "drop" and any(
        (values[i] == values[best] and label[i] != label[best])
        or (values[i] == values[worst] and label[i] not in (label[worst], label[best]))
        for i in order
    ):
        return [], AMBIGUOUS
    return [(best, worst, margin)], None


def _all_pairs(values, label, place, rule: PairsConfig) -> list[tuple[int, int, float]]:
    """Every pair that passes, widest margin first, then by the tie rule."""
    found = []
    for i, chosen in enumerate(values):
        if rule.min_chosen is not None and chosen < rule.min_chosen:
            continue
        for j, rejected in enumerate(values):
            margin = round(chosen - rejected, _DIGITS)
            if margin <= 0 or margin < rule.min_margin or label[i] == label[j]:
                continue
            if rule.max_rejected is None or rejected <= rule.max_rejected:
                found.append((i, j, margin))
    found.sort(key=lambda pair: (-pair[2], place[pair[0]], place[pair[1]]))
    if rule.dedup.answers == "none":
        return found
    widest: dict[frozenset, tuple[int, int, float]] = {}
    for pair in found:
        widest.setdefault(frozenset((label[pair[0]], label[pair[1]])), pair)
    return list(widest.values())


class _Normalised:
    """Normalised texts, made when they are asked for: of most answers nobody asks."""

    def __init__(self, texts: Sequence[str]):
        self.texts, self.done = texts, {}

    def __getitem__(self, index: int) -> str:
        if index not in self.done:
            self.done[index] = normalise(self.texts[index])
        return self.done[index]


def _places(ids: Sequence[str], texts: Sequence[str], ties: str) -> Sequence:
    """What orders answers of equal score: the smaller one is taken."""
    if ties == "shorter":
        return [(len(text), key) for text, key in zip(texts, ids)]
    if ties == "longer":
        return [(-len(text), key) for text, key in zip(texts, ids)]
    return ids


def select_pair(
    question_id: str,
    responses: list[dict],
    min_margin: float = 0.0,
    weights: dict[str, float] | None = None,
    rule: PairsConfig | None = None,
) -> Outcome:
    """The pair with the widest margin among the answers of one question.

    Args:
        question_id: goes into the outcome.
        responses: rows of the ``responses`` config (``response_id, response, flags, scores`` are read).
        min_margin: least difference of the aggregates (0–1) that makes a pair; equal scores never do.
        weights: weight of each judge in the aggregate; None weighs all alike.
        rule: all rules of the choice, in place of ``min_margin``.

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
    ids, texts = [r["response_id"] for r in candidates], [r["response"] for r in candidates]
    values = [common_score(r, common, weights) for r in candidates]
    found, outcome.drop = pick(ids, texts, values, rule or PairsConfig(min_margin=min_margin))
    if found:
        best, worst, margin = found[0]
        outcome.pair = Pair(
            question_id, ids[best], ids[worst], values[best], values[worst], margin, judges=tuple(sorted(common))
        )
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
