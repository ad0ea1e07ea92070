"""Pairs compared in bulk: flips of judges whose love of a place is known, batches, and what is counted."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.judges import JudgeItem, PairJudge, PairVerdict, make_pair_judge, pair_summary
from dataset_builder.models import CallCache, ChatReply
from dataset_builder.settings import ConfirmConfig, EndpointConfig
from dataset_builder.toy_models import ARCHS, save_tiny
from tests.endpoints.asking import clip, model_at
from tests.endpoints.stub import StubServer, message_text

FAST = {"max_retries": 2, "backoff": 0.0}


def item(response: str, seed: int = 0) -> JudgeItem:
    return JudgeItem("What colour is the ball?", ["red"], clip(seed), response)


def pairs(count: int) -> list[tuple[JudgeItem, JudgeItem]]:
    return [(item(f"answer {n}", n % 3), item(f"other answer {n * 7 % 11}", n % 3)) for n in range(count)]


def shown(text: str) -> tuple[str, str]:
    """The words of answers A and B."""
    lines = text.split("\n")
    places = [next(n for n, line in enumerate(lines) if line.startswith(f"[ANSWER {side} ")) for side in "AB"]
    return lines[places[0] + 1], lines[places[1] + 1]


def says(rule):
    """A reply of a judge that chooses between two answers by a rule: ``rule(A, B) -> A, B or tie``."""
    return lambda text: json.dumps({"better": rule(*shown(text)), "reason": "so"})


LOVES_FIRST = says(lambda a, b: "A")
LOVES_SECOND = says(lambda a, b: "B")
CONSISTENT = says(lambda a, b: "A" if a > b else "B")
UNDECIDED = says(lambda a, b: "tie")


class Scripted:
    """A local model that says what a rule says, and notes how many it was asked at once."""

    name, revision, template_hash, is_endpoint = "scripted", "r", "t", False

    def __init__(self, say):
        self.say, self.batches = say, []

    def generate(self, requests, decoding, seed, batch_size=None):
        self.batches.append(len(requests))
        return [ChatReply(self.say(request.question), "stop", 0, 0) for request in requests]


def at(stub, cache=None, **settings) -> PairJudge:
    return PairJudge(model_at(stub.url, cache, **{**FAST, **settings}), num_frames=4)


def on(say, where: str):
    """Verdicts of a judge with such replies on 20 pairs, served or local."""
    if where == "local":
        return PairJudge(Scripted(say), num_frames=4).compare_many(pairs(20))
    with StubServer(reply=lambda body: say(message_text(body["messages"]))) as stub:
        return at(stub).compare_many(pairs(20))


@pytest.mark.parametrize("where", ["served", "local"])
@pytest.mark.parametrize("say", [LOVES_FIRST, LOVES_SECOND])
def test_a_judge_that_loves_a_place_flips_always_and_decides_nothing(say, where):
    verdicts = on(say, where)
    assert {(verdict.winner, verdict.flipped, verdict.error) for verdict in verdicts} == {("tie", True, None)}
    assert pair_summary(verdicts) == {
        **{"pairs": 20, "first": 0, "second": 0, "tie": 20},
        **{"flips": 20, "errors": 0, "flip_rate": 1.0},
    }


@pytest.mark.parametrize("where", ["served", "local"])
def test_a_consistent_judge_never_flips(where):
    verdicts = on(CONSISTENT, where)
    expected = ["first" if a.response > b.response else "second" for a, b in pairs(20)]
    assert [verdict.winner for verdict in verdicts] == expected
    assert pair_summary(verdicts)["flip_rate"] == 0.0 and pair_summary(verdicts)["tie"] == 0
    assert pair_summary(on(UNDECIDED, where)) | {"pairs": 0} == {
        **{"pairs": 0, "first": 0, "second": 0, "tie": 20},
        **{"flips": 0, "errors": 0, "flip_rate": 0.0},
    }


@pytest.mark.parametrize("where", ["served", "local"])
def test_errors_are_in_no_rate(where):
    def say(text):
        first, second = shown(text)
        return "I cannot judge this." if "answer 3" in (first, second) else LOVES_FIRST(text)

    verdicts = on(say, where)
    summary = pair_summary(verdicts)
    assert summary["errors"] == 1 and summary["flips"] == summary["tie"] == 19 and summary["flip_rate"] == 1.0
    assert "3 attempts" in verdicts[3].error and verdicts[3].winner is None and not verdicts[3].flipped
    assert pair_summary([]) == pair_summary([PairVerdict(None, error="x")]) | {"pairs": 0, "errors": 0}
    assert pair_summary([])["flip_rate"] is None


def test_calls_go_out_side_by_side_and_are_made_once(tmp_path):
    cache = CallCache(tmp_path / "calls.sqlite")
    with StubServer(reply=lambda body: CONSISTENT(message_text(body["messages"])), latency=0.02) as stub:
        judge = at(stub, cache, concurrency=8)
        first = judge.compare_many(pairs(20))
        assert stub.calls == 40 and 2 <= stub.most_in_flight <= 8
        assert (judge.kind, judge.model_name, judge.reported) == ("pairwise", "m", {"m-stub"})
        kept = at(stub, cache)
        assert kept.compare_many(pairs(20)) == first and stub.calls == 40 and kept.reported == {"m-stub"}
        swapped = at(stub, cache).compare_many([(b, a) for a, b in pairs(20)])  # the same two requests a pair
        assert stub.calls == 40
    other = {"first": "second", "second": "first", "tie": "tie"}
    assert [verdict.winner for verdict in swapped] == [other[verdict.winner] for verdict in first]
    cache.close()


def test_a_local_model_is_asked_in_batches():
    model = Scripted(CONSISTENT)
    PairJudge(model, num_frames=4).compare_many(pairs(80))
    assert model.batches == [64, 64, 32]


def test_what_cannot_be_compared_makes_no_call():
    bad = [(item("a"), JudgeItem("what?", [], None, "b")), (item(" "), item("b"))]
    with StubServer() as stub:
        verdicts = at(stub).compare_many(bad)
        assert stub.calls == 0 and at(stub).compare_many([]) == []
    assert "frames" in verdicts[0].error and "no answer" in verdicts[1].error


def random_judge(text: str) -> str:
    """A judge whose verdict depends on everything it reads; some of its replies are none."""
    return json.dumps({"better": random.Random(text).choice(["A", "B", "tie", "neither"]), "reason": "so"})


@pytest.fixture(scope="module")
def stub():
    with StubServer(reply=lambda body: random_judge(message_text(body["messages"]))) as server:
        yield server


@settings(max_examples=8, deadline=None)
@given(chosen=st.lists(st.integers(0, 11), min_size=1, max_size=12), size=st.integers(1, 12))
def test_neither_order_nor_batches_nor_other_pairs_change_a_verdict(stub, chosen, size):
    whole = pairs(12)
    for judge in (at(stub, max_retries=0), PairJudge(Scripted(random_judge), num_frames=4)):
        alone = {number: judge.confirm(*whole[number]) for number in set(chosen)}
        found = []
        for start in range(0, len(chosen), size):
            found += judge.compare_many([whole[number] for number in chosen[start : start + size]])
        assert found == [alone[number] for number in chosen]


def test_a_local_checkpoint_compares_in_batches_as_one_by_one(tmp_path):
    folder = save_tiny(ARCHS[0], tmp_path / "judge", seed=3)
    judge = make_pair_judge(
        ConfirmConfig(model=str(folder), num_frames=2, max_new_tokens=4, max_retries=1), None, "cpu"
    )
    few = [(item(f"a{n}", n), item(f"b{n}", n)) for n in range(3)]
    together = judge.compare_many(few)
    assert together == [judge.confirm(*pair) for pair in few] and all("2 attempts" in v.error for v in together)
    assert (judge.model_name, judge.reported) == ("judge", set())


def test_an_endpoint_that_is_not_there_is_said():
    config = ConfirmConfig("m", EndpointConfig(base_url="http://127.0.0.1:9/v1", max_retries=0), num_frames=4)
    with pytest.raises(KitError, match="nothing answers"):
        make_pair_judge(config).compare_many(pairs(3))
