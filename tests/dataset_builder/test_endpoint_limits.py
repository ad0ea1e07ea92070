"""Keys stay where they belong, and no limit of an endpoint is passed."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from dataset_builder.errors import KitError
from dataset_builder.models import CallCache, EndpointChatModel
from dataset_builder.models.limits import Pace
from dataset_builder.settings import EndpointConfig
from tests.endpoints.asking import KEY, ask_all, model_at, question
from tests.endpoints.proxy import WIRE_FAULTS, FaultProxy, read_log
from tests.endpoints.stub import StubServer

# ---------------------------------------------------------------------------------------------------------------- keys


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("STUB_KEY", KEY)
    cache = CallCache(tmp_path / "calls.sqlite")
    with StubServer(key=KEY) as stub:
        model = model_at(stub.url, cache, api_key_env="STUB_KEY")
        assert ask_all(model, [question(0)])[0].error is None
        monkeypatch.setenv("STUB_KEY", KEY + "x")
        wrong = model_at(stub.url, cache, api_key_env="STUB_KEY")
        with pytest.raises(KitError) as caught:
            ask_all(wrong, [question(1)])
    assert "***" in str(caught.value)  # the stub says the key back, as some servers do
    assert KEY not in f"{caught.value!r} {caught.value.__cause__!r} {model!r} {vars(model)!r} {capfd.readouterr()}"
    cache.close()
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_login_to_the_hub_is_not_sent_to_other_servers(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_login")
    seen = []

    class Spy(StubServer):
        async def handle(self, request):
            seen.append(request.headers.get("authorization"))
            return await super().handle(request)

    with Spy() as stub:
        assert ask_all(model_at(stub.url), [question(0)])[0].error is None
    assert seen == [None]


# -------------------------------------------------------------------------------------------------------------- limits


def test_never_more_calls_at_once_than_allowed(tmp_path):
    with StubServer(latency=0.02) as stub:
        model = model_at(stub.url, concurrency=5)
        ask_all(model, [question(i) for i in range(40)])
        assert stub.most_in_flight == 5 and stub.calls == 40


def test_no_minute_holds_more_calls_than_allowed():
    now = [0.0]
    made = []

    async def sleep(seconds):
        now[0] += seconds

    async def one(pace, pauses):
        for pause in pauses:
            now[0] += pause
            await pace.wait()
            made.append(now[0])

    pauses = np.random.default_rng(0).choice([0.0, 0.0, 0.0, 0.3, 20.0], 300)
    asyncio.run(one(Pace(30, lambda: now[0], sleep), pauses))
    assert all(sum(start <= time < start + 60 - 1e-6 for time in made) <= 30 for start in made)
    made.clear()
    asyncio.run(one(Pace(30, lambda: now[0], sleep), [0.0] * 90))
    assert made[-1] - made[0] == pytest.approx(89 * 2.0)  # and no slower than it has to be
    made.clear()
    asyncio.run(one(Pace(None, lambda: now[0], sleep), [0.0] * 50))
    assert len(set(made)) == 1


def test_the_rate_limit_is_on_the_wire_repetitions_included(tmp_path):
    now, slots = [0.0], []

    async def sleep(seconds):
        slots.append(seconds)
        now[0] += seconds

    with StubServer() as stub, FaultProxy(stub.url, tmp_path / "log.jsonl", 0.5, WIRE_FAULTS[2:3]) as proxy:
        config = EndpointConfig(base_url=proxy.url, concurrency=1, requests_per_minute=6, backoff=0.0, max_retries=9)
        model = EndpointChatModel("a", "m", config, clock=lambda: now[0], sleep=sleep)
        ask_all(model, [question(i) for i in range(10)])
    attempts = len(read_log(tmp_path / "log.jsonl"))
    assert attempts > 10
    assert now[0] == pytest.approx(10.0 * (attempts - 1))  # one every ten seconds
