"""kill -9 at random points of a build through endpoints: the same dataset, and hardly a call made twice."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.dataset_builder.served_world import MEMBERS, make_served_world
from tests.dataset_builder.worlds import command, environment, run_command, tree
from tests.endpoints.proxy import FaultProxy, attempts_by_call, read_log
from tests.endpoints.stub import StubServer

CONCURRENCY = 4


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder of the world, files of the dataset, number of sampling and judging calls)."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with StubServer(latency=0.01) as stub, FaultProxy(stub.url, folder / "log.jsonl") as proxy:
        config = make_served_world(folder, proxy.url, concurrency=CONCURRENCY)
        done = run_command("build", config, "--output", folder / "mmaip-v", "--quiet")
    assert done.returncode == 0, done.stderr
    calls = read_log(folder / "log.jsonl")
    judging = sum(call.judging for call in calls)
    return folder, tree(folder / "mmaip-v"), (len(calls) - judging, judging)


def moments(counts: tuple[int, int], number: int, seed: int) -> list[tuple[str, int]]:
    """Random points in the order in which a build comes to them: (stage, calls made or milliseconds into it)."""
    rng = random.Random(seed)
    sampling, judging = counts
    late = max(1, number // 6)
    early = number - 2 * late
    points = [("sampling", n) for n in rng.sample(range(1, sampling), early - early // 2)]
    points += [("judging", sampling + n) for n in rng.sample(range(1, judging), early // 2)]
    points += [("selecting", rng.randrange(0, 60)) for _ in range(late)]
    points += [("writing", rng.randrange(0, 200)) for _ in range(late)]
    order = ("sampling", "judging", "selecting", "writing")
    return sorted(points, key=lambda point: (order.index(point[0]), point[1]))


def different_calls(log: Path) -> int:
    """Calls in the log, each counted once however often it was made."""
    lines = log.read_bytes().rpartition(b"\n")[0].splitlines()
    return len({entry["call"] for entry in map(json.loads, lines) if entry["event"] == "start"})


def kill_at(config: Path, output: Path, log: Path, stage: str, when: int) -> bool:
    """Start the build and kill it there; False when it was faster than the knife."""
    work = output.with_name(f".{output.name}-work")

    def reached() -> bool:
        if stage in ("sampling", "judging"):
            return log.exists() and different_calls(log) >= when
        if stage == "selecting":
            return any((work / "assembled").glob("*responses.parquet*"))
        return output.with_name(f".{output.name}.new").exists()

    with open(output.parent / "stderr", "w") as stderr:
        process = subprocess.Popen(
            command("build", config, "--output", output, "--quiet"), env=environment(), stderr=stderr, stdout=stderr
        )
        try:
            while process.poll() is None and not reached():
                time.sleep(0.001)
            if stage in ("selecting", "writing"):
                time.sleep(when / 1000)
            alive = process.poll() is None
        finally:
            process.kill()
            process.wait()
    return alive


def kill_often(undisturbed, tmp_path: Path, number: int, seed: int) -> None:
    folder, files, counts = undisturbed
    log, output = tmp_path / "log.jsonl", tmp_path / "mmaip-v"
    points, killed = moments(counts, number, seed), Counter()
    with StubServer(latency=0.01) as stub, FaultProxy(stub.url, log) as proxy:
        config = make_served_world(folder, proxy.url, concurrency=CONCURRENCY)
        for stage, when in points:
            if output.exists():
                break
            killed[stage] += kill_at(config, output, log, stage, when)
        done = run_command("build", config, "--output", output, "--quiet")
    assert done.returncode == 0, done.stderr
    assert killed.total() >= number - 2  # a point near the very end may come too late
    assert killed["sampling"] and killed["judging"]
    assert tree(output) == files
    assert list(tmp_path.glob(".mmaip-v.*")) == []
    # At most what was in flight at each kill is asked again: two members sample side by side, one judge judges.
    in_flight = CONCURRENCY * (len(MEMBERS) * killed["sampling"] + killed["judging"])
    repeated = sum(len(attempts) - 1 for attempts in attempts_by_call(read_log(log)).values())
    assert repeated <= in_flight
    print(f"kills {dict(killed)}, {sum(counts)} calls, {repeated} repeated (at most {in_flight} were in flight)")


def test_killed_three_times(undisturbed, tmp_path):
    kill_often(undisturbed, tmp_path, number=6, seed=0)


@pytest.mark.slow
def test_killed_twenty_times(undisturbed, tmp_path):
    kill_often(undisturbed, tmp_path, number=20, seed=1)
