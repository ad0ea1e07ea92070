"""The loop: rounds of DPO, each from where the last one ended, each followed by an extrapolation.

A round's checkpoint folder appears in one rename and holds everything the next round needs, so a run that is stopped at
any moment goes on at the round it was in. `rounds.json` beside the folders says which configuration they belong to.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from dataset_builder.errors import KitError
from eval.results import read_json, write_text
from recipes.checkpoints import load_state, place, save_checkpoint
from recipes.extrapolate import State, distance, realised, snapshot

if TYPE_CHECKING:
    from recipes.workbench import Workbench

SUMMARY = "rounds.json"
HANDOVER = ".handover.safetensors"  # fp32 weights for the next round, when the saved ones are of another type


@dataclass(frozen=True)
class Plan:
    """How a run is divided.

    Attributes:
        rounds: rounds.
        steps: optimizer steps of each.
        learning_rate: of each.
        alphas: extrapolation steps to choose from; (0,) does not extrapolate.
    """

    rounds: int
    steps: int
    learning_rate: float
    alphas: Sequence[float] = (0.0,)


def run_rounds(
    bench: Workbench, plan: Plan, output: str | Path, overwrite: bool = False, name: str = ""
) -> list[dict[str, Any]]:
    """Train the rounds that are missing.

    Args:
        bench: the base model, data and evaluation; its model ends as the last round's.
        plan: rounds, steps, learning rate, alphas.
        output: gets ``round-1`` … ``round-T``, each a complete checkpoint with ``metrics.json``, and ``rounds.json``.
        overwrite: replace rounds of another configuration.
        name: for progress lines.

    Returns:
        Each round's metrics.

    Raises:
        KitError: when the folder holds rounds of another configuration.
    """
    output = Path(output)
    identity = run_identity(bench, plan)
    key = fingerprint(identity)
    done = bench.share(_resume(output, identity, key, overwrite) if bench.rank == 0 else None)
    state: State = bench.theta_base
    if done:
        bench.log(f"{name}{output}: {len(done)} of {plan.rounds} rounds are there already")
        state = _handed_over(output, len(done), bench, plan.rounds)
    bench.load(state)
    for number in range(len(done) + 1, plan.rounds + 1):
        began, label = time.monotonic(), f"{name}round {number}/{plan.rounds}"
        reference = state
        train = bench.train_dpo((number - 1) * plan.steps, plan.steps, plan.learning_rate, label)
        state, choice = bench.choose_alpha(snapshot(bench.model), reference, plan.alphas, label)
        metrics = {
            "round": number,
            **choice,
            "learning_rate": plan.learning_rate,
            "steps": plan.steps,
            "distance": distance(state, bench.theta_base),
            "round_distance": distance(state, reference),
            "train": train,
            "fingerprint": key,
        }
        done.append(metrics)
        if bench.rank == 0:
            saved = save_round(output, bench, state, reference, metrics, last=number == plan.rounds)
            _write_summary(output, identity, key, done)
            _log_time(output, number, time.monotonic() - began)
            bench.log(
                f"{label}: validation {100 * metrics['validation_accuracy']:.1f} % at alpha {metrics['alpha']:g}, "
                f"moved {metrics['distance']:.3f} from the base{saved}, {time.monotonic() - began:.1f} s"
            )
        bench.share(None)  # nobody starts the next round before this one is on disk
    return done


def run_identity(bench: Workbench, plan: Plan) -> dict[str, Any]:
    """Everything that decides the rounds' weights."""
    return {
        **bench.settings.identity(),
        "rounds": plan.rounds,
        "max_steps": plan.steps,
        "learning_rate": plan.learning_rate,
        "alphas": list(plan.alphas),
        "pairs_per_step": bench.batch_size,
        "base": bench.base_revision,
        "dataset": bench.dataset_fingerprint,
    }


