"""Nothing paid is paid twice: the cache of calls, what was spent, and both after a kill and in several processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.models import BudgetReached, CallCache, ChatRequest, Decoding, EndpointChatModel
from dataset_builder.models.limits import Budget, Payment
from dataset_builder.settings import EndpointConfig, PriceConfig
from tests.endpoints.asking import GREEDY, clip, judging, model_at, question
from tests.endpoints.proxy import FaultProxy, read_log
from tests.endpoints.stub import StubServer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path):
    cache = CallCache(tmp_path / "work" / "calls.sqlite")
    yield cache
    cache.close()


def ask(model, requests, seed=5, decoding=GREEDY, check=None):
    return model.generate(requests, decoding, seed=seed, check=check)


# -------------------------------------------------------------------------------------------------------------- replies


def test_the_same_call_again_costs_nothing_and_gives_the_same(cache):
    requests = [question(i) for i in range(10)]
    with StubServer() as stub:
        first = ask(model_at(stub.url, cache, price=PriceConfig(1, 1)), requests)
        again = ask(model_at(stub.url, cache, price=PriceConfig(1, 1)), requests)
        assert stub.calls == 10 == len(cache)
    assert again == [replace(reply, attempts=0, cost=0.0) for reply in first]
    assert all(reply.attempts == 1 and reply.cost > 0 for reply in first)


def test_whatever_decides_a_reply_is_part_of_its_key(cache):
    request = ChatRequest("what?", clip(0), system="s", schema={"type": "integer"})
    with StubServer() as stub:
        variants = [
            (model_at(stub.url, cache), request, GREEDY, 5),
            (EndpointChatModel("a", "other", EndpointConfig(base_url=stub.url), cache), request, GREEDY, 5),
            (model_at(stub.url, cache, frames="video"), request, GREEDY, 5),
            (model_at(stub.url, cache, max_side=8), request, GREEDY, 5),
            (model_at(stub.url, cache, structured="json_schema"), request, GREEDY, 5),
            (model_at(stub.url, cache, extra_body={"top_k": 1}), request, GREEDY, 5),
            (model_at(stub.url, cache, send_seed=False), request, GREEDY, 5),
            (model_at(stub.url, cache, revision="r1"), request, GREEDY, 5),
            (model_at(stub.url, cache), replace(request, question="why?"), GREEDY, 5),
            (model_at(stub.url, cache), replace(request, system="t"), GREEDY, 5),
            (model_at(stub.url, cache), replace(request, frames=clip(1)), GREEDY, 5),
            (model_at(stub.url, cache), replace(request, frames=None), GREEDY, 5),
            (model_at(stub.url, cache), request, replace(GREEDY, temperature=0.5), 5),
            (model_at(stub.url, cache), request, replace(GREEDY, top_p=0.5), 5),
            (model_at(stub.url, cache), request, replace(GREEDY, max_new_tokens=5), 5),
            (model_at(stub.url, cache), request, GREEDY, 6),
        ]
        for model, asked, decoding, seed in variants:
            ask(model, [asked], seed, decoding)
        assert stub.calls == len(variants) == len(cache)
        for model, asked, decoding, seed in variants:
            ask(model, [replace(asked, frames=asked.frames and clip(0 if asked.frames is request.frames else 1))])
            ask(model, [asked], seed, decoding)
        # How often and how fast is asked decides nothing; a schema that is not sent neither.
        ask(model_at(stub.url, cache, concurrency=1, max_retries=9, timeout=5, price=PriceConfig(1, 1)), [request])
        ask(model_at(stub.url, cache), [replace(request, schema=None)])
        assert stub.calls == len(variants)
    with StubServer() as moved:
        ask(model_at(moved.url, cache), [request])  # another server is another model …
        ask(model_at(moved.url, cache, revision="r1"), [request])  # … unless its revision says that it is not
        assert moved.calls == 1


def test_a_kept_reply_that_does_not_pass_is_asked_for_again(cache):
    def refuse(text):
        from dataset_builder.models import BadReply

        if len(seen) < 1:
            seen.append(text)
            raise BadReply("no")

    seen = []
    with StubServer() as stub:
        ask(model_at(stub.url, cache), [question(0)])
        ask(model_at(stub.url, cache), [question(0)], check=refuse)
        assert stub.calls == 2
        ask(model_at(stub.url, cache), [question(0)], check=refuse)
        assert stub.calls == 2


def test_failed_calls_are_not_kept(cache, tmp_path):
    with StubServer() as stub:
        with FaultProxy(stub.url, tmp_path / "log.jsonl", 1.0, ("500",)) as proxy:
            model = model_at(proxy.url, cache, max_retries=1, revision="r")
            assert ask(model, [question(0)])[0].error
        assert len(cache) == 0
        assert ask(model_at(stub.url, cache, revision="r"), [question(0)])[0].attempts == 1


def test_who_asks_the_same_at_the_same_time_shares_one_call(cache):
    async def together(model):
        try:
            return await asyncio.gather(*(model.areply(question(0), GREEDY, 5) for _ in range(8)))
        finally:
            await model.aclose()

    with StubServer(latency=0.1) as stub:
        replies = asyncio.run(together(model_at(stub.url)))  # without a cache too
        assert stub.calls == 1
        assert {reply.text for reply in replies} == {replies[0].text}
        assert sorted(reply.attempts for reply in replies) == [0] * 7 + [1]
        results = []
        threads = [
            threading.Thread(target=lambda: results.extend(asyncio.run(together(model_at(stub.url, cache)))))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stub.calls == 2 and len(results) == 24  # three event loops, one more call


def test_a_call_that_is_broken_off_does_not_leave_others_waiting(cache):
    async def run(model):
        first = asyncio.ensure_future(model.areply(question(0), GREEDY, 5))
        while stub.calls == 0:
            await asyncio.sleep(0.002)
        second = asyncio.ensure_future(model.areply(question(0), GREEDY, 5))
        await asyncio.sleep(0)
        first.cancel()
        reply = await second
        await model.aclose()
        return reply

    with StubServer(latency=0.3) as stub:
        assert asyncio.run(run(model_at(stub.url, cache))).error is None
        assert stub.calls == 2


# --------------------------------------------------------------------------------------------------------------- money

PRICE = PriceConfig(prompt=1000.0, completion=1000.0, frame_tokens=10)


def test_costs_are_what_the_server_counts_and_faults_count_where_they_may_be_charged(cache, tmp_path):
    with StubServer(reply=lambda body: "one two three") as stub:
        model = model_at(stub.url, cache, price=PRICE)
        (reply,) = ask(model, [question(0)])
        assert reply.cost == pytest.approx((reply.prompt_tokens + 3) / 1000)
        account = f"{stub.url} m"
        assert cache.spent(account) == pytest.approx(reply.cost)
        for kind, charged in (
            ("500", False),
            ("429", False),
            ("malformed", True),
            ("truncated", True),
            ("empty", True),
        ):
            with FaultProxy(stub.url, tmp_path / f"{kind}.jsonl", 1.0, (kind,)) as proxy:
                (failed,) = ask(model_at(proxy.url, cache, price=PRICE, max_retries=1), [question(1)])
                assert (failed.cost > 0) == charged
                assert cache.spent(f"{proxy.url} m") == pytest.approx(failed.cost)


def test_a_reply_without_usage_counts_at_its_most(cache):
    with StubServer(usage=False) as stub:
        (reply,) = ask(model_at(stub.url, cache, price=PRICE), [ChatRequest("what?", clip(0))])
    assert reply.cost == pytest.approx((5 + 64 + 4 * 10 + GREEDY.max_new_tokens) / 1000)


def test_the_spend_limit_stops_before_it_is_passed_and_is_remembered(cache, tmp_path):
    requests = [question(i) for i in range(100)]
    with StubServer(reply=lambda body: "one two three") as stub:
        limited = model_at(stub.url, cache, price=PRICE, spend_limit=0.5)
        with pytest.raises(BudgetReached, match=r"spend limit 0\.5 .* raise spend_limit") as caught:
            ask(limited, requests)
        assert "\n" not in str(caught.value)
        made, account = stub.calls, f"{stub.url} m"
        assert 10 < made < 100 and len(cache) == made
        worst = (len(requests[0].question) + 64 + GREEDY.max_new_tokens) / 1000
        assert 0.5 - worst < cache.spent(account) <= 0.5  # all of it was used
        path = cache.path
        cache.close()
        later = CallCache(path)  # as another run finds it
        for _ in range(2):
            with pytest.raises(BudgetReached):
                ask(model_at(stub.url, later, price=PRICE, spend_limit=0.5), requests)
        assert stub.calls <= made + 3 and later.spent(account) <= 0.5
        more = ask(model_at(stub.url, later, price=PRICE, spend_limit=5), requests)
        assert stub.calls == 100 and all(reply.error is None for reply in more)
        later.close()


@settings(deadline=None, max_examples=40)
@given(
    calls=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=40),
    limit=st.floats(0.1, 5),
)
def test_a_budget_is_never_passed(calls, limit):
    budget, reached = Budget("x", None), []

    async def call(worst, share, long):
        payment = Payment(worst)
        try:
            async with budget.reserve(payment, limit):
                await asyncio.sleep(0.001 if long else 0)
                payment.cost = worst * share
        except BudgetReached:
            reached.append(worst)

    async def together():
        await asyncio.gather(*(call(*entry) for entry in calls))

    asyncio.run(together())
    assert budget.spent() <= limit + 1e-9
    if sum(worst for worst, _, _ in calls) <= limit:
        assert not reached


# ---------------------------------------------------------------------------------------------------------------- file


@settings(max_examples=30, deadline=None)
@given(
    entries=st.dictionaries(st.text(max_size=8), st.dictionaries(st.text(max_size=5), st.text(max_size=9)), max_size=8)
)
def test_the_cache_gives_back_what_was_put(entries, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "calls.sqlite"
    cache = CallCache(path)
    for key, reply in entries.items():
        cache.put(key, {})
        cache.put(key, reply)
    cache.close()
    cache = CallCache(path)
    assert {key: cache.get(key) for key in entries} == entries and len(cache) == len(entries)
    assert cache.get("not there") is None
    cache.close()


@pytest.mark.parametrize("how", ["text", "cut", "page"])
def test_a_damaged_file_is_moved_aside_with_one_line(how, tmp_path, capsys):
    path = tmp_path / "calls.sqlite"
    cache = CallCache(path)
    for i in range(500):
        cache.put(f"key{i:04d}", {"text": "x" * 100})
    cache.close()
    whole = path.read_bytes()
    damaged = {
        "text": b"I am not a database. " * 100,
        "cut": whole[: len(whole) // 2],
        "page": whole[:4096] + b"\xff" * 4096 + whole[8192:],
    }[how]
    path.write_bytes(damaged)
    cache = CallCache(path)
    assert len(cache) == 0
    cache.put("a", {"text": "b"})
    assert cache.get("a") == {"text": "b"}
    cache.close()
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith(f"warning: {path}: the cache of calls is damaged")
    (aside,) = tmp_path.glob("calls.sqlite.damaged-*")
    assert aside.read_bytes() == damaged


def test_a_row_that_was_changed_counts_as_none(cache):
    cache.put("a", {"text": "good"})
    with sqlite3.connect(cache.path) as other:
        other.execute("UPDATE replies SET reply = replace(reply, 'good', 'evil')")
    assert cache.get("a") is None


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(KitError, match="the cache of calls cannot be opened"):
        CallCache(tmp_path / "file" / "calls.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(KitError, match="the cache of calls cannot be opened"):
        CallCache(tmp_path / "folder")


WRITER = """
import sys
from dataset_builder.models import CallCache
cache = CallCache(sys.argv[1])
for i in range(300):
    key = f"{sys.argv[2]}-{i}"
    cache.put(key, {"text": key})
    cache.put("shared", {"text": "the same"})
    cache.spend("account", 0.5)
    assert cache.get(key) == {"text": key}
