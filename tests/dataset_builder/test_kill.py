"""kill -9 in the middle of a stage: the same command goes on and ends with the same bytes."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from dataset_builder.stages import ShardStore
from tests.dataset_builder.worlds import command, environment, run_command, tree

POINTS = [("sampling", 1), ("sampling", 5), ("sampling", 12), ("judging", 1), ("judging", 8), ("judging", 11)]
FAST = [("sampling", 5), ("judging", 8)]


def kill_when(world: Path, output: Path, stage: str, shards: int, *words: object) -> ShardStore:
    """Start a build and kill it with SIGKILL as soon as a stage has so many finished shards."""
    work = output.parent / f".{output.name}-work"
    store = ShardStore(work)
    with open(output.parent / "log", "w") as log:
        process = subprocess.Popen(
            command("build", world, "--output", output, *words), env=environment(), stdout=log, stderr=log
        )
        try:
            while store.count(stage) < shards:
                assert process.poll() is None, (output.parent / "log").read_text()
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL
    return store


def killed_and_built_again(world: Path, built, tmp_path: Path, stage: str, shards: int, *words: object) -> None:
    output = tmp_path / "mmaip-v"
    store = kill_when(world, output, stage, shards, *words)
    assert not output.exists()
    finished = {path: path.stat().st_mtime_ns for path in store.root.rglob("block-*.jsonl")}
    # What a kill in the middle of a write leaves behind.
    half = next(iter(finished)).with_name(".block-00000-half.jsonl.1.tmp")
    half.write_bytes(b'{"key": "')
    again = run_command("build", world, "--output", output, *words)
    assert again.returncode == 0, again.stderr
    assert tree(output) == tree(built.output)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing was made twice
    assert not half.exists()
    assert list(tmp_path.glob(".mmaip-v.*")) == []


@pytest.mark.parametrize("stage, shards", FAST)
def test_killed_once_a_stage(world, built, tmp_path, stage, shards):
    killed_and_built_again(world, built, tmp_path, stage, shards)


@pytest.mark.slow
@pytest.mark.parametrize("stage, shards", [point for point in POINTS if point not in FAST])
def test_killed_at_the_other_points(world, built, tmp_path, stage, shards):
    killed_and_built_again(world, built, tmp_path, stage, shards)


@pytest.mark.slow
@pytest.mark.parametrize("stage, shards", [("sampling", 3), ("judging", 5)])
def test_killed_with_two_workers(world, built, tmp_path, stage, shards):
    output = tmp_path / "mmaip-v"
    store = kill_when(world, output, stage, shards, "--workers", 2)
    # Workers end by themselves when their parent is gone: the number of shards comes to rest before the end.
    rest = -1
    while rest != (now := store.count("sampling") + store.count("judging")):
        rest = now
        time.sleep(1.0)
    assert not output.exists()
    again = run_command("build", world, "--output", output, "--workers", 2)
    assert again.returncode == 0, again.stderr
    assert tree(output) == tree(built.output)
