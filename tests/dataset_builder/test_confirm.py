"""The pair judge and the confirmation of pairs: both orders, known replies of a real server, stored chunks."""

from __future__ import annotations

import asyncio
import json

import pytest

from dataset_builder.confirm import Confirmer
from dataset_builder.errors import KitError
from dataset_builder.judges import JudgeItem, PairJudge
from dataset_builder.settings import ConfirmConfig, EndpointConfig
from dataset_builder.stages.job import CALL_CACHE
from dataset_builder.table import QUESTION_SCHEMA, QuestionTable, write_questions
from dataset_builder.toy_models import ARCHS, save_tiny
from tests.dataset_builder.clips import write_clip
from tests.endpoints.asking import clip, model_at
from tests.endpoints.stub import StubServer, message_text

FAST = {"max_retries": 2, "backoff": 0.0}


def item(response: str) -> JudgeItem:
    return JudgeItem("What colour is the ball?", ["red"], clip(), response)


def first_shown(body: dict) -> str:
    """The words of answer A."""
    lines = message_text(body["messages"]).split("\n")
    return lines[next(number for number, line in enumerate(lines) if line.startswith("[ANSWER A ")) + 1]


def prefers(answer: str):
    return lambda body: json.dumps({"better": "A" if first_shown(body) == answer else "B", "reason": answer})


def said(*better: str):
    """A reply function that says these one after the other, the last for ever."""
    left = [json.dumps({"better": word, "reason": word}) for word in better]
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize(
    ("reply", "winner", "flipped", "confirmed"),
    [
        (prefers("good"), "first", False, True),
        (prefers("bad"), "second", False, False),
        (said("A", "A"), "tie", True, False),
        (said("B", "B"), "tie", True, False),
        (said("tie", "tie"), "tie", False, False),
        (said("A", "tie"), "tie", False, False),
        (said("tie", "B"), "tie", False, False),
        (said("A", "B"), "first", False, True),
    ],
)
def test_a_pair_is_confirmed_only_if_the_first_wins_in_both_orders(reply, winner, flipped, confirmed):
    with StubServer(reply=reply) as stub:
        judge = PairJudge(model_at(stub.url, **FAST), num_frames=4)
        verdict = judge.confirm(item("good"), item("bad"))
        assert stub.calls == 2 and stub.stats()["distinct"] == 2
    assert (verdict.winner, verdict.flipped, verdict.confirmed) == (winner, flipped, confirmed)
    assert verdict.error is None and len(verdict.reasons) == 2


@pytest.mark.parametrize("bad", ['{"accuracy": 5}', "A", '{"better": "A or B"}', "I'm sorry, I can't judge that."])
@pytest.mark.parametrize("order", [0, 1])
def test_a_pair_without_two_verdicts_is_an_error(bad, order):
    spoiled = ("good", "bad")[order]  # the order in which this answer comes first
    fine = '{"better": "A", "reason": ""}'
    with StubServer(reply=lambda body: bad if first_shown(body) == spoiled else fine) as stub:
        judge = PairJudge(model_at(stub.url, **FAST), num_frames=4)
        verdict = judge.confirm(item("good"), item("bad"))

        async def again():
            try:
                return await judge.aconfirm(item("good"), item("bad"))
            finally:
                await judge.model.aclose()

        assert asyncio.run(again()) == verdict
    assert verdict.winner is None and not verdict.confirmed and not verdict.flipped and verdict.error
    assert "3 attempts" in verdict.error


def test_a_pair_on_a_video_without_frames_makes_no_call():
    with StubServer() as stub:
        verdict = PairJudge(model_at(stub.url), num_frames=4).confirm(item("a"), JudgeItem("what?", [], None, "b"))
        assert stub.calls == 0
    assert verdict.winner is None and "frames" in verdict.error


# -------------------------------------------------------------------------------------------------------- confirmation


