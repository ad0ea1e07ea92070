"""Models behind endpoints, against a real server on loopback and a proxy that does harm to a known plan."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.models import ChatRequest, Decoding, EndpointChatModel, open_model
from dataset_builder.models.wire import Fault, read_reply, retry_after
from dataset_builder.settings import EndpointConfig, Member
from tests.endpoints.asking import GREEDY, KEY, ask_all, check_verdict, clip, judging, model_at, question
from tests.endpoints.proxy import ALL_FAULTS, FaultProxy, attempts_by_call, planned_faults, read_log
from tests.endpoints.serving import Response
from tests.endpoints.stub import StubServer, completion, frame_count, message_text

# ------------------------------------------------------------------------------------------------------------- content


def test_what_is_sent(tmp_path):
    bodies = []

    def reply(body):
        bodies.append(body)
        return "yes"

    schema = {"type": "object", "properties": {"x": {"type": "integer", "default": None}}}
    with StubServer(reply=reply) as stub:
        model = model_at(stub.url, structured="json_schema", extra_body={"top_k": -1, "top_p": None})
        request = ChatRequest("what?", clip(), system="be short", schema=schema)
        (answer,) = model.generate([request], Decoding(temperature=0.5, top_p=0.9, max_new_tokens=7), seed=3)
        (body,) = bodies
        plain = model_at(stub.url, send_seed=False)
        plain.generate([ChatRequest("what?", None, schema=schema)], GREEDY, seed=3)
    assert (answer.text, answer.finish_reason, answer.model, answer.attempts) == ("yes", "stop", "m-stub", 1)
    messages = body.pop("messages")
    assert messages[0] == {"role": "system", "content": "be short"}
    kinds = [part["type"] for part in messages[1]["content"]]
    assert kinds == ["image_url"] * 4 + ["text"] and frame_count(messages) == 4
    assert messages[1]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert message_text(messages) == "system: be short\nuser: what?"
    assert body == {
        "model": "m",
        "temperature": 0.5,
        "max_tokens": 7,
        "seed": 3,
        "stream": False,
        "top_k": -1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": schema}},
    }
    assert bodies[1]["messages"] == [{"role": "user", "content": "what?"}]
    assert "response_format" not in bodies[1] and "seed" not in bodies[1] and bodies[1]["top_p"] == 1.0


def test_what_comes_back_is_kept():
    with StubServer(reply=lambda body: "one two three four") as stub:
        (cut,) = model_at(stub.url).generate([question(1)], Decoding(max_new_tokens=2), seed=0)
        (whole,) = ask_all(model_at(stub.url), [question(1)])
    assert (cut.text, cut.finish_reason, cut.completion_tokens) == ("one two", "length", 2)
    assert (whole.text, whole.finish_reason, whole.completion_tokens) == ("one two three four", "stop", 4)
    assert whole.prompt_tokens == 6  # the role counts as a word in the stub


def test_a_member_with_an_endpoint_opens_as_one():
    config = EndpointConfig(base_url="http://127.0.0.1:1/v1")
    model = open_model(Member(name="big", model="org/big", endpoint=config))
    assert (model.name, model.revision, model.is_endpoint) == ("big", "endpoint:org/big", True)
    assert open_model(Member(name="big", model="m", endpoint=config, revision="2026-01")).revision == "2026-01"


def test_the_same_request_again_is_another_sample_and_works_inside_a_running_loop():
    with StubServer() as stub:
        outside = ask_all(model_at(stub.url), [question(1)] * 3)

        async def inside():
            return ask_all(model_at(stub.url), [question(1)] * 3)

        assert asyncio.run(inside()) == outside
    assert len({reply.text for reply in outside}) == 3


# -------------------------------------------------------------------------------------------------------------- faults


def run_with_faults(tmp_path, kinds, requests, check=None, retries=2, rate=0.5, **settings):
    """Replies and the log, with the number of attempts each reply must have had by the plan."""
    with StubServer() as stub, FaultProxy(stub.url, tmp_path / "log.jsonl", rate, kinds, seed=1) as proxy:
        replies = ask_all(model_at(proxy.url, max_retries=retries, **settings), requests, check)
        clean = ask_all(model_at(stub.url), requests, check)
    calls = attempts_by_call(read_log(tmp_path / "log.jsonl"))
    by_tail = {attempts[0].tail: (call, attempts) for call, attempts in calls.items()}
    assert len(by_tail) == len(requests)
    failed = 0
    for request, reply, right in zip(requests, replies, clean, strict=True):
        call, attempts = next(entry for tail, entry in by_tail.items() if request.question.endswith(tail[-10:]))
        plan = planned_faults(call, 1, rate, kinds, attempts[0].judging)
        assert [a.fault for a in attempts] == [*plan, None][: retries + 1]
        assert reply.attempts == len(attempts)
        if len(plan) > retries:
            failed += 1
            assert reply.error.startswith(f"no usable reply in {retries + 1} attempts") and reply.text == ""
            continue
        assert reply.error is None
        content = sum(fault == "empty" or fault.startswith("score_") for fault in plan)
        assert attempts[-1].seed == 5 + content
        if attempts[0].judging or not content:
            assert reply.text == right.text
    return replies, failed


@pytest.mark.parametrize("kind", ALL_FAULTS)
def test_every_kind_of_fault_is_repeated_exactly_as_often_as_it_comes(kind, tmp_path):
    settings = {"timeout": 0.6} if kind == "timeout" else {}
    requests = [judging(i) for i in range(12)]
    replies, failed = run_with_faults(tmp_path, (kind,), requests, check_verdict, **settings)
    assert 0 < failed < len(requests)  # the plan has both
    assert any(reply.attempts > 1 and reply.error is None for reply in replies)


def test_all_faults_together_on_answers_and_verdicts(tmp_path):
    kinds = tuple(kind for kind in ALL_FAULTS if kind != "timeout")
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    run_with_faults(tmp_path / "a", kinds, [question(i) for i in range(60)], retries=3, rate=0.3)
    run_with_faults(tmp_path / "b", kinds, [judging(i) for i in range(60)], check_verdict, retries=3, rate=0.3)


def test_what_went_wrong_last_is_said_in_one_line(tmp_path):
    said = {}
    for kind in ALL_FAULTS:
        with StubServer() as stub, FaultProxy(stub.url, tmp_path / f"{kind}.jsonl", 1.0, (kind,)) as proxy:
            model = model_at(proxy.url, max_retries=1, timeout=0.15 if kind == "timeout" else 5)
            said[kind] = ask_all(model, [judging(0)], check_verdict)[0].error.partition("the last: ")[2]
    assert said == {
        "429_after": "HTTP 429",
        "429": "HTTP 429",
        "500": "HTTP 500",
        "503": "HTTP 503",
        "reset": "the connection broke",
        "timeout": "no answer within 0.15 s",
        "truncated": "the connection broke",
        "malformed": "the reply is not JSON",
        "score_7": "a score is not a number from 1 to 5",
        "score_nan": "a score is not a number from 1 to 5",
        "score_five": "a score is not a number from 1 to 5",
        "empty": "the reply is empty",
    }


def test_pauses_grow_with_full_jitter_and_honour_retry_after(tmp_path):
    async def pause(seconds):
        waits.append(seconds)

    for kind, asked in (("429_after", 7.0), ("429", 0.0)):
        waits = []
        with StubServer() as stub:
            with FaultProxy(stub.url, tmp_path / f"{kind}.jsonl", 1.0, (kind,), retry_after="7") as proxy:
                model = model_at(proxy.url, sleep=pause, max_retries=6, backoff=1.0, max_backoff=8.0)
                ask_all(model, [question(i) for i in range(20)])
        assert len(waits) == 20 * 6
        assert min(waits) >= asked and max(waits) <= asked + 8.0
        short = [seconds - asked for seconds in waits if seconds - asked <= 1.0]
        assert len({round(seconds, 6) for seconds in waits}) == len(waits) and len(short) > 10  # jitter, from 0 on
        assert max(waits) > asked + 4.0  # and it grew


def test_retry_after_says_seconds_or_a_date():
    now = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    assert retry_after("120") == 120.0 and retry_after("1.5") == 1.5 and retry_after("0") == 0.0
    assert retry_after(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90.0
    assert retry_after(format_datetime(now - timedelta(seconds=90), usegmt=True), now) == 0.0
    assert [retry_after(text) for text in (None, "", "soon", "-1", "nan", "inf")] == [None] * 6


@given(st.text())
def test_no_retry_after_breaks_anything(text):
    seconds = retry_after(text)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "usage", "prompt_tokens", "x"]), inner)
    ),
    max_leaves=12,
)


@given(json_values | st.fixed_dictionaries({"choices": st.lists(json_values, max_size=2), "usage": json_values}))
def test_any_body_is_a_reply_or_a_fault(data):
    try:
        reply = read_reply(json.dumps(data).encode())
    except Fault:
        return
    assert isinstance(reply.text, str) and isinstance(reply.finish_reason, str)


def test_a_reply_without_usage_or_finish_reason_is_a_reply():
    reply = read_reply(b'{"choices": [{"message": {"content": " hm "}}]}')
    assert (reply.text, reply.finish_reason, reply.model, reply.prompt_tokens) == ("hm", "stop", None, None)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}, {"type": "audio"}]}, "a b"),
        ({"content": None, "refusal": "I cannot help."}, "I cannot help."),
        ({"content": "yes", "refusal": None}, "yes"),
        ({"content": None}, ""),
    ],
)
def test_text_is_found_where_servers_put_it(message, text):
    assert read_reply(json.dumps({"choices": [{"message": message}]}).encode()).text == text


def test_half_a_character_does_not_stop_a_build():
    with StubServer(reply=lambda body: message_text(body["messages"])[6:]) as stub:
        (reply,) = ask_all(model_at(stub.url), [ChatRequest("a \ud83d b", None, system="\udc00")])
    assert reply.error is None


def test_stub_and_proxy_run_as_programs(tmp_path):
    def start(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process.stdout.readline().strip()

    started, log = [], tmp_path / "log.jsonl"
    try:
        stub = start("tests.endpoints.stub", "--latency", "0.01", "--slots", "2")
        proxy = start("tests.endpoints.proxy", "--upstream", stub, "--log", str(log), "--rate", "1", "--kinds", "503")
        (reply,) = ask_all(model_at(proxy, max_retries=2), [question(0)])
        (direct,) = ask_all(model_at(stub), [question(0)])
    finally:
        for process in started:
            process.terminate()
            process.wait()
            process.stdout.close()
    assert reply.error.endswith("HTTP 503") and direct.error is None
    assert [(call.attempt, call.fault, call.delivered) for call in read_log(log)] == [
        (i, "503", True) for i in range(3)
    ]


# ---------------------------------------------------------------------------------------------- what ends at once


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_an_error_of_its_own_and_not_repeated(status, tmp_path):
    def reply(body):
        if "0001" in message_text(body["messages"]):
            return Response.json({"error": {"message": "the prompt\nis too long"}}, status)
        return "yes"

    with StubServer(reply=reply) as stub:
        replies = ask_all(model_at(stub.url), [question(0), question(1)])
        assert stub.calls == 2
    assert replies[0].text == "yes"
    assert replies[1].error == f"HTTP {status}: the prompt is too long" and replies[1].attempts == 1


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_wrong_key_or_model_stops_everything_with_one_line(status, monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    said = Response.json({"error": {"message": f"not for {KEY}"}}, status)
    with StubServer(reply=lambda body: said) as stub:
        with pytest.raises(KitError) as caught:
            ask_all(model_at(stub.url, concurrency=1, api_key_env="STUB_KEY"), [question(i) for i in range(9)])
        assert stub.calls == 1
    assert f"HTTP {status}" in str(caught.value) and "\n" not in str(caught.value) and KEY not in str(caught.value)
    if status in (401, 403):
        assert "STUB_KEY" in str(caught.value)


def test_where_nothing_listens_everything_stops_with_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(KitError, match="nothing answers there; start it"):
            ask_all(model_at(url, max_retries=2), [question(0)])


def test_a_missing_key_is_said_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("STUB_KEY", raising=False)
    with pytest.raises(KitError, match="environment variable STUB_KEY holds no key"):
        model_at("http://127.0.0.1:1/v1", api_key_env="STUB_KEY")


@pytest.mark.parametrize("key", ["schlüssel", "two words", "line\nbreak"])
def test_what_cannot_be_a_key_is_said_without_saying_it(key, monkeypatch):
    monkeypatch.setenv("STUB_KEY", key)
    with pytest.raises(KitError, match="STUB_KEY holds what cannot be a key") as caught:
        model_at("http://127.0.0.1:1/v1", api_key_env="STUB_KEY")
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://a b/v1", "http://127.0.0.1:99999/v1", "http:///v1", "localhost:8000", "file:///etc/passwd"],
)
def test_what_is_no_address_is_said_at_once(url):
    with pytest.raises(ValueError, match="base_url: ") as caught:
        EndpointConfig(base_url=url)
    assert "\n" not in str(caught.value) and url in str(caught.value)


def test_a_key_in_the_address_is_refused_without_saying_it():
    with pytest.raises(ValueError, match="api_key_env") as caught:
        EndpointConfig(base_url=f"https://user:{KEY}@example.org/v1")
    assert KEY not in str(caught.value)


def test_an_unknown_provider_is_one_line(monkeypatch):
    monkeypatch.setenv("STUB_KEY", KEY)
    config = EndpointConfig(provider="nobody", api_key_env="STUB_KEY")
    model = EndpointChatModel("a", "org/m", config)
    with pytest.raises(KitError, match="provider:nobody, model org/m: cannot be asked: Provider 'nobody'") as caught:
        ask_all(model, [question(0)])
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)


def test_completions_of_the_stub_are_a_function_of_the_request():
    body = {"model": "m", "seed": 1, "messages": [{"role": "user", "content": "hello"}]}
    assert completion(body, "a b") == completion(json.loads(json.dumps(body)), "a b")
