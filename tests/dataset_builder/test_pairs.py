"""Best against worst: the margin, what is left out and why, and that every question is accounted for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builder.answers import flags_of, mark_duplicates
from dataset_builder.selection import pairs
from dataset_builder.selection.pairs import select_pair, select_pairs
from dataset_builder.text import normalise


def score(judge: str, value: float | None, criterion: str = "c", low: float = 0.0, high: float = 1.0) -> dict:
    error = None if value is not None else "failed"
    fixed = {"judge_revision": "1", "settings_hash": "0", "rationale": None}
    return {"judge": judge, "criterion": criterion, "score": value, "low": low, "high": high, "error": error, **fixed}


def answer(name: str, text: str, *scores: dict, flags: tuple[str, ...] = ()) -> dict:
    return {"response_id": name, "response": text, "flags": list(flags), "scores": list(scores)}


def one(name: str, text: str, value: float | None, flags: tuple[str, ...] = ()) -> dict:
    return answer(name, text, score("j", value), flags=flags)


def test_best_against_worst():
    rows = [one("a", "red", 0.5), one("b", "blue", 0.9), one("c", "green", 0.1)]
    pair = select_pair("q", rows, 0.1).pair
    assert (pair.chosen, pair.rejected, pair.score_chosen, pair.score_rejected, pair.margin) == (
        "b",
        "c",
        0.9,
        0.1,
        0.8,
    )


@pytest.mark.parametrize(
    "rows, reason",
    [
        ([], pairs.NO_ANSWERS),
        ([one("a", "red", 1.0)], pairs.FLAGGED),
        ([one("a", "red", 1.0), one("b", "", 0.0, ("empty",))], pairs.FLAGGED),
        ([one("a", "red", 1.0), one("b", "re", 0.0, ("cut",))], pairs.FLAGGED),
        ([one("a", "red", 1.0), one("b", "I cannot say", 0.0, ("refusal",))], pairs.FLAGGED),
        ([one("a", "red", 1.0), one("b", "blue", None)], pairs.UNSCORED),
        ([answer("a", "red", score("j", 1.0)), answer("b", "blue", score("k", 0.0))], pairs.NO_COMMON_JUDGE),
        ([one("a", "Red.", 1.0), one("b", "red", 0.2)], pairs.IDENTICAL),
        ([one("a", "red", 0.5), one("b", "blue", 0.5)], pairs.TIE),
        ([one("a", "red", 0.5), one("b", "blue", 0.45)], pairs.MARGIN),
    ],
)
def test_every_drop_has_its_reason(rows, reason):
    outcome = select_pair("q", rows, 0.1)
    assert outcome.pair is None and outcome.drop == reason


def test_rounding_noise_is_a_tie_and_a_margin_at_the_limit_is_a_pair():
    assert select_pair("q", [one("a", "red", 0.1 + 0.2), one("b", "blue", 0.3)], 0.0).drop == pairs.TIE
    assert select_pair("q", [one("a", "red", 0.3), one("b", "blue", 0.2)], 0.1).pair is not None


def test_scores_are_compared_over_the_judges_common_to_all_candidates():
    rows = [
        answer("a", "red", score("j", 0.4), score("k", 1.0)),
        answer("b", "blue", score("j", 0.9), score("k", None)),  # k failed here, so k counts nowhere
        answer("c", "green", score("j", 0.1), score("k", 1.0)),
    ]
    pair = select_pair("q", rows, 0.1).pair
    assert (pair.chosen, pair.rejected, pair.judges) == ("b", "c", ("j",))
    assert pair.score_chosen == 0.9


def test_declared_ranges_and_weights():
    rows = [
        answer("a", "red", score("j", 5, low=1, high=5), score("k", 0.0)),
        answer("b", "blue", score("j", 1, low=1, high=5), score("k", 1.0)),
    ]
    assert select_pair("q", rows, 0.1, {"j": 3.0, "k": 1.0}).pair.score_chosen == 0.75
    assert select_pair("q", rows, 0.1, {"j": 1.0, "k": 3.0}).pair.chosen == "b"
    assert select_pair("q", rows, 0.1).drop == pairs.TIE
    assert select_pair("q", rows, 0.1, {"j": 0.0, "k": 1.0}).pair.judges == ("k",)


def test_left_out_answers_are_counted_once_each():
    rows = [
        one("a", "red", 1.0),
        one("b", "blue", 0.0),
        one("c", "", 0.0, ("cut", "empty", "duplicate")),
        one("d", "green", None),
        one("e", "blue", 0.0, ("duplicate",)),
    ]
    outcome = select_pair("q", rows, 0.1)
    assert outcome.pair is not None
    assert dict(outcome.excluded) == {"cut": 1, "unscored": 1}


VALUES = st.sampled_from([None, 0.0, 0.25, 0.5, 0.5 + 1e-12, 0.75, 1.0])
FLAGS = st.lists(st.sampled_from(["empty", "cut", "refusal", "duplicate"]), max_size=2, unique=True)
TEXTS = st.sampled_from(["red", "Red.", "blue", "the blue", "green", "two", "2"])
ANSWERS = st.lists(st.tuples(TEXTS, VALUES, VALUES, FLAGS), max_size=6).map(
    lambda drawn: [
        answer(f"r{i}", text, score("j", left), score("k", right), flags=tuple(flags))
        for i, (text, left, right, flags) in enumerate(drawn)
    ]
)


@given(ANSWERS, st.sampled_from([0.0, 0.1, 0.3]), st.randoms())
def test_pairs_hold_what_they_promise_in_any_order(rows, margin, rng: random.Random):
    outcome = select_pair("q", rows, margin)
    assert (outcome.pair is None) != (outcome.drop is None)
    shuffled = rng.sample(rows, len(rows))
    again = select_pair("q", shuffled, margin)
    assert (again.pair, again.drop, again.excluded) == (outcome.pair, outcome.drop, outcome.excluded)
    if outcome.pair is None:
        return
    pair, by_id = outcome.pair, {row["response_id"]: row for row in rows}
    chosen, rejected = by_id[pair.chosen], by_id[pair.rejected]
    assert pair.margin > 0 and pair.margin >= margin
    assert 0 <= pair.score_rejected < pair.score_chosen <= 1
    assert normalise(chosen["response"]) != normalise(rejected["response"])
    assert not pairs.EXCLUDING_FLAGS.intersection([*chosen["flags"], *rejected["flags"]])


@given(st.lists(st.tuples(st.sampled_from(["train", "validation", "test"]), ANSWERS), max_size=8))
def test_questions_are_pairs_plus_drops(drawn):
    selection = select_pairs([(f"q{i}", split, rows) for i, (split, rows) in enumerate(drawn)], 0.1)
    assert len(drawn) == len(selection.pairs) + sum(selection.drops.values()) == len(selection.outcomes)
    assert set(selection.drops) <= set(pairs.REASONS)
    assert selection.drops.get(pairs.HELD_OUT, 0) == sum(split == "test" for split, _ in drawn)


@pytest.mark.parametrize(
    "text, finish, flags",
    [
        ("red", "stop", []),
        (" .", "stop", ["empty"]),
        ("", "length", ["empty", "cut"]),
        ("I'm sorry, but I can't see it", "stop", ["refusal"]),
        ("I cannot determine that.", "length", ["refusal", "cut"]),
        ("A sorry sight: the cat cannot climb", "stop", []),
        ("no", "stop", []),
    ],
)
def test_flags_of_an_answer(text, finish, flags):
    assert flags_of(text, finish) == flags


def test_duplicates_are_flagged_after_the_first():
    rows = [one("a", "Red", 1.0), one("b", "red.", 1.0), one("c", "blue", 0.0)]
    mark_duplicates(rows)
    assert [row["flags"] for row in rows] == [[], ["duplicate"], []]
