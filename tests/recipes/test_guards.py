"""Guards: what counts as malformed or repeated, and which rounds are stopped."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.models.base import ChatReply
from recipes.guards import GuardLimits, RoundHealth, health, repeats, violations

GOOD = RoundHealth(malformed=0.02, repeated=0.0, chosen_logp=-3.0, margin=1.0, mean_length=2.0)


def reply(text: str, finish_reason: str = "stop") -> ChatReply:
    return ChatReply(text, finish_reason, prompt_tokens=10, completion_tokens=3)


def test_health():
    replies = [
        reply("a red circle"),  # two words: the article is none
        reply("red", "length"),
        reply(" ... "),
        reply("left left left left"),
        reply("round and round and round and"),
    ]
    found = health(replies, chosen_logp=-2.5, margin=0.5)
    assert found == RoundHealth(malformed=0.4, repeated=0.4, chosen_logp=-2.5, margin=0.5, mean_length=13 / 5)
    assert list(found.as_dict().values()) == [0.4, 0.4, -2.5, 0.5, 2.6]
    with pytest.raises(KitError, match="no answers"):
        health([], 0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no no no", True),
        ("very very good", False),
        ("left right left right left", False),  # two and a half times
        ("left right left right left right", True),
        ("well left right left right left right up", True),
        ("a b c x a b c y a b c", False),  # not in a row
        ("a b c a b c a b c", True),
        ("", False),
    ],
)
def test_repeats(text, expected):
    assert repeats(text.split()) is expected


@given(st.lists(st.sampled_from("abc"), max_size=14), st.integers(2, 4))
def test_repeats_against_the_definition(said, times):
    spans = range(len(said))
    expected = any(
        said[start : start + n] * times == said[start : start + n * times]
        for n in range(1, len(said) // times + 1)
        for start in spans
        if start + n * times <= len(said)
    )
    assert repeats(said, times) is expected


def test_repetition_in_text_without_spaces():
    assert health([reply("很好很好很好")], 0.0, 0.0).repeated == 1.0


def test_a_round_like_the_base_passes():
    assert violations(GOOD, GOOD) == []
    limits = GuardLimits(malformed=0.02, repeated=0.0, chosen_logp_drop=5.0, margin=50.0, length_ratio=2.0)
    edge = replace(GOOD, chosen_logp=-8.0, margin=51.0, mean_length=4.0)
    assert violations(edge, GOOD, limits) == [], "a limit itself is allowed"
    better = RoundHealth(malformed=0.0, repeated=0.0, chosen_logp=-0.5, margin=-40.0, mean_length=1.0)
    assert violations(better, GOOD) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"malformed": 0.12}, "malformed: 12.0 % empty or unfinished answers, limit 10.0 % (base 2.0 %)"),
        ({"repeated": 0.5}, "repeated: 50.0 % answers that repeat themselves, limit 10.0 % (base 0.0 %)"),
        ({"chosen_logp": -8.5}, "chosen_logp: fell by 5.5 nats a sequence from -3.0 to -8.5, limit 5"),
        ({"margin": 61.0}, "margin: grew by 60.0 nats a sequence from 1.0 to 61.0, limit 50"),
        (
            {"mean_length": 4.5},
            "mean_length: 4.5 words an answer against the base's 2.0 (ratio 2.25), limit 2 either way",
        ),
        (
            {"mean_length": 0.5},
            "mean_length: 0.5 words an answer against the base's 2.0 (ratio 0.25), limit 2 either way",
        ),
        (
            {"mean_length": 0.0},
            "mean_length: 0.0 words an answer against the base's 2.0 (ratio 0.00), limit 2 either way",
        ),
        ({"margin": math.nan}, "margin is not a finite number (nan): the weights have diverged"),
        ({"chosen_logp": -math.inf}, "chosen_logp is not a finite number (-inf): the weights have diverged"),
    ],
)
def test_each_kind_of_damage_has_its_line(change, line):
    assert violations(replace(GOOD, **change), GOOD) == [line]
    json.dumps(replace(GOOD, **change).as_dict(), allow_nan=False)


def test_damage_adds_up():
    broken = RoundHealth(malformed=1.0, repeated=1.0, chosen_logp=-100.0, margin=900.0, mean_length=16.0)
    assert [line.split(":")[0] for line in violations(broken, GOOD)] == list(GOOD.as_dict())


def test_a_base_that_is_bad_itself_is_no_reason_to_stop():
    never_ends = replace(GOOD, malformed=0.9)
    assert violations(never_ends, never_ends) == []
    assert violations(replace(GOOD, malformed=0.95), never_ends) != []
    silent = replace(GOOD, mean_length=0.0)
    assert violations(silent, silent) == []
    assert "ratio inf" in violations(GOOD, silent)[0]


def test_limits_that_are_off():
    off = GuardLimits(malformed=1.0, repeated=1.0, chosen_logp_drop=math.inf, margin=math.inf, length_ratio=math.inf)
    assert violations(RoundHealth(1.0, 1.0, -1e9, 1e9, 1e9), GOOD, off) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("malformed", 10), ("repeated", -0.1), ("length_ratio", 0.5), ("margin", -1), ("chosen_logp_drop", math.nan)],
)
def test_impossible_limits_are_refused(name, value):
    with pytest.raises(KitError, match=f"guards: {name} is "):
        GuardLimits(**{name: value})
