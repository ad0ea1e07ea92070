"""The parts of builds as several tasks: options, the shared folder, call caches, signs of life."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.executors import check_options
from dataset_builder.executors.beats import Beat, Watch, alive, read_beats, task_error
from dataset_builder.executors.caches import TaskCache, merge_caches, task_cache
from dataset_builder.executors.shared import Plan, Shared, block_of
from dataset_builder.models.cache import CallCache
from dataset_builder.stages.job import CALL_CACHE
from dataset_builder.table import QUESTION_SCHEMA, write_questions

pytest.importorskip("datatrove", reason="the extra `cluster` is not installed")


@pytest.mark.parametrize(
    "executor, options, message",
    [
        ("dask", {}, "is none of local, slurm, ray"),
        ("local", {"partition": "cpu"}, "it takes none"),
        ("slurm", {"time": "1"}, "needs the option 'partition'"),
        ("slurm", {"partition": "cpu", "tme": "1"}, "did you mean 'time'"),
        ("slurm", {"partition": "cpu", "time": "1", "cpus_per_task": "many"}, "must be a whole number"),
        ("slurm", {"partition": "cpu", "time": "1", "sbatch_args": "account"}, "KEY=VALUE"),
        ("ray", {"mem_per_cpu_gb": -1}, "must be a number"),
    ],
)
def test_wrong_options(executor, options, message):
    with pytest.raises(KitError, match=re.escape(message)):
        check_options(executor, options)


def test_options_from_a_command_line():
    given_ = {"partition": "cpu", "time": "01:00:00", "cpus_per_task": "4", "sbatch_args": "account=a,comment=b"}
    assert check_options("slurm", given_) == given_ | {
        "cpus_per_task": 4,
        "sbatch_args": {"account": "a", "comment": "b"},
    }


@pytest.mark.parametrize("executor, missing", [("local", "datatrove"), ("ray", "ray")])
def test_a_missing_package_names_the_extra(monkeypatch, executor, missing):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == missing else real(name, *a))
    with pytest.raises(KitError, match=re.escape(f'needs the package {missing}: pip install -e ".[cluster]"')):
        check_options(executor, {})


@pytest.mark.parametrize("url", [False, True])
def test_the_shared_folder(tmp_path, url):
    shared = Shared(f"file://{tmp_path}/there" if url else tmp_path / "there")
    assert shared.is_url is url
    assert shared.read("a/b.json") is None and shared.names("a") == []
    shared.write("a/b.json", "one")
    shared.write("a/b.json", "two")
    assert shared.read("a/b.json") == "two" and shared.names("") == ["a/b.json"]
    here = tmp_path / "here"
    shared.pull(["a/b.json", "a/none"], here)
    assert (here / "a/b.json").read_text() == "two" and not (here / "a/none").exists()
    (here / "c").write_text("three")
    shared.push(["c", "none"], here)
    assert shared.names("") == ["a/b.json", "c"]
    shared.remove("a")
    shared.remove("a")
    assert shared.names("") == ["c"]


def test_a_url_of_no_file_system():
    with pytest.raises(KitError, match="--work nowhere://x"):
        Shared("nowhere://x")


def test_blocks_of_names():
    assert block_of("stages/sampling/m/block-00012-abc.jsonl") == 12
    assert block_of("stages/block-00012-x/other.json") is None


def replies(path: Path, kept: dict[str, int], spent: dict[str, float]) -> None:
    cache = CallCache(path)
    for key, value in kept.items():
        cache.put(key, {"text": value})
    for endpoint, cost in spent.items():
        cache.spend(endpoint, cost)
    cache.close()


_KEYS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9), max_size=4)
_COSTS = st.dictionaries(st.sampled_from("xy"), st.integers(0, 64).map(lambda n: n / 8), max_size=2)


@settings(deadline=None, max_examples=15)
@given(common=st.tuples(_KEYS, _COSTS), tasks=st.lists(st.tuples(_KEYS, _COSTS), min_size=1, max_size=3))
def test_merged_caches_hold_every_reply_and_every_cost(tmp_path_factory, common, tasks):
    work = tmp_path_factory.mktemp("caches")
    replies(work / CALL_CACHE, *common)
    for rank, task in enumerate(tasks):
        replies(work / task_cache(rank, len(tasks)), *task)
    assert merge_caches(work) == len(tasks)
    assert merge_caches(work) == 0
    assert not list(work.glob("calls-*"))
    merged = CallCache(work / CALL_CACHE)
    everything = [common, *tasks]
    assert len(merged) == len({key for kept, _ in everything for key in kept})
    for key, value in common[0].items():
        assert merged.get(key) == {"text": value}
    for endpoint in "xy":
        assert merged.spent(endpoint) == sum(spent.get(endpoint, 0) for _, spent in everything)
    merged.close()


def test_a_merge_that_was_killed_before_the_file_went_counts_nothing_twice(tmp_path, monkeypatch):
    replies(tmp_path / task_cache(0, 1), {"a": 1}, {"x": 2.0})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merge_caches(tmp_path)
    assert merge_caches(tmp_path) == 1
    merged = CallCache(tmp_path / CALL_CACHE)
    assert (len(merged), merged.spent("x")) == (1, 2.0)
    merged.close()


def test_a_task_finds_what_others_were_told_and_spends_its_part(tmp_path):
    replies(tmp_path / CALL_CACHE, {"a": 1, "b": 2}, {"x": 8.0})
    cache = TaskCache(tmp_path / task_cache(1, 4), tmp_path / CALL_CACHE, 4)
    cache.put("b", {"text": 3})
    cache.spend("x", 0.5)
    assert [cache.get(key) for key in "abc"] == [{"text": 1}, {"text": 3}, None]
    assert cache.spent("x") == 8.0 / 4 + 0.5
    cache.close()
    assert {path.name for path in tmp_path.iterdir()} == {CALL_CACHE, task_cache(1, 4)}
    replies(tmp_path / CALL_CACHE, {}, {})
    alone = TaskCache(tmp_path / task_cache(0, 1), tmp_path / "none.sqlite", 1)
    assert alone.get("a") is None and alone.spent("x") == 0.0
    alone.close()


def test_limits_hold_over_all_tasks(tmp_path):
    from dataset_builder.executors.tasks import _slice_job
    from dataset_builder.stages.remote import limited

    empty = dict.fromkeys(QUESTION_SCHEMA.names)
    rows = [{**empty, "question_id": f"{i:02d}", "sha256": "a"} for i in range(50)]
    write_questions(rows, tmp_path / "questions.arrow", block_size=2)
    endpoint = {"concurrency": 16, "requests_per_minute": 60.0, "spend_limit": 100.0}
    plan = Plan(
        job={
            "work": str(tmp_path), "seed": 0, "members": [{"name": "a", "endpoint": endpoint}],
            "judges": [{"name": "j", "spec": {"endpoint": endpoint}}, {"name": "k", "spec": {"kind": "reference"}}],
        },
        config={}, output="", folder="", limit=None, overwrite=False, key="", rejected={}, cwd="", executor="local",
        tasks=10, workers=4,
    )  # fmt: skip
    job = _slice_job(plan, tmp_path, 1, 10)
    for entry in (job.members[0], job.judges[0]["spec"]):
        part = limited(entry, job.share)["endpoint"]
        assert (part["concurrency"], part["requests_per_minute"], part["spend_limit"]) == (4, 15.0, 10.0)
    assert job.blocks == [1, 11, 21] and endpoint["spend_limit"] == 100.0


BEAT = """
import os, sys, time
from dataset_builder.executors.beats import Beat
from dataset_builder.executors.shared import Shared
with Beat(Shared(sys.argv[1]), "run/beats/00003.json") as beat:
    beat.count("sampling", 7)
    if sys.argv[2] == "fail":
        raise ValueError("no such thing\\nat all")
    time.sleep(60 if sys.argv[2] == "hang" else 0)
