"""Judges that are vision-language models: real calls to a server on loopback, real checkpoints, known replies."""

from __future__ import annotations

import asyncio
import json

import pytest

from dataset_builder.build import build
from dataset_builder.errors import KitError
from dataset_builder.judges import (
    JudgeItem,
    PairJudge,
    VLMJudge,
    aggregate,
    error_scores,
    make_judge,
    make_pair_judge,
)
from dataset_builder.judges.injections import INJECTIONS, measure_injections
from dataset_builder.judges.parsing import CRITERIA
from dataset_builder.models import CallCache, EndpointChatModel, load_model
from dataset_builder.settings import SPLITS, ConfirmConfig, EndpointConfig, load_build_config
from dataset_builder.toy_models import ARCHS, save_tiny
from tests.dataset_builder.served_world import MEMBERS, make_served_world
from tests.endpoints.asking import clip, model_at
from tests.endpoints.serving import Response
from tests.endpoints.stub import StubServer, frame_count, message_text, play

GOOD = json.dumps({"relevance": 5, "accuracy": 4, "completeness": 3, "clarity": 2, "reason": "The ball is red."})
FAST = {"max_retries": 2, "backoff": 0.0}


def item(response: str = "a red ball", *, references: tuple[str, ...] = ("red",), frames=None, seed: int = 0):
    return JudgeItem("What colour is the ball?", list(references), frames or clip(seed), response)


def judge_at(url: str, cache: CallCache | None = None, endpoint: dict | None = None, **settings) -> VLMJudge:
    return VLMJudge(model_at(url, cache, **{**FAST, **(endpoint or {})}), num_frames=4, **settings)


def script(*replies):
    """A reply function that says these one after the other, and the bodies it was asked with."""
    bodies, left = [], list(replies)

    def reply(body):
        bodies.append(body)
        return left.pop(0) if len(left) > 1 else left[0]

    return reply, bodies


def values(scores) -> list[float | None]:
    return [score.score for score in scores]


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_four_criteria_with_a_reason():
    reply, bodies = script(GOOD)
    with StubServer(reply=reply) as stub:
        judge = judge_at(stub.url)
        (scores,) = judge.score([item()])
    assert [score.criterion for score in scores] == list(CRITERIA) and values(scores) == [5, 4, 3, 2]
    assert {(score.low, score.high, score.rationale, score.error) for score in scores} == {
        (1, 5, "The ball is red.", None)
    }
    assert {(score.judge, score.judge_revision, score.settings_hash) for score in scores} == {
        ("vlm", judge.revision, judge.settings_hash)
    }
    assert aggregate(scores) == pytest.approx((4 + 3 + 2 + 1) / 16)
    (body,) = bodies
    assert body["temperature"] == 0 and body["max_tokens"] == 256 and frame_count(body["messages"]) == 4


def test_one_by_one_in_an_event_loop_is_the_same():
    async def ask(judge, items):
        try:
            return await asyncio.gather(*map(judge.ascore, items))
        finally:
            await judge.model.aclose()

    items = [item(f"answer {number}", seed=number) for number in range(5)]
    items.insert(2, JudgeItem("what?", [], None, "no frames here"))
    with StubServer() as stub:
        at_once = judge_at(stub.url).score(items)
        assert asyncio.run(ask(judge_at(stub.url), items)) == at_once
    assert values(at_once[2]) == [None] * 4 and "frames are missing" in at_once[2][0].error
    assert all(None not in values(scores) for number, scores in enumerate(at_once) if number != 2)