def fingerprint(identity: dict[str, Any]) -> str:
    """16 hex digits of an identity's canonical JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_round(
    output: Path, bench: Workbench, state: State, reference: State, metrics: dict, last: bool = False
) -> str:
    """Write one round's checkpoint folder; it is complete or absent.

    Args:
        output: the run's folder.
        bench: its model holds `state`.
        state: the fp32 weights of the round.
        reference: those the round started from.
        metrics: for ``metrics.json``; what a smaller saved type kept of the step is added.
        last: no round follows, so nobody needs the fp32 weights.

    Returns:
        A remark on what the saved type kept of the step, or "".
    """
    script, number, remark = bench.settings.script, metrics["round"], ""

    def write(folder: Path) -> None:
        dtype = getattr(torch, script.save_dtype)
        weights = None
        if dtype is not torch.float32:
            weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
            kept = realised(weights, state, reference)
            metrics["realised"] = {"dtype": script.save_dtype, **vars(kept)}
            nonlocal remark
            remark = f", {script.save_dtype} keeps cosine {kept.cosine:.2f} of the step"
        save_checkpoint(bench.model, bench.processor, folder, weights, dtype)
        write_text(folder / "metrics.json", json.dumps(metrics, indent=1, sort_keys=True) + "\n")

    if script.save_dtype != "float32" and not last:
        part = output / (HANDOVER + ".part")
        output.mkdir(parents=True, exist_ok=True)
        save_file({k: v.clone() for k, v in state.items()}, part, metadata={"round": str(number)})
        os.replace(part, output / f"{HANDOVER}.{number}")
    place(output / f"round-{number}", write)
    for old in output.glob(f"{HANDOVER}.*"):
        if last or old.name != f"{HANDOVER}.{number}":
            old.unlink()
    return remark


def _resume(output: Path, identity: dict, key: str, overwrite: bool) -> list[dict]:
    """Metrics of the rounds that can stay; refuses or clears those of another configuration."""
    summary = output / SUMMARY
    folders = [p for p in output.glob("round-*") if p.is_dir()]
    known = read_json(summary) if summary.exists() else {}
    if folders and known.get("fingerprint") != key:
        if not overwrite:
            raise KitError(
                f"{output} holds rounds of another configuration ({difference(known.get('config', {}), identity)}); "
                "choose another --output_dir, or replace them with --overwrite"
            )
        for folder in folders:
            shutil.rmtree(folder)
    done = []
    while (path := output / f"round-{len(done) + 1}" / "metrics.json").exists():
        done.append(read_json(path))
    _write_summary(output, identity, key, done)
    return done


def difference(old: dict, new: dict) -> str:
    """What changed between two identities, in a few words."""
    new = json.loads(json.dumps(new, default=str))
    changed = [f"{k} {old.get(k)} → {new.get(k)}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return ", ".join(changed[:4]) + (" …" if len(changed) > 4 else "") if old and changed else "no record of it"


def _handed_over(output: Path, number: int, bench: Workbench, last: int) -> State:
    """The fp32 state round `number` ended with; for the last one what was saved will do."""
    file = output / f"{HANDOVER}.{number}"
    if file.exists():
        return load_file(file)
    if bench.settings.script.save_dtype != "float32" and number < last:
        raise KitError(f"{file} is gone: the rounds cannot go on without their fp32 weights; use --overwrite")
    return load_state(output / f"round-{number}")


def _write_summary(output: Path, identity: dict, key: str, done: list[dict]) -> None:
    content = {"fingerprint": key, "config": identity, "rounds": done}
    write_text(output / SUMMARY, json.dumps(content, indent=1, sort_keys=True, default=str) + "\n")


def _log_time(output: Path, number: int, seconds: float) -> None:
    """Times are kept apart from everything that is compared."""
    path = output / "run_log.json"
    log = read_json(path) if path.exists() else {"rounds": []}
    log["rounds"].append({"round": number, "seconds": round(seconds, 3)})
    write_text(path, json.dumps(log, indent=1) + "\n")
