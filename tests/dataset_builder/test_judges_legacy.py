"""The judges of earlier work: what they read, what they say, and that nothing of theirs is guessed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataset_builder.errors import KitError
from dataset_builder.judges import HoundJudge, JudgeItem, VideoChatGPTJudge, aggregate, make_judge
from dataset_builder.judges.injections import INJECTIONS, measure_injections
from dataset_builder.models import CallCache
from tests.endpoints.asking import clip, model_at
from tests.endpoints.stub import StubServer, frame_count, message_text

FAST = {"max_retries": 2, "backoff": 0.0}
URL = "http://127.0.0.1:9/v1"
CAPTION = "A red ball rolls over the lawn."


def item(response: str = "a red ball", references=("red", "crimson"), caption: str | None = CAPTION) -> JudgeItem:
    return JudgeItem("What colour is the ball?", list(references), clip(), response, caption)


def script(*replies):
    bodies, left = [], list(replies)

    def reply(body):
        bodies.append(body)
        return left.pop(0) if len(left) > 1 else left[0]

    return reply, bodies


def asked(judge, *replies, items=None):
    """What a judge makes of such replies, and the requests it made."""
    reply, bodies = script(*replies)
    with StubServer(reply=reply) as stub:
        made = judge(model_at(stub.url, **FAST))
        return made.score(items or [item()]), bodies


def values(scores) -> list[float | None]:
    return [score.score for score in scores]


def test_video_chatgpt():
    (scores,), bodies = asked(VideoChatGPTJudge, "{'pred': 'yes', 'score': 4.8}")
    assert [(s.criterion, s.low, s.high) for s in scores] == [("correct", 0, 1), ("score", 0, 5)]
    assert values(scores) == [1, 4.8] and aggregate(scores) == pytest.approx((1 + 4.8 / 5) / 2)
    assert values(asked(VideoChatGPTJudge, "{'pred': 'no', 'score': 2}")[0][0]) == [0, 2]
    text = message_text(bodies[0]["messages"])
    assert frame_count(bodies[0]["messages"]) == 0 and "red | crimson" in text and "a red ball" in text
    assert CAPTION not in text


@pytest.mark.parametrize(
    ("reply", "correct", "score"),
    [("Score: 5", 1, 5), ("3", 1, 3), ("2.9", 0, 2.9), ("1/5", 0, 1), ('{"score": 4}', 1, 4)],
)
def test_hound(reply, correct, score):
    (scores,), bodies = asked(HoundJudge, reply)
    assert [(s.criterion, s.low, s.high) for s in scores] == [("correct", 0, 1), ("score", 1, 5)]
    assert values(scores) == [correct, score]
    text = message_text(bodies[0]["messages"])
    assert frame_count(bodies[0]["messages"]) == 0 and CAPTION in text and "red | crimson" in text


def test_hound_reads_so_many_words_of_an_answer():
    long = " ".join(f"word{number}" for number in range(300))
    _, bodies = asked(HoundJudge, "4", items=[item(long)])
    text = message_text(bodies[0]["messages"])
    assert "word255" in text and "word256" not in text
    _, bodies = asked(VideoChatGPTJudge, "{'pred': 'no', 'score': 2}", items=[item(long)])
    assert "word299" in message_text(bodies[0]["messages"])
    _, bodies = asked(HoundJudge, "4", items=[item("two\n  lines")])
    assert "two\n  lines" in message_text(bodies[0]["messages"])  # a short one stays as it is


def test_what_is_missing_is_named_and_costs_no_call():
    empty = [item(caption=None), item(caption=" "), item(references=()), item("  ")]
    found, bodies = asked(HoundJudge, "4", items=empty)
    says = ("caption: is missing", "caption: is missing", "no reference answer", "no answer to judge")
    assert all(scores[0].error.count(text) and values(scores) == [None, None] for scores, text in zip(found, says))
    assert bodies == []
    found, bodies = asked(VideoChatGPTJudge, "{'pred': 'yes', 'score': 5}", items=[item(caption=None), empty[2]])
    assert values(found[0]) == [1, 5] and "no reference answer" in found[1][0].error and len(bodies) == 1


@pytest.mark.parametrize(
    ("judge", "bad"),
    [
        (VideoChatGPTJudge, "yes, score 5"),
        (VideoChatGPTJudge, "I'm sorry, I cannot compare them."),
        (HoundJudge, "I cannot watch the video.\nScore: 1"),
        (HoundJudge, "Relevance: 4, accuracy: 5"),
        (HoundJudge, "8/10"),
    ],
)
def test_a_bad_reply_is_asked_for_again_and_then_an_error_without_a_score(judge, bad):
    (scores,), bodies = asked(judge, bad)
    assert values(scores) == [None, None] and len(bodies) == 3
    assert all("3 attempts" in score.error and score.rationale is None for score in scores)


def test_made_from_settings_and_blind():
    endpoint = {"base_url": URL, "max_retries": 0}
    for kind, made in (("video_chatgpt", VideoChatGPTJudge), ("hound", HoundJudge)):
        spec = {"kind": kind, "model": "m", "endpoint": endpoint, "name": "Sherlock", "weight": 0.5}
        judge = make_judge(spec)
        assert isinstance(judge, made) and (judge.kind, judge.weight, judge.needs_frames) == (kind, 0.5, False)
        request = judge.request(item())
        assert "Sherlock" not in f"{request.question}{request.system}" and request.frames is None
        assert request == judge.request(replace(item(), frames=None))
        with pytest.raises(KitError, match="num_frames"):
            make_judge({**spec, "num_frames": 8})
        assert judge.settings_hash == made(model_at(URL, **FAST)).settings_hash
        assert judge.settings_hash != made(model_at(URL), max_new_tokens=5).settings_hash
    assert VideoChatGPTJudge(model_at(URL)).settings_hash != HoundJudge(model_at(URL)).settings_hash


def test_verdicts_are_paid_for_once(tmp_path):
    cache = CallCache(tmp_path / "calls.sqlite")
    with StubServer(reply=lambda body: "Score: 4") as stub:
        spec = {"kind": "hound", "model": "m", "endpoint": {"base_url": stub.url}}
        first = make_judge(spec, cache=cache)
        again = make_judge(spec, cache=cache)
        assert first.score([item(), item("x")]) == again.score([item(), item("x")]) and stub.calls == 2
        assert first.reported == again.reported == {"m-stub"}
        make_judge(spec, cache=cache).score([item(caption="another video")])
        assert stub.calls == 3
    cache.close()


@pytest.mark.parametrize("judge", [VideoChatGPTJudge, HoundJudge])
def test_injections_stay_inside_and_are_measured(judge):
    made = judge(model_at(URL, **FAST))
    for injection in INJECTIONS[::5]:
        lines = made.request(item(injection.around("a red ball"))).question.split("\n")
        (start,) = [number for number, line in enumerate(lines) if line.startswith("[ANSWER ")]
        end = "[END " + lines[start].removeprefix("[ANSWER ")
        assert lines.count(end) == 1 and lines[lines.index(end) + 1 :] == made.request(item()).question.split("\n")[-1:]

    def reply(body):
        high = "Give 5." in message_text(body["messages"])
        if judge is HoundJudge:
            return "Score: 5" if high else "Score: 1"
        return f"{{'pred': '{'yes' if high else 'no'}', 'score': {5 if high else 0}}}"

    chosen = [injection for injection in INJECTIONS if injection.name in ("give_5", "order")]
    with StubServer(reply=reply) as stub:
        report = measure_injections(judge(model_at(stub.url, **FAST)), [item("blue")], chosen)
    assert report.summary(name="give_5")["mean_gain"] == 1.0 and report.summary(name="order")["mean_gain"] == 0.0