@pytest.fixture
def table(tmp_path) -> QuestionTable:
    """Three questions on two real clips and one on a file that is none."""
    paths = [str(write_clip(tmp_path / f"{number}.mp4")) for number in range(2)]
    (tmp_path / "2.mp4").write_text("no video")
    paths.append(str(tmp_path / "2.mp4"))
    rows = [
        {
            **dict.fromkeys(QUESTION_SCHEMA.names),
            **{"question_id": f"q{number}", "sha256": f"{min(number, 2):064x}", "path": paths[min(number, 2)]},
            **{"question": f"question {number}?", "answers": ["red"], "split": "train", "embed": True},
        }
        for number in range(3)
    ]
    write_questions(iter(rows), tmp_path / "work" / "questions.arrow", 2)
    return QuestionTable(tmp_path / "work" / "questions.arrow")


def pair(number: int, chosen: str = "good", rejected: str = "bad") -> dict:
    return {"question_id": f"q{number}", "chosen": chosen, "rejected": rejected}


def confirmer(url: str, table: QuestionTable, **settings) -> Confirmer:
    endpoint = EndpointConfig(base_url=url, concurrency=2, max_retries=0, backoff=0.0)
    return Confirmer(ConfirmConfig(model="m", endpoint=endpoint, num_frames=4, **settings), table, table.path.parent)


def test_pairs_are_confirmed_in_chunks_and_asked_about_once(table):
    chunks = [[pair(0), pair(0, "bad", "good")], [pair(1), pair(2)]]
    with StubServer(reply=prefers("good")) as stub:
        one = confirmer(stub.url, table)
        first = [one.confirm_many(chunk) for chunk in chunks]
        calls = stub.calls
        assert calls == 4  # the reversed pair is the same two requests; without a video none is made
        two = confirmer(stub.url, table)
        assert [two.confirm_many(chunk) for chunk in chunks] == first and stub.calls == calls
        other = confirmer(stub.url, table)  # one pair of the first chunk changed: that chunk alone is looked at again
        changed = [[pair(0), pair(0, "good", "worse")], chunks[1]]
        assert [len(other.confirm_many(chunk)) for chunk in changed] == [2, 2]
        assert stub.calls == calls + 2  # and of it only what is new
        for file in table.path.parent.glob(f"{CALL_CACHE}*"):  # the chunks do without the kept calls
            file.unlink()
        assert confirmer(stub.url, table).confirm_many(chunks[0]) == first[0]  # stored over: asked again
        calls = stub.calls
        for file in table.path.parent.glob(f"{CALL_CACHE}*"):
            file.unlink()
        last = confirmer(stub.url, table)
        assert [last.confirm_many(chunk) for chunk in chunks] == first and stub.calls == calls
    assert [[row.confirmed for row in rows] for rows in first] == [[True, False], [True, False]]
    assert [row.error for rows in first for row in rows][:3] == [None] * 3 and "2.mp4" in first[1][1].error


def test_flips_and_errors_confirm_nothing(table):
    with StubServer(reply=said("A")) as stub:
        (row,) = confirmer(stub.url, table).confirm_many([pair(0)])
    assert not row.confirmed and row.flipped and row.error is None
    with StubServer(reply=said("nobody")) as stub:
        (row,) = confirmer(stub.url, table, name="another").confirm_many([pair(0, "x", "y")])
    assert not row.confirmed and not row.flipped and row.error


def test_a_pair_of_an_unknown_question_is_said(table):
    with pytest.raises(KitError, match="q9"):
        confirmer("http://127.0.0.1:9/v1", table).confirm_many([pair(9)])


def test_a_local_pair_judge_confirms_nothing_it_cannot_read(table, tmp_path):
    untrained = save_tiny(ARCHS[0], tmp_path / "judge", seed=3)
    config = ConfirmConfig(model=str(untrained), num_frames=2, max_new_tokens=4, max_retries=0)
    (row, broken) = Confirmer(config, table, table.path.parent, device="cpu").confirm_many([pair(0), pair(2)])
    assert not row.confirmed and "1 attempts" in row.error
    assert not broken.confirmed and "2.mp4" in broken.error
