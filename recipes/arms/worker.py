"""The pieces of a comparison of arms, and the worker that does them."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError
from eval.results import read_json, write_text
from recipes.arms.specs import SFT_WEIGHT, Arm, parse_arms
from recipes.settings import Settings
from recipes.validation import FILE as VALIDATION

if TYPE_CHECKING:
    from recipes.rounds import Plan
    from recipes.workbench import Workbench

FAILED = "failed"
MATCHED_WITHIN = 0.05  # of the distance, or one more run is made
COUNTED = ("sampled", "judge_calls")


@dataclass(frozen=True)
class Unit:
    """A piece of work that one worker does in one go.

    Attributes:
        name: for claims and lines.
        done: the file that exists when it is finished.
        cost: in optimizer steps, for the time left.
        arm: its arm.
        learning_rate: None for the units that derive, choose and test.
    """

    name: str
    done: Path
    cost: float
    arm: Arm
    learning_rate: float | None = None


class Job:
    """Where everything of one comparison is, and what it consists of."""

    def __init__(self, settings: Settings, output: Path):
        self.settings, self.output = settings, output
        self.work = output / "arms" / ".work"
        self.claims = self.work / "claims"
        script = settings.script
        self.arms = parse_arms(script.arm_names)
        self.rates = script.learning_rates or [settings.training.learning_rate]
        self.steps = script.rounds * settings.training.max_steps
        if any(arm.visual for arm in self.arms) and not self.visual_judges():
            raise KitError("arms with +visual need a judge in `judges:` that looks at the video and sees no reference")
        if any(arm.pairs == "on_policy" for arm in self.arms) and not script.judges:
            raise KitError("on-policy arms need `judges:`, as in a build's YAML, to judge fresh answers")

    def identity(self) -> dict[str, Any]:
        """Everything that decides the arms' results."""
        from dataset_builder.models import checkpoint_revision
        from recipes.data import dataset_fingerprint

        base, script = self.settings.model.model_name_or_path, self.settings.script
        return {
            **self.settings.identity(),
            "arm_names": [arm.name for arm in self.arms],
            "learning_rates": self.rates,
            "test_split": script.test_split,
            "base": checkpoint_revision(base)
            if Path(base).is_dir()
            else f"{base}@{self.settings.model.model_revision}",
            "dataset": dataset_fingerprint(script.dataset_name, None),
        }

    def visual_judges(self) -> tuple[str, ...]:
        """Names of the judges that see no ground truth."""
        return tuple(
            spec.get("name", spec["kind"])
            for spec in self.settings.script.judges
            if spec.get("kind") != "reference" and not spec.get("use_references")
        )

    def plan(self, arm: Arm, rate: float) -> Plan:
        """How a searched arm is trained at one learning rate."""
        from recipes.rounds import Plan

        script, steps = self.settings.script, self.settings.training.max_steps
        return Plan(
            rounds=script.rounds if arm.iterates else 1,
            steps=steps if arm.iterates else self.steps,
            learning_rate=rate,
            alphas=script.alphas if arm.extrapolates else (0.0,),
            pairs=arm.pairs,
            sft_weight=self.sft_weight(arm),
            judge_names=self.visual_judges() if arm.visual else None,
            guarded=False,
        )

    def sft_weight(self, arm: Arm) -> float:
        """Weight of an arm's SFT term."""
        return (self.settings.script.sft_weight or SFT_WEIGHT) if arm.sft else 0.0

    def candidate(self, arm: str, rate: float) -> Path:
        """Folder of one arm's run at one learning rate."""
        return self.work / arm / f"lr-{rate:g}"

    def arm_file(self, arm: str) -> Path:
        """What an arm chose; written after its test results."""
        return self.work / f"{arm}.json"

    def searches(self) -> list[Unit]:
        """The training runs of the learning-rate search, the longest first so that workers end together."""
        searched = sorted((arm for arm in self.arms if arm.searched), key=lambda arm: -arm.cost)
        return [
            Unit(
                f"{arm.name}-lr-{rate:g}",
                self.candidate(arm.name, rate) / "candidate.json",
                self.steps * arm.cost,
                arm,
                rate,
            )
            for arm in searched
            for rate in self.rates
        ]

    def matches(self) -> list[Unit]:
        """Runs whose learning rate follows from other runs."""
        return [
            Unit(f"{arm.name}-match", self.work / arm.name / "candidate.json", self.steps * arm.cost, arm)
            for arm in self.arms
            if arm.scheme == "dpo_matched"
        ]

    def tests(self) -> list[Unit]:
        """Choosing and testing, one per arm."""
        order = sorted(self.arms, key=lambda arm: arm.scheme != "dpo_expo")
        return [
            Unit(f"{arm.name}-test", self.arm_file(arm.name), self.steps * (0.5 if not arm.searched else 0.2), arm)
            for arm in order
        ]

    def units(self) -> list[Unit]:
        """All units; each kind comes after all of the kind before."""
        return self.searches() + self.matches() + self.tests()

    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return all(unit.done.exists() for unit in self.units())

    def chosen(self, arm: str) -> dict[str, Any]:
        """The candidate that is best on validation; ties go to the smaller learning rate.

        Raises:
            KitError: when every learning rate failed.
        """
        runs = self.search(arm)
        usable = [run for run in runs if FAILED not in run]
        if not usable:
            raise KitError(f"{arm}: no learning rate worked: {runs[0][FAILED]}")
        return max(usable, key=lambda run: (run["validation_accuracy"], -run["learning_rate"]))

    def search(self, arm: str) -> list[dict[str, Any]]:
        """All candidates of an arm."""
        return [read_json(self.candidate(arm, rate) / "candidate.json") for rate in self.rates]


