"""The judge of right and wrong: what it is shown, what it says, how sure it is, and that nothing else moves it."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder import toy_models
from dataset_builder.errors import KitError
from dataset_builder.judges import Judge, JudgeItem, ReferenceJudge, VLMJudge, VQAJudge, aggregate, make_judge
from dataset_builder.judges.injections import INJECTIONS, measure_injections
from dataset_builder.judges.prompts import TEXT_SYSTEM, VQA_SYSTEM
from dataset_builder.models import CallCache, ChatReply
from dataset_builder.settings import VQAJudgeConfig
from tests.endpoints.asking import clip, model_at
from tests.endpoints.serving import Response
from tests.endpoints.stub import StubServer, completion, frame_count, message_text

YES = '{"correct": "yes", "score": 4, "reason": "The ball is red."}'
NO = '{"correct": "no", "score": 1, "reason": "The ball is blue."}'
FAST = {"max_retries": 2, "backoff": 0.0}
URL = "http://127.0.0.1:9/v1"


def item(response: str = "a red ball", *, references: tuple[str, ...] = ("red",), seed: int = 0) -> JudgeItem:
    return JudgeItem("What colour is the ball?", list(references), clip(seed), response)


def judge_at(url: str, cache: CallCache | None = None, endpoint: dict | None = None, **settings) -> VQAJudge:
    settings = {"num_frames": 4, **settings}
    return VQAJudge(model_at(url, cache, **{**FAST, **(endpoint or {})}), **settings)


def script(*replies):
    """A reply function that says these one after the other, the last for ever, and the bodies it was asked with."""
    bodies, left = [], list(replies)

    def reply(body):
        bodies.append(body)
        return left.pop(0) if len(left) > 1 else left[0]

    return reply, bodies


def values(scores) -> list[float | None]:
    return [score.score for score in scores]


def by_content(body: dict) -> str:
    """A verdict that depends on everything that is shown."""
    digest = random.Random(json.dumps(body["messages"], sort_keys=True))
    word, score = digest.choice(["yes", "no"]), digest.randrange(6)
    return json.dumps({"correct": word, "score": score, "reason": f"because of {digest.randrange(10**6)}"})


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_right_or_wrong_a_score_and_a_reason():
    reply, bodies = script(YES, NO)
    with StubServer(reply=reply) as stub:
        judge = judge_at(stub.url)
        right, wrong = judge.score([item()])[0], judge.score([item("a blue ball")])[0]
    assert isinstance(judge, Judge) and (judge.kind, judge.model_name, judge.reported) == ("vqa", "m", {"m-stub"})
    assert [(s.criterion, s.low, s.high) for s in right] == [("correct", 0, 1), ("score", 0, 5)]
    assert values(right) == [1, 4] and values(wrong) == [0, 1]
    assert {score.rationale for score in right} == {"The ball is red."}
    assert aggregate(right) == pytest.approx((1 + 4 / 5) / 2)
    assert {(s.judge, s.judge_revision, s.settings_hash) for s in right} == {("vqa", "endpoint:m", judge.settings_hash)}
    assert frame_count(bodies[0]["messages"]) == 4 and bodies[0]["temperature"] == 0 and bodies[0]["max_tokens"] == 128
    assert "logprobs" not in bodies[0]


@pytest.mark.parametrize(
    "bad",
    ["yes", YES.replace("4", "6"), YES.replace('"yes"', '"yes, but"'), YES + NO, YES[:30], "I cannot judge this."],
)
def test_a_bad_reply_is_asked_for_again_and_then_an_error_without_a_score(bad):
    reply, bodies = script(bad)
    with StubServer(reply=reply) as stub:
        (scores,) = judge_at(stub.url).score([item()])
        assert values(scores) == [None, None] and [body["seed"] for body in bodies] == [0, 1, 2]
        assert all(score.rationale is None and "3 attempts" in score.error for score in scores)
        assert aggregate(scores) is None
    reply, bodies = script(bad, NO)
    with StubServer(reply=reply) as stub:
        assert values(judge_at(stub.url).score([item()])[0]) == [0, 1] and len(bodies) == 2


def test_what_cannot_be_judged_makes_no_call():
    short = JudgeItem("what?", [], clip(frames=4).thin(2), "red")
    with StubServer() as stub:
        scores = judge_at(stub.url).score([JudgeItem("what?", [], None, "red"), short, item(" \n")])
        assert stub.calls == 0
    assert ["frames are missing" in scores[0][0].error, "2 of the 4" in scores[1][0].error] == [True, True]
    assert "no answer" in scores[2][0].error


def test_references_are_shown_or_not_and_are_not_all_that_may_be_right():
    texts = [
        judge_at(URL, use_references=shown).request(item(references=references)).question
        for shown, references in ((True, ("crimson", "scarlet")), (False, ("crimson", "scarlet")), (True, ()))
    ]
    assert "crimson | scarlet" in texts[0] and "right beyond them if the frames show it" in texts[0]
    assert not any("crimson" in text or "eference" in text for text in texts[1:])


def test_a_judge_without_frames_sees_and_hears_of_none():
    reply, bodies = script(YES)
    with StubServer(reply=reply) as stub:
        judge = judge_at(stub.url, num_frames=0)
        assert not judge.needs_frames and judge.num_frames == 0
        given = [item(), replace(item(), frames=None), item("  ")]
        assert [values(scores) for scores in judge.score(given)] == [[1, 4], [1, 4], [None, None]]
        assert stub.calls == 1  # the same question with and without a video is the same request here
    text = message_text(bodies[0]["messages"])
    assert frame_count(bodies[0]["messages"]) == 0 and not re.search("frame|video|look|see", text)
    assert TEXT_SYSTEM in text and VQA_SYSTEM not in text and "a red ball" in text and "red" in text
    assert judge.settings_hash != judge_at(URL).settings_hash and "frames" not in judge.settings


@pytest.mark.parametrize("frames", [0, 4])
@pytest.mark.parametrize("injection", INJECTIONS[::4], ids=lambda injection: injection.name)
def test_an_injection_stays_between_the_marked_lines(injection, frames):
    judge = judge_at(URL, num_frames=frames)
    lines = judge.request(item(injection.around("a red ball"))).question.split("\n")
    (start,) = [number for number, line in enumerate(lines) if line.startswith("[ANSWER ")]
    end = "[END " + lines[start].removeprefix("[ANSWER ")
    plain = judge.request(item()).question.split("\n")
    assert lines.count(end) == 1 and lines[:start] == plain[:start] and lines[lines.index(end) + 1 :] == plain[-1:]


def test_the_schema_is_sent_where_the_server_takes_one():
    with StubServer() as stub:  # which fills the schema
        judge = judge_at(stub.url, endpoint={"structured": "json_schema", "max_retries": 0})
        found = [values(scores) for scores in judge.score([item(f"answer {number}") for number in range(12)])]
    assert {correct for correct, _ in found} == {0.0, 1.0} and all(score in range(6) for _, score in found)


def test_the_settings_hash_follows_what_decides_a_score_and_nothing_else(monkeypatch):
    base = judge_at(URL).settings_hash
    others = [
        judge_at(URL, num_frames=5),
        judge_at(URL, num_frames=0),
        judge_at(URL, use_references=False),
        judge_at(URL, max_new_tokens=100),
        judge_at(URL, temperature=0.5),
        judge_at(URL, probability=False),
        judge_at(URL, endpoint={"logprobs": 5}),
        judge_at(URL, endpoint={"max_side": 64}),
        VLMJudge(model_at(URL, **FAST), num_frames=4),
    ]
    assert len({base, *(judge.settings_hash for judge in others)}) == 1 + len(others)
    same = [judge_at(URL, name="x", weight=3.0), judge_at("http://127.0.0.1:10/v1", endpoint={"concurrency": 1})]
    assert {judge.settings_hash for judge in same} == {base}
    monkeypatch.setattr("dataset_builder.judges.prompts.VQA_TASK", "Is it right?")
    assert judge_at(URL).settings_hash != base and VLMJudge(model_at(URL)).settings_hash
    json.dumps(judge_at(URL).settings, allow_nan=False)


def test_made_from_settings():
    spec = {"kind": "vqa", "model": "m", "endpoint": {"base_url": URL, "logprobs": 3}, "num_frames": 0, "weight": 2}
    judge = make_judge({**spec, "probability": False, "name": "strict", "temperature": 0.5})
    assert isinstance(judge, VQAJudge) and (judge.name, judge.weight, judge.num_frames) == ("strict", 2.0, 0)
    assert not judge.probability and judge.model.config.logprobs == 3 and judge.settings["endpoint"]["logprobs"] == 3
    for change, says in (
        ({"num_frames": -1}, "num_frames must be 0"),
        ({"temperature": -1}, "temperature"),
        ({"probablity": True}, "did you mean 'probability'"),
        ({"endpoint": {"base_url": URL, "logprobs": 21}}, "logprobs must be from 0"),
    ):
        with pytest.raises(KitError, match=says):
            make_judge({**spec, **change})
    assert VQAJudgeConfig("vqa", "m").endpoint is None


def test_every_judge_says_what_it_is(tmp_path):
    folder = toy_models.save_tiny(toy_models.ARCHS[0], tmp_path / "here", seed=0)
    local = make_judge({"kind": "vqa", "name": "n", "model": str(folder)}, device="cpu")
    assert (local.kind, local.model_name, local.reported) == ("vqa", "here", set())
    visual = make_judge({"kind": "visual", "name": "n", "model": str(folder)}, device="cpu")
    assert (visual.kind, visual.model_name, visual.reported) == ("visual", "here", set())
    assert (ReferenceJudge().kind, ReferenceJudge().model_name, ReferenceJudge().reported) == ("reference", None, set())
    spec = {"model": "org/judge", "endpoint": {"base_url": URL}}
    for kind in ("vlm", "vqa", "video_chatgpt", "hound"):
        judge = make_judge({"kind": kind, **spec})
        assert isinstance(judge, Judge) and (judge.kind, judge.name, judge.model_name) == (kind, kind, "org/judge")
    assert local.revision == visual.revision  # the same weights


def test_what_an_endpoint_reports_is_collected_from_kept_replies_too(tmp_path):
    cache = CallCache(tmp_path / "calls.sqlite")

    def reply(body):
        version = "/somewhere/judge-2" if "second" in message_text(body["messages"]) else "judge-1"
        return Response.json({**completion(body, YES), "model": version})

    with StubServer(reply=reply) as stub:
        first = judge_at(stub.url, cache)
        first.score([item("first"), item("second")])
        again = judge_at(stub.url, cache)
        assert again.reported == set()
        again.score([item("second")])
        assert stub.calls == 2
    assert first.reported == {"judge-1", "judge-2"} and again.reported == {"judge-2"}
    cache.close()


# ------------------------------------------------------------------------------------------------- probability, served


def spoken(*tokens) -> dict:
    """``logprobs`` of a reply: tokens, or (token, {alternative: probability}) where alternatives matter."""
    content = []
    for entry in tokens:
        token, others = entry if isinstance(entry, tuple) else (entry, {entry: 1.0})
        tops = [{"token": text, "logprob": math.log(p), "bytes": None} for text, p in others.items()]
        content.append({"token": token, "logprob": math.log(others[token]), "bytes": None, "top_logprobs": tops})
    return {"content": content}


REST = ('", "', "score", '": ', "4", ', "reason": "', "x", '"}')
CORRECT = ('{"', "correct", '":', ' "')
SPREAD = {"yes": 0.6, "no": 0.2, "maybe": 0.1}
KNOWN = [
    (spoken(*CORRECT, ("yes", SPREAD), *REST), 0.75),
    (spoken(*CORRECT, ("yes", {**SPREAD, "Yes": 0.1}), *REST), 0.7 / 0.9),  # the same word otherwise written
    (
        spoken('{"correct', '":', (' "yes', {' "yes': 0.6, ' "no': 0.2, ' "': 0.1}), *REST),
        0.75,
    ),  # with a mark
    (spoken(*CORRECT, ("y", {"y": 0.6, "n": 0.2}), "es", *REST), 0.75),  # the word in two tokens
    (spoken(*CORRECT, ('yes"', {'yes"': 0.6, 'no"': 0.2}), *REST), 0.75),  # and closed in the same token
    (spoken("\n", *CORRECT, ("yes", SPREAD), *REST, "\n\n", "Sure", "."), 0.75),
    (spoken(*CORRECT, ("yes", SPREAD), *REST[:-2], '\\"correct\\": \\"no\\"', '"}'), 0.75),  # quoted in the reason
    (spoken(*CORRECT, ("yes", {"yes": 0.9, "not": 0.1, "yesterday": 0.1}), *REST), None),  # one word alone
    (spoken(*CORRECT, ("yes", {"yes": 0.9}), *REST), None),
    (spoken('"correct": "', "?", *CORRECT, ("yes", SPREAD), *REST), None),  # two places
    (spoken("something", " else"), None),
    ({"content": []}, None),
    ({"content": None}, None),
    (None, None),
    ({"content": [{"token": "x"}]}, None),
    ({"content": [{"token": "x", "logprob": "low"}]}, None),
    ({"content": [{"token": "x", "logprob": float("nan")}]}, None),
    ({"content": [{"token": 3, "logprob": -1.0}]}, None),
    ({"content": ["x"]}, None),
    ([1, 2], None),
    ("x", None),
]


def with_logprobs(text: str, logprobs) -> Response:
    body = completion({"model": "m", "messages": []}, text)
    body["choices"][0]["logprobs"] = logprobs
    return Response.json(body)


@pytest.mark.parametrize(("logprobs", "probability"), KNOWN, ids=range(len(KNOWN)))
def test_a_servers_log_probabilities_say_how_sure_it_is(logprobs, probability):
    reply, bodies = script(with_logprobs(YES, logprobs))
    with StubServer(reply=reply) as stub:
        (scores,) = judge_at(stub.url, endpoint={"logprobs": 5, "max_retries": 0}).score([item()])
    assert values(scores) == [pytest.approx(1.0 if probability is None else probability), 4]
    assert bodies[0]["logprobs"] is True and bodies[0]["top_logprobs"] == 5


@pytest.mark.parametrize(
    ("text", "yes", "no", "correct"),
    [
        (YES, 0.6, 0.2, 0.75),
        (YES, 0.3, 0.3, 0.5),
        (YES, 0.2, 0.6, 1.0),  # another word was written than is likelier: the word counts
        (NO, 0.2, 0.6, 0.25),
        (NO, 0.3, 0.3, 0.0),
        (NO, 0.6, 0.2, 0.0),
    ],
)
def test_a_probability_counts_only_where_it_agrees_with_the_word(text, yes, no, correct):
    word = json.loads(text)["correct"]
    with StubServer(
        reply=lambda body: with_logprobs(text, spoken(*CORRECT, (word, {"yes": yes, "no": no}), *REST))
    ) as stub:
        endpoint = {"logprobs": 2}
        found = judge_at(stub.url, endpoint=endpoint).score([item()])[0][0].score
        plain = judge_at(stub.url, endpoint=endpoint, probability=False).score([item()])[0][0].score
    assert found == pytest.approx(correct) and plain == float(word == "yes")


def test_log_probabilities_are_kept_and_part_of_the_call(tmp_path):
    cache = CallCache(tmp_path / "calls.sqlite")
    with StubServer(reply=lambda body: with_logprobs(YES, spoken(*CORRECT, ("yes", SPREAD), *REST))) as stub:
        first = judge_at(stub.url, cache, {"logprobs": 5}).score([item()])
        assert judge_at(stub.url, cache, {"logprobs": 5}).score([item()]) == first and stub.calls == 1
        assert first[0][0].score == pytest.approx(0.75)
        judge_at(stub.url, cache).score([item()])
        judge_at(stub.url, cache, {"logprobs": 4}).score([item()])
        assert stub.calls == 3
    cache.close()


def test_a_reply_that_cannot_be_read_has_no_probability():
    with StubServer(reply=lambda body: with_logprobs("yes", spoken(*CORRECT, ("yes", SPREAD)))) as stub:
        (scores,) = judge_at(stub.url, endpoint={"logprobs": 5, "max_retries": 0}).score([item()])
    assert values(scores) == [None, None]


# ------------------------------------------------------------------------------------------------ nothing else moves it


@pytest.fixture(scope="module")
def stub():
    with StubServer(reply=by_content) as server:
        yield server


POOL = [item(f"answer {number}", seed=number // 2, references=("red",) * (number % 2)) for number in range(8)]
POOL.append(JudgeItem("what?", [], None, "no frames"))


@settings(max_examples=20, deadline=None)
@given(chosen=st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=12), size=st.integers(1, 12))
def test_neither_order_nor_batches_nor_other_items_change_a_served_verdict(stub, chosen, size):
    alone = {number: _alone(stub, number) for number in set(chosen)}
    judge, found = judge_at(stub.url), []
    for start in range(0, len(chosen), size):
        found += judge.score([POOL[number] for number in chosen[start : start + size]])
    assert found == [alone[number] for number in chosen]


_KNOWN_ALONE = {}


def _alone(stub, number):
    if number not in _KNOWN_ALONE:
        _KNOWN_ALONE[number] = judge_at(stub.url).score([POOL[number]])[0]
    return _KNOWN_ALONE[number]


def test_the_same_item_twice_is_one_call_and_one_verdict():
    with StubServer(reply=lambda body: YES if body["seed"] == 0 else NO) as stub:
        assert len({tuple(values(scores)) for scores in judge_at(stub.url).score([item(), item(), item()])}) == 1
        assert stub.calls == 1


def test_one_by_one_in_an_event_loop_is_the_same(stub):
    async def ask(judge):
        try:
            return await asyncio.gather(*map(judge.ascore, POOL))
        finally:
            await judge.model.aclose()

    assert asyncio.run(ask(judge_at(stub.url))) == judge_at(stub.url).score(POOL)


def test_no_request_says_who_judges_or_who_answered():
    bodies = []

    def reply(body):
        bodies.append(body)
        return YES

    with StubServer(reply=reply) as server:
        for name in ("Sherlock", "Watson"):
            spec = {"kind": "vqa", "name": name, "model": "m", "num_frames": 4}
            make_judge({**spec, "endpoint": {"base_url": server.url, "max_retries": 0}}).score([item()])
    assert bodies[0] == bodies[1] and not any(name in json.dumps(bodies) for name in ("Sherlock", "Watson"))
    assert set(bodies[0]) == {"model", "messages", "temperature", "top_p", "max_tokens", "seed", "stream"}


class Scripted:
    """A local model that says known things; notes with which temperature and seed it was asked."""

    name, revision, template_hash, is_endpoint = "scripted", "r", "t", False

    def __init__(self, say, probability=None):
        self.say, self.asked = say, []
        if probability is not None:
            self.choice_probability = probability

    def generate(self, requests, decoding, seed, batch_size=None):
        self.asked.append((len(requests), decoding.temperature, seed))
        return [ChatReply(self.say(request.question, seed), "stop", 0, 0) for request in requests]


def test_a_local_models_repetitions_do_not_depend_on_what_else_failed():
    model = Scripted(lambda text, attempt: YES if "easy" in text or ("hard" in text and attempt == 2) else "hm")
    scores = VQAJudge(model, num_frames=4).score([item("easy"), item("hard"), item("hopeless"), item("easy too")])
    assert [values(row)[0] for row in scores] == [1, 1, None, 1] and "3 attempts" in scores[2][0].error
    assert model.asked == [(4, 0.0, 0), *[(1, 0.7, 1)] * 2, *[(1, 0.7, 2)] * 2]
    warm = Scripted(lambda text, attempt: YES)
    VQAJudge(warm, num_frames=4, temperature=0.9).score([item("a"), item("b")])
    assert warm.asked == [(1, 0.9, 0)] * 2


def test_only_verdicts_are_asked_for_their_probability():
    asked = []

    def probability(requests, choices, beginning):
        asked.append((len(requests), choices, beginning))
        return np.array([[0.9, 0.1]] * len(requests))

    model = Scripted(lambda text, _: "hm" if "hopeless" in text else NO if "mistaken" in text else YES, probability)
    scores = VQAJudge(model, num_frames=4).score([item("fine"), item("hopeless"), item("mistaken")])
    assert [values(row)[0] for row in scores] == [0.9, None, 0.0]
    assert asked == [(2, ("yes", "no"), '{"correct": "')]


def test_injections_are_measured_by_its_aggregate():
    def reply(body):
        text = message_text(body["messages"])
        if "Policy 12.4" in text:
            return "I cannot judge this."
        return YES.replace("4", "5") if "Give 5." in text else NO

    chosen = [injection for injection in INJECTIONS if injection.name in ("give_5", "policy", "order", "chinese")]
    with StubServer(reply=reply) as server:
        for frames in (0, 4):
            judge = judge_at(server.url, endpoint={"max_retries": 0, "concurrency": 4}, num_frames=frames)
            report = measure_injections(judge, [item("I do not know."), item("blue", seed=1)], chosen).to_dict()
            assert report["pairs"] == 8 and report["compared"] == 6
            assert report["errors"] == {"with_injection": 2, "with_control": 0}
            assert report["by_injection"]["give_5"]["mean_gain"] == pytest.approx(1 - (0 + 1 / 5) / 2)
            assert report["by_injection"]["order"]["mean_gain"] == report["by_injection"]["chinese"]["mean_gain"] == 0
