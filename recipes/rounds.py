"""The loop: rounds of DPO, each from where the last one ended, each followed by an extrapolation.

A round's checkpoint folder appears in one rename and holds everything the next round needs, so a run that is stopped at
any moment goes on in the round it was in: at its last step checkpoint, with the pairs that were built for it (both in
`.round-N`, gone when the round is done). `rounds.json` says which configuration they belong to, and why they ended.
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

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dataset_builder.errors import KitError
from eval.results import read_json, write_text
from recipes.alpha import plateau
from recipes.checkpoints import load_state, place, save_checkpoint
from recipes.extrapolate import State, distance, realised, snapshot
from recipes.extrapolate.measure import movement
from recipes.guards import RoundHealth, violations
from recipes.round_adapter import FOLDER as ADAPTER
from recipes.round_adapter import RoundAdapter
from recipes.settings import difference
from recipes.validation import FILE as VALIDATION

if TYPE_CHECKING:
    from recipes.workbench import Workbench

SUMMARY = "rounds.json"
NO_PAIRS = {
    "fixed": "no answers differ by the margin in the eyes of these judges",
    "on_policy": "the model makes no error that a pair could be built from",
}
HANDOVER = ".handover.safetensors"  # fp32 weights for the next round, when the saved ones are of another type


@dataclass(frozen=True)
class Plan:
    """How a run is divided.

    Attributes:
        rounds: rounds.
        steps: optimizer steps of each.
        learning_rate: of each.
        alphas: extrapolation steps to choose from; (0,) does not extrapolate.
        pairs: ``fixed`` or ``on_policy``.
        sft_weight: weight of the SFT term.
        judge_names: judges that count; None counts all.
        stop_early: end when no round and no alpha helps.
        guarded: do not keep a round that breaks a limit.
    """

    rounds: int
    steps: int
    learning_rate: float
    alphas: Sequence[float] = (0.0,)
    pairs: str = "fixed"
    sft_weight: float = 0.0
    judge_names: tuple[str, ...] | None = None
    stop_early: bool = False
    guarded: bool = True


def run_rounds(
    bench: Workbench, plan: Plan, output: str | Path, overwrite: bool = False, name: str = ""
) -> list[dict[str, Any]]:
    """Train the rounds that are missing.

    A round that breaks a limit (see :mod:`recipes.guards`) is not kept and ends the run; so does, with
    ``stop_early``, a round after which neither training nor extrapolation has helped. ``rounds.json`` says why.

    Args:
        bench: the base model, data and evaluation; its model ends as the last good round's.
        plan: rounds, steps, learning rate, alphas, pairs.
        output: gets ``round-1`` … ``round-T``, each a complete checkpoint with ``metrics.json``, and ``rounds.json``.
        overwrite: replace rounds of another configuration.
        name: for progress lines.

    Returns:
        Each kept round's metrics.

    Raises:
        KitError: when the folder holds rounds of another configuration, or nothing is left to train on.
    """
    output = Path(output)
    identity = run_identity(bench, plan)
    key = fingerprint(identity)
    known = bench.share(_resume(output, identity, key, overwrite) if bench.rank == 0 else None)
    done, base, stopped = known["rounds"], known.get("base"), known.get("stopped")
    state: State = bench.theta_base
    if done or stopped:
        bench.log(f"{name}{output}: {len(done)} of {plan.rounds} rounds are there already" + _because(stopped))
    if done:
        state = _handed_over(output, len(done), bench, plan.rounds)
    if base is None:
        base = bench.base_metrics()
    bench.load(state)
    limits = bench.settings.limits() if plan.guarded else None
    for number in range(len(done) + 1, plan.rounds + 1):
        if stopped:
            break
        began, label = time.monotonic(), f"{name}round {number}/{plan.rounds}"
        work = output / f".round-{number}"
        reference = state
        rows, counts = _pairs(bench, plan, number, work)
        if rows is None:
            stopped = f"round {number}: {NO_PAIRS[plan.pairs]}"
        else:
            train, broken = bench.train_dpo(
                rows, plan.steps, plan.learning_rate, label, plan.sft_weight, work / "steps", limits
            )
            trained = snapshot(bench.model)
            state, choice = bench.choose_alpha(trained, reference, plan.alphas, label, plan.guarded)
            if broken is None and limits is not None:
                now, before = RoundHealth(**choice["health"]), RoundHealth(**base["health"])
                broken = next(iter(violations(now, before, limits)), None)
            if broken:
                stopped = f"round {number}: {broken}"
        if stopped:
            state = reference
            bench.load(state)
        else:
            metrics = {
                "round": number,
                **choice,
                "learning_rate": plan.learning_rate,
                "steps": plan.steps,
                "pairs": counts,
                "distance": distance(state, bench.theta_base),
                "round_distance": distance(state, reference),
                "train": train,
                "fingerprint": key,
            }
            done.append(metrics)
            if bench.rank == 0:
                adapter = _stacked(output, bench, number, choice["alpha"])
                moved = movement(reference, trained, state, choice["alpha"], dtype="float32")
                saved = save_round(
                    output, bench, state, reference, metrics, last=number == plan.rounds, moved=moved, adapter=adapter
                )
                bench.log(
                    f"{label}: validation {100 * metrics['validation_accuracy']:.1f} % at alpha {metrics['alpha']:g}, "
                    f"moved {metrics['distance']:.3f} from the base{saved}, {time.monotonic() - began:.1f} s"
                )
            if plan.stop_early and number < plan.rounds and plateau(done, start_accuracy=base["validation_accuracy"]):
                stopped = f"after round {number}: neither training nor extrapolation has helped"
        if bench.rank == 0:
            _write_summary(output, identity, key, done, base, stopped)
            _log_time(output, number, time.monotonic() - began)
            shutil.rmtree(work, ignore_errors=True)
            if stopped:
                bench.log(f"{name}stopped {stopped}; {_kept(done)}")
        bench.share(None)  # nobody starts the next round before this one is on disk
    return done


def _pairs(bench: Workbench, plan: Plan, number: int, work: Path):
    """(rows of a round in the order of training, counts), or (None, counts) when no pair is left.

    Pairs of fresh answers are written down before training starts, so a stopped round goes on with the same.
    """
    count = plan.steps * bench.batch_size
    if plan.pairs == "fixed":
        rows = bench.fixed_rows(plan.judge_names)
        if not len(rows):
            return None, {"pairs": 0}
        return bench.schedule(rows, (number - 1) * count, count), {"pairs": len(rows)}
    builder = bench.builder(plan.judge_names)
    stored = work / "pairs.json"
    if bench.share(stored.exists() if bench.rank == 0 else None):
        built = builder.load(stored)
    else:
        questions = builder.question_ids
        if bench.settings.script.slices and plan.rounds > 1:
            order = np.random.default_rng([bench.settings.training.seed, 1]).permutation(len(questions))
            questions = [questions[i] for i in order[number - 1 :: plan.rounds]]
        built = bench.own_rows(questions, bench.settings.training.seed * 1000 + number, plan.judge_names)
        if bench.rank == 0:
            built.save(stored)
    if not built.pairs:
        return None, built.counts
    return bench.schedule(built.rows, 0, count), built.counts


def _stacked(output: Path, bench: Workbench, number: int, alpha: float) -> RoundAdapter | None:
    """The adapter of all rounds so far, with LoRA; None where whole modules were trained beside it."""
    model = bench.settings.model
    if not model.use_peft or model.lora_modules_to_save:
        return None
    before = RoundAdapter.load(output / f"round-{number - 1}" / ADAPTER) if number > 1 else RoundAdapter()
    return before.then(bench.adapter, 1.0 + alpha)


def _because(stopped: str | None) -> str:
    return f", stopped {stopped}" if stopped else ""


def _kept(done: list[dict]) -> str:
    return f"round {len(done)} is kept" if done else "no round is kept"


def run_identity(bench: Workbench, plan: Plan) -> dict[str, Any]:
    """Everything that decides the rounds' weights."""
    return {
        **bench.settings.identity(),
        "rounds": plan.rounds,
        "max_steps": plan.steps,
        "learning_rate": plan.learning_rate,
        "alphas": list(plan.alphas),
        "pairs": plan.pairs,
        "sft_weight": plan.sft_weight,
        "judge_names": plan.judge_names,
        "stop_early": plan.stop_early,
        "guarded": plan.guarded,
        "pairs_per_step": bench.batch_size,
        "base": bench.base_revision,
        "dataset": bench.dataset_fingerprint,
    }