class Worker:
    """Does units until none is left; loads the base when it has one to do."""

    def __init__(self, job: Job, log: Callable = print):
        self.job, self.log = job, log
        self._bench: Workbench | None = None
        self._began, self._at_start = time.monotonic(), self._cost_done()

    def run(self) -> None:
        """Take the units of one kind, wait until all of them are finished, take those of the next."""
        self.job.claims.mkdir(parents=True, exist_ok=True)
        job = self.job
        for units, body in ((job.searches(), self.search), (job.matches(), self.match), (job.tests(), self.test)):
            for unit in units:
                if not unit.done.exists() and self._claim(unit):
                    body(unit)
                    self._progress(unit)
            while not all(unit.done.exists() for unit in units):
                time.sleep(0.05)  # another worker is at it; if it fails, the parent ends this one too

    @property
    def bench(self) -> Workbench:
        """The base and its data, loaded on first use."""
        if self._bench is None:
            from recipes.workbench import Workbench

            self._bench = Workbench(self.job.settings, self.log)
        return self._bench

    def search(self, unit: Unit) -> None:
        """Train one arm at one learning rate and note its validation accuracy."""
        record = self._train(unit.arm, unit.learning_rate, unit.done.parent, unit.name)
        write_text(unit.done, json.dumps(record, indent=1) + "\n")

    def match(self, unit: Unit) -> None:
        """Train one run of DPO at a learning rate that moves as far as `iter_w2s` moved.

        Adam's distance grows about in proportion to the learning rate; one secant step mends the first guess.
        """
        job, arm = self.job, unit.arm
        target = _distance(job.chosen(arm.sibling("iter_w2s")))
        known = job.chosen(arm.sibling("dpo"))
        rate, moved = known["learning_rate"], _distance(known)
        if math.isnan(target) or math.isnan(moved):
            unmoved = {"arm": arm.name, "source": "try-0", "stopped": "an arm it is matched to could not be trained"}
            write_text(unit.done, json.dumps({**known, **unmoved, "rounds": []}, indent=1) + "\n")
            return
        for attempt in range(3):
            rate *= target / moved if moved else 1.0
            record = self._train(arm, rate, unit.done.parent / f"try-{attempt}", f"{unit.name}-{attempt + 1}")
            if FAILED in record:
                break
            moved = _distance(record)
            if not moved or abs(moved / target - 1) <= MATCHED_WITHIN:
                break
        source = unit.done.parent / f"try-{attempt}"
        record |= {"source": source.name, "target_distance": target}
        for earlier in unit.done.parent.glob("try-*/round-*"):
            if earlier.parent != source:
                shutil.rmtree(earlier)
        write_text(unit.done, json.dumps(record, indent=1) + "\n")

    def _train(self, arm: Arm, rate: float, folder: Path, name: str) -> dict[str, Any]:
        from recipes.rounds import NO_PAIRS, SUMMARY, run_rounds
        from recipes.workbench import Diverged

        record: dict[str, Any] = {"arm": arm.name, "learning_rate": rate, "stopped": None}
        try:
            if arm.scheme == "sft_chosen":
                rounds = self._sft(folder, arm, rate, name)
                if not rounds:
                    record["stopped"] = NO_PAIRS["fixed"]
                    record["base_accuracy"] = self.bench.base_metrics()["validation_accuracy"]
            else:
                plan = self.job.plan(arm, rate)
                if arm.scheme == "dpo_matched":
                    plan = replace(plan, rounds=1, steps=self.job.steps, alphas=(0.0,))
                rounds = run_rounds(self.bench, plan, folder, overwrite=True, name=f"{name}: ")
                summary = read_json(folder / SUMMARY)
                record["stopped"] = summary["stopped"]
                record["base_accuracy"] = summary["base"]["validation_accuracy"]
            last = rounds[-1]["validation_accuracy"] if rounds else record["base_accuracy"]
            record |= {"validation_accuracy": last, "rounds": rounds}
        except Diverged as error:
            record |= {"validation_accuracy": None, "rounds": [], FAILED: str(error)}
        return record

    def _sft(self, folder: Path, arm: Arm, rate: float, name: str) -> list[dict[str, Any]]:
        bench, steps = self.bench, self.job.steps
        bench.load(bench.theta_base)
        rows = bench.fixed_rows(self.job.visual_judges() if arm.visual else None)
        if not len(rows):
            return []
        train = bench.train_sft(bench.schedule(rows, 0, steps * bench.batch_size), steps, rate, name)
        return [self._place(folder / "round-1", {"learning_rate": rate, "train": train})]

    def _place(self, folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
        """Save the model as it is now as the only round of a run."""
        from recipes.checkpoints import place, save_checkpoint
        from recipes.extrapolate import distance, snapshot

        bench = self.bench
        metrics = {"round": 1, "steps": self.job.steps, **metrics}
        metrics.setdefault("distance", distance(snapshot(bench.model), bench.theta_base))
        if "validation_accuracy" not in metrics:
            metrics["validation_accuracy"] = bench.validate(folder.name)
            metrics["health"] = bench.measure_health(bench.replies, likelihoods=False).as_dict()

        def write(partial: Path) -> None:
            save_checkpoint(bench.model, bench.processor, partial)
            bench.validated.save(partial / VALIDATION)
            write_text(partial / "metrics.json", json.dumps(metrics, indent=1, sort_keys=True) + "\n")

        place(folder, write)
        return metrics

    def test(self, unit: Unit) -> None:
        """Put an arm's chosen rounds in their place and ask the test split."""
        from dataset_builder.models import checkpoint_revision
        from recipes.checkpoints import load_state
        from recipes.extrapolate import distance

        job, bench, arm = self.job, self.bench, unit.arm
        script, folder = job.settings.script, job.output / "arms" / arm.name
        record: dict[str, Any] = {
            "arm": arm.name,
            "learning_rate": None,
            "lr_search": [],
            "rounds": [],
            "stopped": None,
        }
        shutil.rmtree(folder, ignore_errors=True)
        if arm.scheme == "base":
            bench.load(bench.theta_base)
            record["validation_accuracy"] = bench.validate(arm.name)
            bench.validated.save(job.output / "results" / "validation" / f"{arm.name}.json")
        elif arm.scheme == "dpo_expo":
            searched = arm.sibling("dpo")
            best = job.chosen(searched)
            record |= {"lr_search": _search(job.search(searched))}
            record |= {n: best[n] for n in ("learning_rate", "validation_accuracy", "stopped")}
            if best["rounds"]:
                state = load_state(job.candidate(searched, best["learning_rate"]) / "round-1")
                state, choice = bench.choose_alpha(state, bench.theta_base, script.alphas, arm.name)
                choice |= {"learning_rate": best["learning_rate"], "distance": distance(state, bench.theta_base)}
                record["rounds"] = [self._place(folder / "round-1", choice)]
                record["validation_accuracy"] = choice["validation_accuracy"]
            else:
                bench.load(bench.theta_base)
        else:
            if arm.scheme == "dpo_matched":
                best = read_json(job.work / arm.name / "candidate.json")
                source = job.work / arm.name / best["source"]
                record["lr_search"] = _search([best])
                if FAILED in best:
                    raise KitError(f"{arm.name}: the run at the matched learning rate failed: {best[FAILED]}")
            else:
                best = job.chosen(arm.name)
                source = job.candidate(arm.name, best["learning_rate"])
                record["lr_search"] = _search(job.search(arm.name))
            record |= {n: best[n] for n in ("learning_rate", "validation_accuracy", "rounds", "stopped")}
            if best["rounds"]:
                _copy_rounds(source, folder)
                bench.load(load_state(folder / f"round-{len(best['rounds'])}"))
            else:
                bench.load(bench.theta_base)  # no round could be trained
        record |= {name: sum((r.get("pairs") or {}).get(name, 0) for r in record["rounds"]) for name in COUNTED}
        if record["rounds"]:
            model = str(folder / f"round-{len(record['rounds'])}")
            revision = checkpoint_revision(model)
        else:
            model, revision = job.settings.model.model_name_or_path, bench.base_revision
        results = bench.evaluate(script.test_split, arm.name, model, revision)
        results.save(job.output / "results" / f"{arm.name}.json")
        write_text(unit.done, json.dumps(record, indent=1) + "\n")

    def _claim(self, unit: Unit) -> bool:
        try:
            os.close(os.open(self.job.claims / unit.name, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _cost_done(self) -> float:
        return sum(unit.cost for unit in self.job.units() if unit.done.exists())

    def _progress(self, unit: Unit) -> None:
        units, done = self.job.units(), self._cost_done()
        total, passed = sum(u.cost for u in units), time.monotonic() - self._began
        rate = max(done - self._at_start, 1e-9) / passed
        count = sum(u.done.exists() for u in units)
        left = f"{rate:.1f} steps/s, {(total - done) / rate:.0f} s left"
        self.log(f"arms: {unit.name} done, {count}/{len(units)} parts, {left}")


def _distance(record: dict[str, Any]) -> float:
    """How far a run's last round is from the base."""
    return record["rounds"][-1]["distance"] if record.get("rounds") else math.nan


def _search(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: run[name] for name in ("learning_rate", "validation_accuracy")} for run in runs]


def _copy_rounds(source: Path, folder: Path) -> None:
    """Copy a candidate's rounds; the arm's folder is complete or absent."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in sorted(source.glob("round-*")):
        shutil.copytree(path, partial / path.name)
    os.replace(partial, folder)