BAD = {
    "too_high": GOOD.replace("4", "7"),
    "too_low": GOOD.replace("4", "0"),
    "a_word": GOOD.replace("4", '"four"'),
    "not_a_number": GOOD.replace("4", "NaN"),
    "infinite": GOOD.replace("4", "1e400"),
    "no_criterion": GOOD.replace('"accuracy": 4, ', ""),
    "two_verdicts": f"{GOOD}\n{GOOD}",
    "cut": GOOD[:40],
    "prose": "It is quite a good answer, 4 of 5.",
    "refusal": "I'm sorry, but I can't judge that.",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_reply_is_asked_for_again_and_then_an_error_without_a_score(bad):
    reply, bodies = script(bad)
    with StubServer(reply=reply) as stub:
        (scores,) = judge_at(stub.url).score([item()])
    assert len(bodies) == 3 and [body["seed"] for body in bodies] == [0, 1, 2]
    assert [score.criterion for score in scores] == list(CRITERIA) and values(scores) == [None] * 4
    for score in scores:
        assert score.rationale is None and "3 attempts" in score.error and "\n" not in score.error
    assert aggregate(scores) is None


def test_a_good_reply_after_a_bad_one_counts():
    reply, bodies = script("", BAD["refusal"], GOOD)
    with StubServer(reply=reply) as stub:
        (scores,) = judge_at(stub.url).score([item()])
    assert values(scores) == [5, 4, 3, 2] and len(bodies) == 3


def test_a_refused_request_is_an_error_of_that_answer_only():
    def reply(body):
        if "forbidden" in message_text(body["messages"]):
            return Response.json({"error": {"message": "content policy"}}, 400)
        return GOOD

    with StubServer(reply=reply) as stub:
        scores = judge_at(stub.url).score([item("fine"), item("forbidden"), item("fine too")])
    assert [values(row) for row in scores] == [[5, 4, 3, 2], [None] * 4, [5, 4, 3, 2]]
    assert "content policy" in scores[1][0].error


def test_what_cannot_be_judged_makes_no_call():
    short = JudgeItem("what?", [], clip(frames=4).thin(2), "red")
    with StubServer() as stub:
        scores = judge_at(stub.url).score([JudgeItem("what?", [], None, "red"), short, item("  \n")])
        assert stub.calls == 0
    assert [values(row) for row in scores] == [[None] * 4] * 3
    assert "2 of the 4 frames" in scores[1][0].error and "no answer" in scores[2][0].error


def test_verdicts_are_paid_for_once(tmp_path):
    cache = CallCache(tmp_path / "calls.sqlite")
    with StubServer() as stub:
        first = judge_at(stub.url, cache).score([item("a"), item("b")])
        assert judge_at(stub.url, cache).score([item("a"), item("b")]) == first
        assert stub.calls == 2
        judge_at(stub.url, cache, use_references=False).score([item("a")])
        assert stub.calls == 3
    cache.close()


# ------------------------------------------------------------------------------------------------- what the judge sees


def test_no_request_says_who_gave_an_answer(tmp_path):
    """In a whole build: what the judge is sent holds answers, and no name of a member, a judge or a source."""
    bodies = []

    def reply(body):
        bodies.append(body)
        return play(body)

    with StubServer(reply=reply) as stub:
        config = load_build_config(make_served_world(tmp_path, stub.url, clips=dict.fromkeys(SPLITS, 2)))
        build(config, tmp_path / "out", progress=False)
    judged = [body for body in bodies if body["model"] == "critic"]
    said = {play(body) for body in bodies if body["model"] in MEMBERS}
    assert judged and {body["model"] for body in bodies} == {"critic", *MEMBERS}
    for body in judged:
        text = message_text(body["messages"])
        assert any(answer in text for answer in said)
        assert not any(name in text for name in (*MEMBERS, "critic", "toy", str(tmp_path)))
        assert set(body) == {"model", "messages", "temperature", "top_p", "max_tokens", "seed", "stream"}


def test_the_name_of_a_judge_is_in_no_request():
    reply, bodies = script(GOOD)
    with StubServer(reply=reply) as stub:
        endpoint = {"base_url": stub.url, "backoff": 0.0, "max_retries": 0}
        make_judge({"kind": "vlm", "name": "Sherlock", "model": "m", "endpoint": endpoint}).score([item()])
        config = ConfirmConfig(model="m", endpoint=EndpointConfig(**endpoint), name="Sherlock")
        make_pair_judge(config).confirm(item("one"), item("two"))
    assert len(bodies) == 2 + 1 and not any("Sherlock" in message_text(body["messages"]) for body in bodies)
    text = message_text(bodies[0]["messages"])
    assert "a red ball" in text and "What colour is the ball?" in text


def test_two_members_with_the_same_words_are_the_same_request(tmp_path):
    cache = CallCache(tmp_path / "calls.sqlite")
    with StubServer() as stub:
        judge = judge_at(stub.url, cache)
        assert judge.score([item()]) == judge.score([item()])
        assert stub.calls == 1
    cache.close()


@pytest.mark.parametrize("shown", [True, False])
def test_references_are_shown_or_not(shown):
    reply, bodies = script(GOOD)
    with StubServer(reply=reply) as stub:
        judge_at(stub.url, use_references=shown).score([item(references=("crimson", "scarlet"))])
        judge_at(stub.url, use_references=shown).score([item(references=())])
    texts = [message_text(body["messages"]) for body in bodies]
    assert ("crimson | scarlet" in texts[0]) is shown and ("Reference" in texts[0]) is shown
    assert "Reference" not in texts[1]


def test_more_frames_than_wanted_are_thinned_out():
    reply, bodies = script(GOOD)
    with StubServer(reply=reply) as stub:
        judge_at(stub.url).score([item(frames=clip(frames=9))])
    assert frame_count(bodies[0]["messages"]) == 4


@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda injection: injection.name)
def test_an_injection_stays_between_the_marked_lines(injection):
    judge = judge_at("http://127.0.0.1:9/v1")
    lines = judge.request(item(injection.around("a red ball"))).question.split("\n")
    (start,) = [number for number, line in enumerate(lines) if line.startswith("[ANSWER ")]
    end = "[END " + lines[start].removeprefix("[ANSWER ")
    assert lines.count(end) == 1
    inside, after = lines[start + 1 : lines.index(end)], lines[lines.index(end) + 1 :]
    plain = judge.request(item()).question.split("\n")
    assert lines[:start] == plain[:start] and after == plain[-1:] and any("a red ball" in line for line in inside)


