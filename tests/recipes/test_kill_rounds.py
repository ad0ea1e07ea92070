"""SIGKILL at random points: the same command again ends with the same bytes, and repeats nothing that was finished."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.arms.run import to_argv
from tests.recipes.processes import CLONE, Death, Ended, Warm

STEPS, ROUNDS = 3, 3
TOY = str(CLONE / "recipes/configs/toy.yaml")


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    """One process that has TRL imported."""
    process = Warm()
    yield process
    process.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A dataset with the zoo's answers."""
    from tests.recipes.zoo_world import make_world

    return make_world(tmp_path_factory.mktemp("kills") / "mmaip-v")


class Rounds:
    """A three-round run, undisturbed once, to be killed elsewhere."""

    def __init__(self, warm: Warm, base: Path, world: Path, pairs: str, folder: Path):
        self.warm, self.folder = warm, folder
        self.fields = {
            "model_name_or_path": base,
            "dataset_name": world,
            "rounds": ROUNDS,
            "max_steps": STEPS,
            "save_steps": 1,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "alphas": [0.0, 0.5],
            "max_new_tokens": 2,
            "pairs": pairs,
            "judges": ['{"kind": "reference"}'],
            "own_samples": 2,
            "stop_early": False,
            "slices": False,
            # An untrained model's answers are no answers: the guards would end every run at once.
            **{"max_malformed": 1.0, "max_repeated": 1.0, "max_chosen_drop": 1e3, "max_margin": 1e3},
            "max_length_ratio": 1e3,
            "use_cpu": True,
        }
        self.whole = self.run("undisturbed")
        assert self.whole.code == 0, self.whole.log
        assert self.whole.steps == ROUNDS * STEPS, self.whole.log
        self.bytes = contents(folder / "undisturbed")

    def run(self, name: str, death: Death | None = None) -> Ended:
        """The command with an output folder of its own."""
        output = self.folder / name
        words = ["--config", TOY, *to_argv({**self.fields, "output_dir": output})]
        return self.warm.run("iter_w2s", words, output, death)

    def survives(self, name: str, death: Death) -> str:
        """Kill, type the command again, compare.

        Returns:
            What was there when it was killed, for a report.
        """
        output = self.folder / name
        killed = self.run(name, death)
        assert killed.code == -9, f"{death} was never reached:\n{killed.log}"
        kept, step = finished_rounds(output), last_step(output)
        again = self.run(name)
        assert again.code == 0, f"{death}: {again.log}"
        assert contents(output) == self.bytes, death
        if kept:
            assert f"{kept} of {ROUNDS} rounds are there already" in again.log
        assert again.log.count(": validation ") == ROUNDS - kept, "a finished round was repeated"
        assert again.steps == (ROUNDS - kept) * STEPS - step, f"{death}: steps after checkpoint-{step} only"
        assert len(re.findall(r"going on at \S+checkpoint-", again.log)) == (step > 0)
        return f"{death.kind} {death.at}: {kept} rounds and {step} steps were there, {again.steps} steps were made"


def contents(output: Path) -> dict[str, bytes]:
    """Every file of a run except the log of times."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name != "run_log.json"]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def finished_rounds(output: Path) -> int:
    """Rounds that are there whole."""
    return len(list(output.glob("round-*/metrics.json")))


def last_step(output: Path) -> int:
    """Steps of the round in progress that a complete checkpoint holds."""
    found = [0]
    for path in output.glob(f".round-{finished_rounds(output) + 1}/steps/checkpoint-*/trainer_state.json"):
        try:
            found.append(json.loads(path.read_text())["global_step"])
        except ValueError:
            continue
    return max(found)


def deaths(counts: dict[str, int], number: int, seed: int) -> list[Death]:
    """Random points: by turns writes and forward passes, each kind spread evenly over the run; some a moment later."""
    chance, found = random.Random(seed), []
    for kind, start in (("write", 0), ("forward", 1)):
        mine = range(start, number, 2)
        for place, _ in enumerate(mine):
            at = 1 + int(counts[kind] * (place + chance.random()) / len(mine))
            found.append(Death(kind, min(at, counts[kind]), chance.choice([0.0, chance.uniform(0, 0.05)])))
    return found


@pytest.fixture(scope="module")
def on_policy(warm, base, world, tmp_path_factory) -> Rounds:
    return Rounds(warm, base, world, "on_policy", tmp_path_factory.mktemp("on-policy"))


@pytest.fixture(scope="module")
def fixed(warm, base, world, tmp_path_factory) -> Rounds:
    return Rounds(warm, base, world, "fixed", tmp_path_factory.mktemp("fixed"))


def test_two_kills(on_policy):
    for number, death in enumerate(deaths(on_policy.whole.counts, 2, seed=0)):
        print(on_policy.survives(f"two-{number}", death))


@pytest.mark.parametrize("adapter", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_dpo_goes_on_at_its_checkpoint(warm, base, dataset, adapter, tmp_path):
    fields = {"dataset_name": dataset, "model_name_or_path": base, "max_steps": 4, "per_device_train_batch_size": 4}
    fields |= {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 1, "bf16": False, "use_cpu": True}
    fields |= {"use_peft": adapter, "lora_r": 4, "lora_dropout": 0.1, "disable_dropout": False}

    def run(name: str, death: Death | None = None) -> Ended:
        return warm.run("dpo", to_argv({**fields, "output_dir": tmp_path / name}), tmp_path / name, death)

    whole = run("whole")
    assert whole.code == 0 and whole.steps == 4, whole.log
    (tmp_path / "killed").mkdir()
    death = deaths(whole.counts, 2, seed=3)[0]
    killed = run("killed", death)
    assert killed.code == -9, killed.log
    found = [json.loads(p.read_text())["global_step"] for p in (tmp_path / "killed").glob("*/trainer_state.json")]
    again = run("killed")
    assert again.code == 0 and again.steps == 4 - max(found, default=0), again.log
    assert found and again.log.count("going on at") == 1
    results = [{n: b for n, b in contents(tmp_path / name).items() if "/" not in n} for name in ("whole", "killed")]
    assert results[0] == results[1]
    assert any(name.endswith("model.safetensors") for name in results[0])


@pytest.mark.slow
@pytest.mark.parametrize("pairs", ["on_policy", "fixed"])
def test_ten_kills(pairs, request):
    rounds = request.getfixturevalue(pairs)
    for number, death in enumerate(deaths(rounds.whole.counts, 10, seed=1)):
        print(pairs, rounds.survives(f"ten-{number}", death))
