"""Builds as several tasks: the same bytes whatever the executor and their number, and nothing is made twice."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dataset_builder.build import build
from dataset_builder.executors.beats import read_beats
from dataset_builder.executors.shared import Shared
from dataset_builder.settings import load_build_config
from tests.dataset_builder.served_world import make_served_world
from tests.dataset_builder.worlds import environment, tree
from tests.endpoints.proxy import FaultProxy, attempts_by_call, read_log
from tests.endpoints.stub import StubServer

pytest.importorskip("datatrove", reason="the extra `cluster` is not installed")

BUILD = """
import json, sys
from dataset_builder.errors import run_cli
from dataset_builder.executors import run_executor
from dataset_builder.settings import load_build_config
def main():
    config, words = load_build_config(sys.argv[1]), json.loads(sys.argv[2])
    print(json.dumps(run_executor(config, progress=False, **words)))
raise SystemExit(run_cli(main))
"""


def command(world: Path, **words) -> list[str]:
    return [
        sys.executable,
        "-c",
        BUILD,
        str(world),
        json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in words.items()}),
    ]


def run(world: Path, env: dict[str, str] | None = None, **words) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(world, **words), capture_output=True, text=True, env=env or environment(), check=False
    )


def summary_of(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # nothing of the engine's on the terminal
    return json.loads(done.stdout.splitlines()[-1])


def shards(work: Path) -> dict[str, int]:
    return {str(path.relative_to(work)): path.stat().st_mtime_ns for path in work.glob("stages/*/*/block-*.jsonl")}


def completed(work: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in work.glob("executor/*/tasks/completions/*")}


def kill_a_task(world: Path, work: Path, shard_count: int, env: dict[str, str] | None = None, **words) -> str:
    """Start a build, kill the process of one of its tasks after so many shards; returns what the build then says."""
    process = subprocess.Popen(
        command(world, work=work, **words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env or environment(),
    )
    killed = None
    while killed is None:
        assert process.poll() is None, process.communicate()
        running = {}
        if len(shards(work)) >= shard_count:
            folders = list(work.glob("executor/*"))
            running = {
                n: b for n, b in read_beats(Shared(work), f"executor/{folders[0].name}").items() if not b.get("done")
            }
        for beat in running.values():
            os.kill(beat["pid"], signal.SIGKILL)
            killed = beat["pid"]
            break
        time.sleep(0.02)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, (out, err)
    assert len(err.splitlines()) == 1 and err.startswith("error: the process of task"), err
    return err


@pytest.fixture
def quiet_ray(tmp_path):
    """An environment in which Ray looks for no cloud provider's address (it does even with usage reports off)."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed (extra `cluster`)")
    home = tmp_path / "home"
    home.mkdir()
    (home / "ray_bootstrap_config.yaml").write_text("{}\n")
    return environment() | {"HOME": str(home)}


def killed_and_run_again(world, built, tmp_path, again_tasks: int, env=None, **words) -> None:
    work, output = tmp_path / "work", tmp_path / "mmaip-v"
    kill_a_task(world, work, 6, env=env, output=output, tasks=4, workers=2, **words)
    assert not output.exists()
    finished, complete = shards(work), completed(work)
    assert finished
    summary = summary_of(run(world, env=env, work=work, output=output, tasks=again_tasks, workers=2, **words))
    assert tree(output) == tree(built.output)
    assert summary["fingerprint"] == built.summary["fingerprint"]
    after = shards(work)
    assert {name: after[name] for name in finished} == finished  # nothing was made twice
    if again_tasks == 4:
        assert {name: completed(work)[name] for name in complete} == complete


def test_local_tasks_with_one_killed(world, built, tmp_path):
    killed_and_run_again(world, built, tmp_path, 4, executor="local")
    # A third time there is nothing to do.
    work, output = tmp_path / "work", tmp_path / "mmaip-v"
    before = shards(work)
    again = summary_of(run(world, work=work, output=output, tasks=4, executor="local"))
    assert again["pairs"] == built.summary["pairs"] and shards(work) == before


