"""The toy world's models: trained once, again for another seed, and no worker outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dataset_builder.errors import KitError
from dataset_builder.models import load_model
from dataset_builder.toy import TYPES, generate_toy
from recipes.rounds import load_state
from recipes.toy import JOBS, Job, _fingerprint, measure, train_toy_models

SMALL = (
    Job("base", "qwen2_vl", steps=2, batch=2, bias_steps=1),
    Job("zoo/two", "internvl", ("shape",), steps=2, batch=2),
)
LONG = "Job('base', 'qwen2_vl', steps=100_000, batch=2), Job('zoo/two', 'internvl', steps=100_000, batch=2)"
CODE = (
    "import sys\n"
    "from dataset_builder.errors import run_cli\n"
    "from recipes.toy import Job, train_toy_models\n"
    "import recipes.toy\n"
    "recipes.toy.PROGRESS_EVERY = 0.5\n"
    "say = lambda line: print(line, flush=True)\n"
    "if __name__ == '__main__':\n"
    f"    sys.exit(run_cli(lambda: train_toy_models(sys.argv[1], sys.argv[2], jobs=({LONG}), say=say)))\n"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "world"
    generate_toy(folder, 1, {"pretrain": 6, "validation": 2})
    return folder


def stamps(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def keep(said: list[str]):
    """Collects the lines about finished models; how many lines of progress come is a matter of speed."""
    return lambda line: said.append(line) if line.startswith("  trained ") else None


def test_models_are_trained_once_and_again_for_another_seed(world, tmp_path):
    said: list[str] = []
    made = train_toy_models(tmp_path, world, 0, workers=1, jobs=SMALL, say=keep(said))
    assert list(made["models"]) == ["base", "zoo/two"]
    assert sorted(made["types_used"] + made["types_left_out"]) == sorted(TYPES)
    assert len(said) == 2 and said[-1].endswith("2/2")
    for job in SMALL:
        folder = tmp_path / "models" / job.folder
        assert json.loads((folder / "training.json").read_text()) == made["models"][job.folder]
        assert set(made["models"][job.folder]["accuracy"]) == set(TYPES)
        assert type(load_model(folder).model).__name__.lower().startswith(job.arch.replace("_", ""))
    before, said = stamps(tmp_path), []
    assert train_toy_models(tmp_path, world, 0, workers=2, jobs=SMALL, say=keep(said)) == made
    assert not said and stamps(tmp_path) == before, "nothing was trained again"
    start = load_state(tmp_path / "models" / "base")
    said = []
    train_toy_models(tmp_path, world, 1, workers=1, jobs=SMALL[:1], say=keep(said))
    assert len(said) == 1
    state = load_state(tmp_path / "models" / "base")
    assert any(not state[name].equal(start[name]) for name in state), "another seed gives other weights"


def test_another_job_or_world_is_another_model():
    keys = {_fingerprint(job, truth, seed) for job in SMALL for truth in ("a", "b") for seed in (0, 1)}
    assert len(keys | {_fingerprint(replace(SMALL[1], steps=3), "a", 0)}) == 9


def test_a_world_without_validation_clips_is_refused(tmp_path):
    generate_toy(tmp_path / "world", 1, {"pretrain": 2})
    scenes = json.loads((tmp_path / "world" / "truth.json").read_text())["clips"]
    with pytest.raises(KitError, match="no validation clips"):
        measure(None, None, scenes, tmp_path / "world" / "videos")


def test_jobs_of_the_demo_are_different_architectures():
    zoo = [job for job in JOBS if job.folder.startswith("zoo/")]
    assert len({job.arch for job in zoo}) == len(zoo) >= 4
    assert len({job.specialities for job in zoo}) == len(zoo)
    assert set().union(*(job.specialities for job in zoo)) == set(TYPES)


def alive(group: int) -> bool:
    """Whether a process group still has a member that runs."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it ended while we looked
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_workers_end_with_their_parent(world, tmp_path, how):
    script = tmp_path / "train.py"
    script.write_text(CODE)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "run"), str(world)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    line = process.stdout.readline()  # both train by the time the first progress line comes
    assert "clips seen" in line and "clips/s" in line and "s left" in line, process.communicate()
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process.pid), "a worker went on without its parent"
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert errors == "stopped; the same command goes on from here\n"
    assert not list((tmp_path / "run").rglob("training.json"))
    assert os.path.isdir(world)