"""


def test_a_killed_task_is_told_from_a_finished_and_a_failed_one(tmp_path):
    shared = Shared(tmp_path)
    watch = Watch(shared, "run")
    watch.GRACE = 0.0

    def start(what: str) -> subprocess.Popen:
        shared.remove("run")
        return subprocess.Popen([sys.executable, "-c", BEAT, str(tmp_path), what], stderr=subprocess.DEVNULL)

    start("end").wait()
    assert watch.problem() is None
    assert read_beats(shared, "run")["00003"]["sampling"] == 7
    start("fail").wait()
    assert "task 00003 failed (ValueError: no such thing); its log is" in watch.problem()
    process = start("hang")
    while not read_beats(shared, "run"):
        time.sleep(0.01)
    assert watch.problem() is None
    process.kill()
    process.wait()
    assert "the process of task 00003 was killed" in watch.problem()


def test_a_silent_task_on_another_machine(tmp_path):
    shared = Shared(tmp_path)
    watch = Watch(shared, "run")
    shared.write("run/beats/00001.json", json.dumps({"host": "far", "pid": 1, "ppid": 1, "time": 5.0}))
    assert watch.problem() is None
    watch.SILENCE = 0.0
    assert "task 00001 on far gives no sign of life" in watch.problem()


def test_a_task_ends_with_its_parent(tmp_path):
    shared = Shared(tmp_path)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BEAT!r}, {str(tmp_path)!r}, 'hang'])",
        ]
    )
    while not (beats := read_beats(shared, "run")):
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    for _ in range(500):
        if not alive(beats["00003"]["pid"]):
            break
        time.sleep(0.02)
    assert not alive(beats["00003"]["pid"])


def test_errors_that_a_person_can_act_on_are_passed_on(tmp_path):
    beat = {"kind": "KitError", "error": "zoo/a: there is no checkpoint folder here"}
    assert task_error("00001", beat, Shared(tmp_path), "run") == beat["error"]


def test_beats_stop_with_the_task(tmp_path):
    shared = Shared(tmp_path)
    with Beat(shared, "run/beats/00000.json") as beat:
        beat.count("judging", 3)
    (found,) = read_beats(shared, "run").values()
    assert found["done"] and found["judging"] == 3 and found["pid"] == os.getpid()