"""


def test_several_processes_and_threads_use_one_file(tmp_path):
    path = tmp_path / "calls.sqlite"
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    cache = CallCache(path)

    def write(name):
        for i in range(300):
            cache.put(f"{name}-{i}", {"text": f"{name}-{i}"})
            cache.spend("account", 0.5)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("c", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        assert process.communicate()[1] == "" and process.returncode == 0
    assert len(cache) == 1201 and cache.spent("account") == 600.0
    assert all(cache.get(f"{name}-{i}") == {"text": f"{name}-{i}"} for name in "abcd" for i in range(300))
    cache.close()


# ---------------------------------------------------------------------------------------------------------------- kill

ASKER = """
import sys
from dataset_builder.models import CallCache, ChatRequest, Decoding, EndpointChatModel
from dataset_builder.settings import EndpointConfig
cache = CallCache(sys.argv[2])
model = EndpointChatModel("a", "m", EndpointConfig(base_url=sys.argv[1], concurrency=4), cache)
requests = [ChatRequest(f"What happens in scene {i:04d}?", None) for i in range(60)]
for reply in model.generate(requests, Decoding(temperature=0.0, max_new_tokens=32), seed=5):
    print(reply.text)
"""


def test_a_kill_costs_no_more_than_the_calls_on_the_wire(tmp_path):
    def start():
        command = [sys.executable, "-c", ASKER, proxy.url, str(tmp_path / "calls.sqlite")]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    log = tmp_path / "log.jsonl"
    with StubServer(latency=0.03) as stub, FaultProxy(stub.url, log) as proxy:
        for wanted in (10, 30):
            process = start()
            while sum(call.delivered is True for call in read_log(log)) < wanted:
                assert process.poll() is None
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
        said = start().communicate()[0].splitlines()
        calls = read_log(log)
    right = []
    with StubServer() as stub:
        right = [reply.text for reply in ask(model_at(stub.url), [question(i) for i in range(60)])]
    assert said == right
    repeated = len(calls) - len({call.call for call in calls})
    assert len({call.call for call in calls}) == 60
    assert repeated <= 2 * 4  # two kills, four calls on the wire at each


def test_verdicts_and_answers_share_a_cache(cache):
    with StubServer() as stub:
        ask(model_at(stub.url, cache), [question(0), judging(0)])
        assert len(cache) == 2
        decoding = Decoding(temperature=0.0, max_new_tokens=GREEDY.max_new_tokens, num_frames=3)  # frames count as seen
        assert ask(model_at(stub.url, cache), [question(0)], decoding=decoding)[0].attempts == 0
