"""The command itself: real launches, killed and started again, on two processes, with what is missing or wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dataset_builder.errors import KitError
from dataset_builder.models import checkpoint_revision, load_model
from recipes.arms.run import to_argv
from recipes.extrapolate import distance
from recipes.rounds import load_state
from recipes.settings import parse

CLONE = Path(__file__).parents[2]
SCRIPT, TOY = "recipes/iter_w2s.py", "recipes/configs/toy.yaml"
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_DISABLE_TELEMETRY": "1"}


def command(launcher: list[str], fields: dict, output: Path) -> list[str]:
    return [*launcher, SCRIPT, "--config", TOY, *to_argv({**fields, "output_dir": output})]


def start(words: list[str]) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, cwd=CLONE, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def contents(output: Path) -> dict[str, bytes]:
    """Every file of a run except the log of times."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name != "run_log.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(small_module, tmp_path_factory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    done = finish(start(command(LAUNCH, small_module, output)))
    assert done.returncode == 0, done.stderr
    return output, done.stdout


@pytest.fixture(scope="module")
def small_module(dataset, base) -> dict:
    from tests.recipes.conftest import small_fields

    return small_fields(dataset, base)


def test_rounds_are_complete_checkpoints(undisturbed, base):
    output, stdout = undisturbed
    assert "world size 1" in stdout
    summary = json.loads((output / "rounds.json").read_text())
    reference = load_state(base)
    start_state = reference
    for number, metrics in enumerate(summary["rounds"], 1):
        folder = output / f"round-{number}"
        assert json.loads((folder / "metrics.json").read_text()) == metrics
        assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
        assert load_model(folder).template_hash == load_model(base).template_hash
        assert metrics["steps"] == 2 and metrics["learning_rate"] == 1e-3
        assert [point["alpha"] for point in metrics["alpha_curve"]] == [0.0, 0.5]
        best = max(point["accuracy"] for point in metrics["alpha_curve"])
        first = next(point["alpha"] for point in metrics["alpha_curve"] if point["accuracy"] == best)
        assert metrics["alpha"] == first and metrics["validation_accuracy"] == best, "ties go to the smaller alpha"
        state = load_state(folder)
        assert metrics["distance"] == pytest.approx(distance(state, reference))
        assert metrics["round_distance"] == pytest.approx(distance(state, start_state)) != 0
        start_state = state
    assert len({checkpoint_revision(output / f"round-{n}") for n in (1, 2, 3)}) == 3


def test_killed_after_a_round_it_goes_on_with_the_next(undisturbed, small_module, tmp_path):
    output = tmp_path / "run"
    words = command(LAUNCH, small_module, output)
    process = start(words)
    deadline = time.monotonic() + 200
    while not (output / "round-1").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    kept = sum((output / f"round-{n}").exists() for n in (1, 2, 3))
    assert kept in (1, 2), "on a busy machine the kill may come a round late"
    before = (output / "round-1").stat().st_ino, (output / "round-1" / "model.safetensors").stat().st_mtime_ns
    done = finish(start(words))
    assert done.returncode == 0, done.stderr
    assert f"{kept} of 3 rounds are there already" in done.stdout
    assert not re.search(r"round 1/3: (step|validation)", done.stdout)
    after = (output / "round-1").stat().st_ino, (output / "round-1" / "model.safetensors").stat().st_mtime_ns
    assert after == before
    assert contents(output) == contents(undisturbed[0])


@pytest.mark.slow
def test_two_processes(small_module, undisturbed, base, tmp_path):
    fields = {**small_module, "rounds": 1, "per_device_train_batch_size": 2, "sft_weight": 0.0}
    done = finish(start(command(TORCHRUN, fields, tmp_path / "two")))
    assert done.returncode == 0, done.stderr
    assert "world size 2" in done.stdout and "2 steps × 4 pairs" in done.stdout
    assert done.stdout.count("rounds in") == 1, "one process reports"
    from recipes.iter_w2s import main

    fields |= {"per_device_train_batch_size": 4, "output_dir": tmp_path / "one"}
    assert main(["--config", str(CLONE / TOY), *to_argv(fields)]) == 0
    states = [load_state(tmp_path / name / "round-1") for name in ("two", "one")]
    moved = distance(states[1], load_state(base))
    assert distance(*states) < 0.05 * moved, "two processes take the same step as one with the same pairs"


def test_lora_rounds(small_module, base, tmp_path):
    from recipes.iter_w2s import main

    fields = {**small_module, "use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "rounds": 2, "alphas": [0.0]}
    fields |= {"output_dir": tmp_path / "lora", "save_dtype": "bfloat16"}
    assert main(["--config", str(CLONE / TOY), *to_argv(fields)]) == 0
    first, second = (load_model(tmp_path / "lora" / f"round-{n}").model for n in (1, 2))
    assert first.dtype == torch.bfloat16 and not [n for n, _ in first.named_parameters() if "lora" in n]
    metrics = json.loads((tmp_path / "lora" / "round-2" / "metrics.json").read_text())
    assert metrics["realised"]["dtype"] == "bfloat16" and 0 < metrics["realised"]["cosine"] <= 1
    start_state = load_state(base)
    changed = {n for n, p in second.named_parameters() if not torch.equal(p, start_state[n].bfloat16())}
    assert changed and all("language_model" in name and "embed" not in name for name in changed)
    whole = contents(tmp_path / "lora")
    assert not [name for name in whole if "handover" in name]

    def stop(line: str) -> None:
        if line.startswith("round 1/2: validation"):
            raise KeyboardInterrupt

    from recipes.iter_w2s import plan_of
    from recipes.rounds import run_rounds
    from recipes.workbench import Workbench

    words = ["--config", str(CLONE / TOY), *to_argv({**fields, "output_dir": tmp_path / "again"})]
    settings = parse(words)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(Workbench(settings, stop), plan_of(settings), tmp_path / "again")
    assert sorted(path.name for path in (tmp_path / "again").glob("round-*")) == ["round-1"]
    assert main(words) == 0
    assert contents(tmp_path / "again") == whole, "round 2 went on from fp32 weights, not from the saved bfloat16"


def test_another_configuration_is_refused(undisturbed, small_module, tmp_path):
    from recipes.iter_w2s import main

    output = tmp_path / "run"
    shutil.copytree(undisturbed[0], output)
    words = ["--config", str(CLONE / TOY), *to_argv({**small_module, "output_dir": output})]
    assert main(words) == 0
    with pytest.raises(KitError, match=r"another configuration \(learning_rate 0.001 → 0.0005\).*--overwrite"):
        main([*words, "--learning_rate", "5e-4"])
    assert contents(output) == contents(undisturbed[0])
    assert main([*words, "--learning_rate", "5e-4", "--rounds", "1", "--overwrite"]) == 0
    assert sorted(path.name for path in output.glob("round-*")) == ["round-1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name_or_path": "runs/demo/models/none"}, "runs/demo/models/none is missing: run make demo first"),
        ({"dataset_name": "no-such-dataset"}, "no-such-dataset is missing: run make demo first"),
        ({"config": "no.yaml"}, "no.yaml: cannot be read"),
    ],
)
def test_what_is_missing_is_said_in_one_line(small, tmp_path, change, message):
    words = to_argv({"config": TOY, **small, "output_dir": tmp_path / "run", **change})
    done = finish(start([sys.executable, SCRIPT, *words]))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": [0.5, 1.0]}, "must contain 0"),
        ({"max_steps": 0}, "max_steps is needed"),
        ({"dtype": "bfloat16"}, "fp32 masters"),
        ({"use_peft": True, "use_dora": True}, "DoRA"),
        ({"precompute_ref_log_probs": False}, "precompute_ref_log_probs must stay true"),
        ({"save_dtype": "int8"}, "save_dtype"),
        ({"learning_rate": "fast"}, "learning_rate.*'fast'"),
    ],
)
def test_values_out_of_range(small, tmp_path, change, message):
    with pytest.raises(KitError, match=message):
        parse(to_argv({**small, "output_dir": tmp_path, **change}))


def test_unknown_key_in_the_yaml(small, tmp_path):
    (tmp_path / "bad.yaml").write_text("alfas: [0.0]\n")
    with pytest.raises(KitError, match="alfas"):
        parse(["--config", str(tmp_path / "bad.yaml"), *to_argv({**small, "output_dir": tmp_path})])