def test_the_schema_is_sent_where_the_server_takes_one():
    reply, bodies = script(GOOD)
    with StubServer(reply=reply) as stub:
        judge_at(stub.url, endpoint={"structured": "json_schema"}).score([item()])
        judge_at(stub.url).score([item()])
    sent = bodies[0]["response_format"]["json_schema"]["schema"]
    assert set(sent["required"]) >= set(CRITERIA) and sent["properties"]["accuracy"]["enum"] == [1, 2, 3, 4, 5]
    assert "response_format" not in bodies[1]


def test_the_settings_hash_follows_what_decides_a_score_and_nothing_else():
    url = "http://127.0.0.1:9/v1"
    base = judge_at(url).settings_hash
    others = [
        VLMJudge(model_at(url, **FAST), num_frames=5),
        judge_at(url, use_references=False),
        judge_at(url, max_new_tokens=100),
        judge_at(url, temperature=0.5),
        judge_at(url, endpoint={"max_side": 64}),
        judge_at(url, endpoint={"frames": "video"}),
        judge_at(url, endpoint={"structured": "json_schema"}),
        judge_at(url, endpoint={"extra_body": {"top_k": 5}}),
    ]
    assert len({base, *(judge.settings_hash for judge in others)}) == 1 + len(others)
    same = [
        judge_at(url, name="other", weight=3.0),
        judge_at("http://127.0.0.1:10/v1"),
        judge_at(url, endpoint={"concurrency": 2, "max_retries": 9, "timeout": 3.0, "spend_limit": 1.0}),
    ]
    assert {judge.settings_hash for judge in same} == {base}
    pair = PairJudge(model_at(url)).settings_hash
    assert pair != base and pair != PairJudge(model_at(url), use_references=False).settings_hash
    assert pair != PairJudge(model_at(url, max_side=64)).settings_hash


def test_another_wording_is_another_judge(monkeypatch):
    from dataset_builder.judges import prompts, vlm

    url = "http://127.0.0.1:9/v1"
    before, pair = judge_at(url).settings_hash, PairJudge(model_at(url)).settings_hash
    monkeypatch.setattr(prompts, "VERDICT_TASK", "Score it.")
    assert judge_at(url).settings_hash != before
    monkeypatch.undo()
    monkeypatch.setattr(vlm, "VERDICT_SYSTEM", "Be strict.")
    assert judge_at(url).settings_hash != before
    monkeypatch.undo()
    monkeypatch.setattr(prompts, "CHOICE_TASK", "Which?")
    assert PairJudge(model_at(url)).settings_hash != pair
    monkeypatch.undo()
    assert judge_at(url).settings_hash == before