@pytest.mark.slow
def test_another_number_of_tasks_finds_what_is_finished(world, built, tmp_path):
    killed_and_run_again(world, built, tmp_path, 3, executor="local")


@pytest.mark.slow
def test_ray_tasks_with_one_killed(world, built, tmp_path, quiet_ray):
    killed_and_run_again(world, built, tmp_path, 4, env=quiet_ray, executor="ray")


@pytest.mark.slow
def test_a_damaged_shard_of_a_finished_slice_is_made_again(world, built, tmp_path):
    work, output = tmp_path / "work", tmp_path / "mmaip-v"
    summary_of(run(world, work=work, output=output, tasks=2))
    before = shards(work)
    broken = sorted(before)[0]
    (work / broken).write_text((work / broken).read_text()[:-9])
    shutil.rmtree(output)
    summary_of(run(world, work=work, output=output, tasks=2))
    after = shards(work)
    assert tree(output) == tree(built.output)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {broken}


@pytest.mark.slow
def test_a_work_folder_behind_a_url(world, built, tmp_path):
    place, output = tmp_path / "bucket", tmp_path / "mmaip-v"
    words = {"work": f"file://{place}", "output": output, "tasks": 2, "workers": 2}
    summary_of(run(world, **words))
    assert tree(output) == tree(built.output)
    assert shards(place).keys() == shards(built.work).keys()
    before = shards(place)
    shutil.rmtree(output)
    lost = sorted(before)[-1]
    (place / lost).unlink()
    (tmp_path / ".mmaip-v-work" / lost).unlink(missing_ok=True)  # the copy beside the output
    summary_of(run(world, **words))
    assert tree(output) == tree(built.output)
    assert {name for name, made in shards(place).items() if before[name] != made} == {lost}


@pytest.mark.slow
@pytest.mark.parametrize("again", [4, 3])
def test_endpoints_are_not_asked_twice_after_a_kill(tmp_path, again):
    concurrency, work, output, log = 4, tmp_path / "work", tmp_path / "mmaip-v", tmp_path / "log.jsonl"
    with StubServer(latency=0.03) as stub, FaultProxy(stub.url, log) as proxy:
        config = make_served_world(tmp_path, proxy.url, concurrency=concurrency)
        kill_a_task(config, work, 9, output=output, tasks=4, workers=2)
        at_kill = len(read_log(log))
        summary_of(run(config, work=work, output=output, tasks=again, workers=2))
        calls = attempts_by_call(read_log(log))
        plain = build(load_build_config(config), tmp_path / "plain" / "mmaip-v", progress=False)
    assert tree(output) == tree(tmp_path / "plain" / "mmaip-v")
    made = read_log(log)
    assert at_kill < sum(map(len, calls.values()))
    repeated = sum(len(attempts) - 1 for attempts in calls.values())
    assert repeated <= concurrency, (repeated, at_kill)
    assert calls.keys() == attempts_by_call(made[sum(map(len, calls.values())) :]).keys()  # those of the plain build
    assert plain["answers"] > 0 and not plain["errors"]
    assert not list(work.glob("calls-*"))  # the common cache has them all


SBATCH = """#!{python}
import json, os, pathlib, re, subprocess, sys
folder = pathlib.Path({folder!r})
number = 100 + len(list(folder.glob("*.slurm")))
script = pathlib.Path(sys.argv[-1]).read_text()
(folder / f"{{number}}.slurm").write_text(script)
(folder / f"{{number}}.json").write_text(json.dumps(sys.argv[1:-1]))
if {execute} and "launch_pickled_pipeline" in script:
    last = int(re.search(r"--array=0-(\\d+)", script)[1])
    for index in range(last + 1):
        more = {{"SLURM_ARRAY_TASK_ID": str(index), "SLURM_NODELIST": "localhost", "SLURM_JOB_ID": str(number)}}
        with open(folder / f"{{number}}-{{index}}.out", "wb") as log:
            subprocess.run(["bash", sys.argv[-1]], env={{**os.environ, **more}}, stdout=log, stderr=log)
print("Submitted batch job", number)
"""
SRUN = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n'
SCONTROL = "#!/bin/bash\necho localhost\n"


