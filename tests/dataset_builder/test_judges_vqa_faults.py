"""The judge of right and wrong in a build, through a proxy that harms nearly every third call, and killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import yaml

from dataset_builder.assemble import read_parquet
from dataset_builder.build import build
from dataset_builder.judges import VQAJudge, make_judge
from dataset_builder.models import CallCache
from dataset_builder.settings import SPLITS, load_build_config
from tests.dataset_builder.served_world import make_served_world
from tests.dataset_builder.worlds import changed, environment
from tests.endpoints.asking import model_at
from tests.endpoints.proxy import FaultProxy, attempts_by_call, planned_faults, read_log
from tests.endpoints.stub import StubServer

RATE, SEED, RETRIES, ITEMS, CONCURRENCY = 0.3, 5, 2, 120, 4
ROOT = Path(__file__).parents[2]

# What a process runs until it is killed; its items are those of this test.
JUDGING = """
import json, sys
from dataset_builder.judges import make_judge
from dataset_builder.models import CallCache
from tests.dataset_builder.test_judges_vqa_faults import spec_at, some_items

url, calls, out = sys.argv[1:]
cache = CallCache(calls)
found = make_judge(spec_at(url), cache=cache).score(some_items())
with open(out, "w") as file:
    json.dump([[score.score for score in scores] for scores in found], file)
"""


def spec_at(url: str) -> dict:
    endpoint = {"base_url": url, "concurrency": CONCURRENCY, "structured": "json_schema", "backoff": 0.0}
    return {"kind": "vqa", "model": "judge", "num_frames": 2, "endpoint": endpoint}


def some_items() -> list:
    from dataset_builder.judges import JudgeItem
    from tests.endpoints.asking import clip

    clips = [clip(number, frames=2) for number in range(5)]
    return [JudgeItem("what ?", ["red"], clips[n % 5], f"answer number {n}") for n in range(ITEMS)]


def test_a_build_with_it_and_with_confirmed_pairs(tmp_path):
    with StubServer() as stub:
        path = make_served_world(tmp_path, stub.url, clips=dict.fromkeys(SPLITS, 3), structured="json_schema")
        endpoint = yaml.safe_load(path.read_text())["judges"][1]["endpoint"]
        judges = [
            {"kind": "vqa", "name": "looking", "model": "judge", "num_frames": 2, "endpoint": endpoint},
            {"kind": "vqa", "name": "reading", "model": "judge", "num_frames": 0, "endpoint": endpoint, "weight": 0.0},
        ]
        confirm = {"model": "judge", "num_frames": 2, "endpoint": endpoint}
        config = load_build_config(changed(path, path, judges=judges, pairs={"confirm": confirm, "min_margin": 0.01}))
        build(config, tmp_path / "out", progress=False)
        calls = stub.calls
        build(config, tmp_path / "out", progress=False, overwrite=True)
        assert stub.calls == calls
    rows = [row for file in sorted((tmp_path / "out" / "responses").glob("*.parquet")) for row in read_parquet(file)]
    for row in (row for row in rows if row["response"]):
        found = {(score["judge"], score["criterion"]): score for score in row["scores"]}
        assert set(found) == {
            (name, criterion) for name in ("looking", "reading") for criterion in ("correct", "score")
        }
        assert all(s["error"] is None and s["low"] <= s["score"] <= s["high"] for s in found.values())
        value = (found["looking", "correct"]["score"] + found["looking", "score"]["score"] / 5) / 2
        assert abs(row["score"] - value) < 1e-9  # the one of weight 0 is only shown
    chosen = json.loads((tmp_path / "out" / "selection.json").read_text())
    counts = chosen["confirm"]
    print(counts)
    assert counts["pairs"] > counts["confirmed"] and counts["errors"] == 0 and counts["flips"] > 0
    assert counts["flip_rate"] == counts["flips"] / counts["pairs"]
    assert counts["confirmed"] == chosen["pairs"]
    assert chosen["pair_drops"]["not_confirmed"] == counts["pairs"] - counts["confirmed"]


def test_thirty_percent_faults(tmp_path):
    log = tmp_path / "log.jsonl"
    with StubServer() as stub, FaultProxy(stub.url, log, rate=RATE, seed=SEED) as proxy:
        settings = {"structured": "json_schema", "backoff": 0.0, "timeout": 1.0, "concurrency": 8}
        judge = VQAJudge(model_at(proxy.url, max_retries=RETRIES, **settings), num_frames=2)
        found = judge.score(some_items())
    calls = attempts_by_call(read_log(log))
    assert len(calls) == ITEMS and all(attempts[0].judging for attempts in calls.values())
    failed = 0
    for call, attempts in calls.items():  # never given up early, never asked once more
        planned = planned_faults(call, SEED, RATE, judging=True)
        assert [a.fault for a in attempts] == [*planned, None][: RETRIES + 1]
        failed += len(planned) > RETRIES
    faults = Counter(a.fault for attempts in calls.values() for a in attempts)
    without = [scores for scores in found if scores[0].error]
    print(f"{sum(faults.values())} attempts, {faults.total() - faults[None]} faults, {failed} calls without a verdict")
    assert len(faults) > 8 and failed > 0 and len(without) == failed
    for scores in found:
        for score in scores:
            assert (score.score is None) == (score.error is not None)
            assert score.score is None or score.score in range(6)
        assert (scores[0].error is None) == (scores[1].error is None)
    assert all("3 attempts" in scores[0].error for scores in without)


def test_killed_and_run_again_no_answered_call_is_repeated(tmp_path):
    log, calls, out = tmp_path / "log.jsonl", tmp_path / "calls.sqlite", tmp_path / "out.json"
    with StubServer(latency=0.02) as stub, FaultProxy(stub.url, log) as proxy:
        command = [sys.executable, "-c", JUDGING, proxy.url, str(calls), str(out)]
        with open(tmp_path / "stderr", "w") as stderr:
            process = subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=stderr)
            try:
                while process.poll() is None and log.read_bytes().count(b'"end"') < ITEMS // 3:
                    time.sleep(0.001)
            finally:
                process.kill()
                process.wait()
        assert not out.exists(), (tmp_path / "stderr").read_text()
        cache = CallCache(calls)
        kept = len(cache)
        cache.close()
        before = len(read_log(log))
        done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        whole = attempts_by_call(read_log(log))
        after = sum(map(len, whole.values())) - before
        assert after == ITEMS - kept  # what was kept is not asked for again
        again = sum(len(attempts) - 1 for attempts in whole.values())
        print(f"{kept} of {ITEMS} verdicts kept at the kill, {again} calls made twice ({CONCURRENCY} were in flight)")
        assert len(whole) == ITEMS and 0 < kept < ITEMS and again <= CONCURRENCY
        undisturbed = make_judge(spec_at(stub.url)).score(some_items())
    assert json.loads(out.read_text()) == [[score.score for score in scores] for scores in undisturbed]