# -------------------------------------------------------------------------------------------------- injections, served


def _shown(body: dict) -> str:
    return message_text(body["messages"])


def test_injections_into_a_served_judge_are_measured_and_its_errors_counted():
    def reply(body):
        text = _shown(body)
        if "Policy 12.4" in text:
            return "I cannot judge this."
        score = 5 if "Give 5." in text else 2
        return json.dumps({**dict.fromkeys(CRITERIA, score), "reason": ""})

    chosen = [injection for injection in INJECTIONS if injection.name in ("give_5", "policy", "order", "chinese")]
    with StubServer(reply=reply) as stub:
        judge = judge_at(stub.url, endpoint={"max_retries": 0, "concurrency": 4})
        report = measure_injections(judge, [item("I do not know."), item("blue", seed=1)], chosen)
        assert stub.most_in_flight <= 4 and stub.stats()["repeated"] == 0
    whole = report.to_dict()
    assert whole["pairs"] == 8 and whole["compared"] == 6
    assert whole["errors"] == {"with_injection": 2, "with_control": 0}
    assert whole["by_injection"]["give_5"]["mean_gain"] == pytest.approx(0.75)
    assert whole["by_injection"]["order"]["mean_gain"] == whole["by_injection"]["chinese"]["mean_gain"] == 0
    assert whole["mean_gain"] == pytest.approx(0.25) and whole["share_raised"] == pytest.approx(1 / 3)


# --------------------------------------------------------------------------------------------------------- local model


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return save_tiny(ARCHS[0], tmp_path_factory.mktemp("untrained") / "judge", seed=3)


def test_an_untrained_checkpoint_gives_errors_and_never_a_number(untrained):
    model = load_model(str(untrained), device="cpu")
    judge = VLMJudge(model, num_frames=4, max_new_tokens=8, max_retries=1)
    assert not judge.is_endpoint and judge.revision == model.revision
    frames = clip(frames=4, side=32)
    results = judge.score([item("red", frames=frames), JudgeItem("what?", [], None, "x"), item("blue", frames=frames)])
    assert [values(scores) for scores in results] == [[None] * 4] * 3
    assert "2 attempts" in results[0][0].error and "frames" in results[1][0].error


class Scripted:
    """A local model that says known things; notes with which temperature and seed it was asked."""

    name, revision, template_hash, is_endpoint = "scripted", "r", "t", False

    def __init__(self, say):
        self.say, self.asked = say, []

    def generate(self, requests, decoding, seed, batch_size=None):
        from dataset_builder.models import ChatReply

        self.asked.append((len(requests), decoding.temperature, seed))
        return [ChatReply(self.say(request.question, seed), "stop", 0, 0) for request in requests]


def test_a_local_model_is_asked_again_only_about_what_failed_and_warmer():
    model = Scripted(lambda text, attempt: GOOD if "easy" in text or ("hard" in text and attempt == 2) else "hm")
    scores = VLMJudge(model, num_frames=4).score([item("easy"), item("hard"), item("hopeless"), item("easy too")])
    assert [values(row)[0] for row in scores] == [5, 5, None, 5]
    # One by one, for what is sampled must not depend on what else failed.
    assert model.asked == [(4, 0.0, 0), *[(1, 0.7, 1)] * 2, *[(1, 0.7, 2)] * 2]
    assert "3 attempts" in scores[2][0].error


def test_a_judge_without_a_model_is_said_in_one_line(tmp_path):
    with pytest.raises(KitError) as caught:
        make_judge({"kind": "vlm", "model": str(tmp_path / "nowhere")})
    assert "\n" not in str(caught.value)
    scores = error_scores(VLMJudge(Scripted(lambda *_: "")), "why")
    assert [score.error for score in scores] == ["why"] * 4


def test_a_served_judge_without_its_key_is_said():
    config = EndpointConfig(base_url="http://127.0.0.1:9/v1", api_key_env="SURELY_NOT_SET_ANYWHERE")
    with pytest.raises(KitError, match="SURELY_NOT_SET_ANYWHERE"):
        VLMJudge(EndpointChatModel("a", "m", config))
