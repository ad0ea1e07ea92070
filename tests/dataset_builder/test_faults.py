"""A build through a proxy that harms nearly every third call: nothing invented, nothing lost, every number exact."""

from __future__ import annotations

import json
from collections import Counter

from dataset_builder.assemble import read_parquet
from dataset_builder.build import build
from dataset_builder.settings import load_build_config
from tests.dataset_builder.served_world import make_served_world
from tests.endpoints.proxy import ALL_FAULTS, FaultProxy, attempts_by_call, planned_faults, read_log
from tests.endpoints.stub import StubServer

RATE, SEED, RETRIES = 0.3, 3, 2


def test_thirty_percent_faults(tmp_path):
    with StubServer() as stub, FaultProxy(stub.url, tmp_path / "log.jsonl", rate=RATE, seed=SEED) as proxy:
        config = make_served_world(tmp_path, proxy.url, max_retries=RETRIES, timeout=1.0)
        summary = build(load_build_config(config), tmp_path / "mmaip-v", progress=False)
    calls = attempts_by_call(read_log(tmp_path / "log.jsonl"))
    seen = Counter(attempt.fault for attempts in calls.values() for attempt in attempts)
    assert set(ALL_FAULTS) <= set(seen)  # every kind of fault happened

    # Each call was tried exactly as often as its planned faults demand: never given up early, never asked once more.
    failed = {False: 0, True: 0}  # by judging
    for call, attempts in calls.items():
        judging = attempts[0].judging
        planned = planned_faults(call, SEED, RATE, judging=judging)
        assert len(attempts) == min(len(planned), RETRIES) + 1, call
        assert [a.fault for a in attempts] == [*planned, None][: RETRIES + 1]
        failed[judging] += len(planned) > RETRIES
    assert failed[False] > 0 and failed[True] > 0

    rows = [
        row for file in sorted((tmp_path / "mmaip-v" / "responses").glob("*.parquet")) for row in read_parquet(file)
    ]
    assert len(rows) == summary["answers"] == 28 * 2 * 2
    errors = [row for row in rows if row["finish_reason"] == "error"]
    assert len(errors) == failed[False]
    assert all(row["response"] == "" and "empty" in row["flags"] for row in errors)
    asked, without = set(), set()
    for row in rows:
        for score in (s for s in row["scores"] if s["judge"] == "critic"):
            assert (score["score"] is None) == (score["error"] is not None)
            if score["score"] is not None:
                assert score["score"] in (1, 2, 3, 4, 5)
            if row["response"]:
                asked.add((row["question_id"], row["response"]))
                if score["error"]:
                    without.add((row["question_id"], row["response"]))
    assert len(asked) == sum(attempts[0].judging for attempts in calls.values())
    assert len(without) == failed[True]
    # What failed is said, and no question vanished.
    provenance = json.loads((tmp_path / "mmaip-v" / "provenance.json").read_text())
    assert provenance["errors"]["alpha"] + provenance["errors"]["beta"] == failed[False]
    assert summary["questions"] == summary["pairs"] + sum(summary["drops"].values())

    # Asking again for just what failed, now that the server at the same address is well.
    again = tmp_path / "again.jsonl"
    with StubServer() as stub, FaultProxy(stub.url, again, port=proxy.port) as proxy:
        healed = build(load_build_config(config), tmp_path / "mmaip-v", progress=False, retry_errors=True)
    assert healed["errors"] == {}
    calls = read_log(again)
    assert sum(not call.judging for call in calls) == failed[False]
    assert sum(call.judging for call in calls) <= failed[True] + failed[False]