def fake_slurm(folder: Path, execute: bool) -> dict[str, str]:
    """Slurm's commands as far as scripts go; ``execute`` runs the tasks of an array one after the other."""
    folder.mkdir()
    files = {"sbatch": SBATCH.format(python=sys.executable, folder=str(folder), execute=execute)}
    files |= {"srun": SRUN, "scontrol": SCONTROL}
    for name, text in files.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    return environment() | {
        "PATH": f"{folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }


def test_slurm_scripts(world, tmp_path):
    env = fake_slurm(tmp_path / "bin", execute=False)
    options = {"partition": "cpu", "time": "02:00:00", "cpus_per_task": "3", "sbatch_args": "account=video"}
    work, output = tmp_path / "work", tmp_path / "mmaip-v"
    done = run(world, env, work=work, output=output, executor="slurm", tasks=5, workers=2, options=options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "null" and not output.exists()
    assert len(done.stderr.splitlines()) == 1 and "jobs 100, 102" in done.stderr
    scripts = {path.stem: path.read_text() for path in (tmp_path / "bin").glob("*.slurm")}
    arguments = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "bin").glob("*.json")}
    runs = [number for number, text in sorted(scripts.items()) if "launch_pickled_pipeline" in text]
    assert runs == ["100", "102"]
    said = [dict(re.findall(r"#SBATCH --([a-z-]+)=(.*)", scripts[number])) for number in runs]
    assert (said[0]["array"], said[1]["array"]) == ("0-4%2", "0-0%1")
    for lines in said:
        assert (lines["partition"], lines["time"], lines["cpus-per-task"]) == ("cpu", "02:00:00", "3")
        assert lines["account"] == "video"
    assert said[1]["kill-on-invalid-dep"] == "yes"
    assert not any("dependency" in word for word in arguments["100"])
    assert "--dependency=afterok:100" in arguments["102"]
    folder = next(iter((work / "executor").iterdir()))
    assert folder.name.endswith("-5")
    for number, step in zip(runs, ("tasks", "finish"), strict=True):
        last = scripts[number].strip().splitlines()[-1]
        assert last.endswith(f"launch_pickled_pipeline {folder}/{step}/executor.pik"), last
        assert (folder / step / "launch_script.slurm").read_text() == scripts[number]
        assert f"source {sys.prefix}/bin/activate" in scripts[number]


@pytest.mark.slow
def test_slurm_scripts_do_what_they_say(world, built, tmp_path):
    env = fake_slurm(tmp_path / "bin", execute=True)
    words = {"work": tmp_path / "work", "output": tmp_path / "mmaip-v", "executor": "slurm", "tasks": 2}
    words["options"] = {"partition": "cpu", "time": "1"}
    done = run(world, env, **words)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "mmaip-v") == tree(built.output)
    assert summary_of(run(world, env, **words))["pairs"] == built.summary["pairs"]  # the same command shows the result


@pytest.mark.slow
def test_a_failing_task_is_one_line(world, tmp_path):
    """A checkpoint that cannot be loaded is noticed by a task, and said by the command."""
    config = yaml.safe_load(Path(world).read_text())
    model = Path(config["zoo"][0]["model"])
    weak = tmp_path / "weak"
    weak.mkdir()
    for file in model.iterdir():
        (weak / file.name).write_bytes(file.read_bytes())
    (weak / "config.json").write_text("{}")
    config["zoo"][0]["model"] = str(weak)
    path = tmp_path / "build.yaml"
    path.write_text(yaml.safe_dump(config))
    done = run(path, work=tmp_path / "work", output=tmp_path / "mmaip-v", limit=4, tasks=2, workers=2)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and str(weak) in done.stderr, done.stderr