def fingerprint(identity: dict[str, Any]) -> str:
    """16 hex digits of an identity's canonical JSON."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_round(
    output: Path,
    bench: Workbench,
    state: State,
    reference: State,
    metrics: dict,
    last: bool = False,
    moved: dict | None = None,
    adapter: RoundAdapter | None = None,
) -> str:
    """Write one round's checkpoint folder; it is complete or absent.

    Args:
        output: the run's folder.
        bench: its model holds `state`, and it has the rows behind the choice of alpha.
        state: the fp32 weights of the round.
        reference: those the round started from.
        metrics: for ``metrics.json``; what a smaller saved type kept of the step is added.
        last: no round follows, so nobody needs the fp32 weights.
        moved: how far each module moved, for ``extrapolation.json``.
        adapter: of all rounds so far, for ``adapter/``.

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
        if moved is not None:
            write_text(folder / "extrapolation.json", json.dumps(moved, indent=1, sort_keys=True) + "\n")
        if adapter is not None:
            adapter.save(folder / ADAPTER, str(bench.settings.model.model_name_or_path))
        bench.validated.save(folder / VALIDATION)
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


def _resume(output: Path, identity: dict, key: str, overwrite: bool) -> dict[str, Any]:
    """What is known of the rounds that can stay; refuses or clears those of another configuration."""
    summary = output / SUMMARY
    folders = [p for p in output.glob("round-*") if p.is_dir()]
    known = read_json(summary) if summary.exists() else {}
    if known.get("fingerprint") != key:
        if folders and not overwrite:
            raise KitError(
                f"{output} holds rounds of another configuration ({difference(known.get('config', {}), identity)}); "
                "choose another --output_dir, or replace them with --overwrite"
            )
        for folder in [*folders, *output.glob(".round-*")]:
            shutil.rmtree(folder)
        known = {}
    done = []
    while (path := output / f"round-{len(done) + 1}" / "metrics.json").exists():
        done.append(read_json(path))
    for number in range(1, len(done) + 1):  # a stop between saving a round and tidying up after it
        shutil.rmtree(output / f".round-{number}", ignore_errors=True)
    known = {"rounds": done, "base": known.get("base"), "stopped": known.get("stopped")}
    _write_summary(output, identity, key, **known)
    return known


def _handed_over(output: Path, number: int, bench: Workbench, last: int) -> State:
    """The fp32 state round `number` ended with; for the last one what was saved will do."""
    file = output / f"{HANDOVER}.{number}"
    if file.exists():
        return load_file(file)
    if bench.settings.script.save_dtype != "float32" and number < last:
        raise KitError(f"{file} is gone: the rounds cannot go on without their fp32 weights; use --overwrite")
    return load_state(output / f"round-{number}")


def _write_summary(
    output: Path, identity: dict, key: str, rounds: list[dict], base: dict | None, stopped: str | None
) -> None:
    content = {"fingerprint": key, "config": identity, "base": base, "rounds": rounds, "stopped": stopped}
    write_text(output / SUMMARY, json.dumps(content, indent=1, sort_keys=True, default=str) + "\n")


def _log_time(output: Path, number: int, seconds: float) -> None:
    """Times are kept apart from everything that is compared."""
    path = output / "run_log.json"
    log = read_json(path) if path.exists() else {"rounds": []}
    log.setdefault("rounds", []).append({"round": number, "seconds": round(seconds, 3)})
    write_text(path, json.dumps(log, indent=1) + "\n")
