"""Controls: what each part of iterating and extrapolating brings, with equal optimizer steps and the same search.

Every arm starts from the same base, takes `rounds × max_steps` optimizer steps on the same pairs in the same order, and
chooses its learning rate among the same candidates on the validation split:

    base        nothing
    sft_chosen  supervised training on the chosen answers
    dpo         one run of DPO
    dpo_expo    that same run, then one extrapolation chosen on validation
    iter        rounds of DPO, alpha 0
    iter_w2s    rounds of DPO, each with an extrapolation chosen on validation

The test split is asked once, when every choice is made. The runs are shared out between `--workers` processes of one
thread each; a run that is finished is never repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError, run_cli
from eval.results import read_json, write_text
from recipes.arms_table import DPO_ARMS, write_table
from recipes.settings import ARMS, Settings, parse

if TYPE_CHECKING:
    from recipes.workbench import Workbench

TRAINED = ("iter_w2s", "iter", "dpo", "sft_chosen")  # longest first, so that workers end together
FAILED = "failed"


def run_arms(
    output: str | Path, dataset: str | Path, *, base: str | Path | None = None, log: Callable = print, **settings: Any
) -> dict[str, Any]:
    """Train and evaluate every arm; what is finished already is kept.

    Args:
        output: run folder; gets ``arms/ARM/round-N``, ``results/ARM.json`` and ``arms.json``.
        dataset: dataset folder or Hub id.
        base: the checkpoint all arms start from; ``output/models/base`` by default.
        log: where this process's lines go; workers print theirs.
        **settings: any field of `recipes/iter_w2s.py`, such as ``max_steps=15, rounds=3, workers=2, seed=0``; a
            ``config`` names a YAML that they override.

    Returns:
        The content of ``arms.json``.
    """
    base = Path(output) / "models" / "base" if base is None else base
    given = {"model_name_or_path": base, "dataset_name": dataset, "output_dir": output, **settings}
    return run_parsed(parse(to_argv(given)), log)


def to_argv(values: dict[str, Any]) -> list[str]:
    """Fields as the words of a command line."""
    words = []
    for name, value in values.items():
        if value is None:
            continue
        items = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in items)]
    return words


def run_parsed(settings: Settings, log: Callable = print) -> dict[str, Any]:
    """As :func:`run_arms`, for a command that is parsed already."""
    script, output = settings.script, Path(settings.training.output_dir)
    job = Job(settings, output)
    identity = job.identity()
    with _only_one(output):
        _claim_output(job, identity, script.overwrite)
        for claim in job.claims.glob("*"):
            claim.unlink()
        if script.workers == 1 or job.finished():
            Worker(job, log).run()
        else:
            _spawn(job, script.workers)
        missing = [unit.name for unit in job.units() if not unit.done.exists()]
        if missing:
            raise KitError(f"the arms ended without {', '.join(missing)}; the same command goes on from here")
        table = write_table(output, settings, job)
        _drop_losers(job)
    return table


@dataclass(frozen=True)
class Unit:
    """A piece of work that one worker does in one go.

    Attributes:
        name: for claims and lines.
        done: the file that exists when it is finished.
        cost: in optimizer steps, for the time left.
        arm: its arm.
        learning_rate: None for the units that choose and test.
    """

    name: str
    done: Path
    cost: float
    arm: str
    learning_rate: float | None = None


class Job:
    """Where everything of one comparison is, and what it consists of."""

    def __init__(self, settings: Settings, output: Path):
        self.settings, self.output = settings, output
        self.work = output / "arms" / ".work"
        self.claims = self.work / "claims"
        script = settings.script
        self.rates = script.learning_rates or [settings.training.learning_rate]
        self.steps = script.rounds * settings.training.max_steps

    def identity(self) -> dict[str, Any]:
        """Everything that decides the arms' results."""
        from dataset_builder.models import checkpoint_revision
        from recipes.workbench import dataset_fingerprint

        base, script = self.settings.model.model_name_or_path, self.settings.script
        return {
            **self.settings.identity(),
            "learning_rates": self.rates,
            "test_split": script.test_split,
            "base": checkpoint_revision(base)
            if Path(base).is_dir()
            else f"{base}@{self.settings.model.model_revision}",
            "dataset": dataset_fingerprint(script.dataset_name, None),
        }

    def candidate(self, arm: str, rate: float) -> Path:
        """Folder of one arm's run at one learning rate."""
        return self.work / arm / f"lr-{rate:g}"

    def arm_file(self, arm: str) -> Path:
        """What an arm chose; written after its test results."""
        return self.work / f"{arm}.json"

    def searches(self) -> list[Unit]:
        """The training runs of the learning-rate search."""
        return [
            Unit(f"{arm}-lr-{rate:g}", self.candidate(arm, rate) / "candidate.json", self.steps * cost, arm, rate)
            for arm, cost in zip(TRAINED, (1.6, 1.2, 1.0, 0.5), strict=True)
            for rate in self.rates
        ]

    def tests(self) -> list[Unit]:
        """Choosing and testing, one per arm."""
        return [
            Unit(f"{arm}-test", self.arm_file(arm), self.steps * (0.5 if arm == "dpo_expo" else 0.2), arm)
            for arm in ("dpo_expo", *(a for a in ARMS if a != "dpo_expo"))
        ]

    def units(self) -> list[Unit]:
        """All units; tests come after all searches."""
        return self.searches() + self.tests()

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
        """Take searches, wait until all of them are finished, take tests."""
        self.job.claims.mkdir(parents=True, exist_ok=True)
        for units, body in ((self.job.searches(), self.search), (self.job.tests(), self.test)):
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
        from recipes.rounds import Plan, run_rounds
        from recipes.workbench import Diverged

        script, steps = self.job.settings.script, self.job.settings.training.max_steps
        folder = unit.done.parent
        record = {"arm": unit.arm, "learning_rate": unit.learning_rate}
        try:
            if unit.arm == "sft_chosen":
                rounds = [self._sft(folder, unit)]
            else:
                alphas = script.alphas if unit.arm == "iter_w2s" else (0.0,)
                once = unit.arm == "dpo"
                plan = Plan(1 if once else script.rounds, self.job.steps if once else steps, unit.learning_rate, alphas)
                rounds = run_rounds(self.bench, plan, folder, overwrite=True, name=f"{unit.name}: ")
            record |= {"validation_accuracy": rounds[-1]["validation_accuracy"], "rounds": rounds}
        except Diverged as error:
            record |= {"validation_accuracy": None, "rounds": [], FAILED: str(error)}
        write_text(unit.done, json.dumps(record, indent=1) + "\n")

    def _sft(self, folder: Path, unit: Unit) -> dict[str, Any]:
        bench = self.bench
        bench.load(bench.theta_base)
        train = bench.train_sft(self.job.steps, unit.learning_rate, unit.name)
        return self._place(folder / "round-1", {"learning_rate": unit.learning_rate, "train": train})

    def _place(self, folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
        """Save the model as it is now as the only round of a run."""
        from recipes.checkpoints import place, save_checkpoint
        from recipes.extrapolate import distance, snapshot

        bench = self.bench
        metrics = {"round": 1, "steps": self.job.steps, **metrics}
        metrics.setdefault("distance", distance(snapshot(bench.model), bench.theta_base))
        if "validation_accuracy" not in metrics:
            split = self.job.settings.script.validation_split
            metrics["validation_accuracy"] = bench.evaluate(split, folder.name).accuracy.mean

        def write(partial: Path) -> None:
            save_checkpoint(bench.model, bench.processor, partial)
            write_text(partial / "metrics.json", json.dumps(metrics, indent=1, sort_keys=True) + "\n")

        place(folder, write)
        return metrics

    def test(self, unit: Unit) -> None:
        """Put an arm's chosen rounds in their place and ask the test split."""
        from dataset_builder.models import checkpoint_revision
        from recipes.checkpoints import load_state
        from recipes.extrapolate import distance

        job, bench, arm = self.job, self.bench, unit.arm
        script = job.settings.script
        folder, searched = job.output / "arms" / arm, "dpo" if arm == "dpo_expo" else arm
        record: dict[str, Any] = {"arm": arm, "learning_rate": None, "lr_search": [], "rounds": []}
        if arm == "base":
            bench.load(bench.theta_base)
            model, revision = job.settings.model.model_name_or_path, bench.base_revision
            record |= {"validation_accuracy": bench.evaluate(script.validation_split, arm).accuracy.mean}
        else:
            best = job.chosen(searched)
            record |= {
                "lr_search": [_pick(run, "learning_rate", "validation_accuracy") for run in job.search(searched)]
            }
            record |= _pick(best, "learning_rate", "validation_accuracy", "rounds")
            source = job.candidate(searched, best["learning_rate"])
            shutil.rmtree(folder, ignore_errors=True)
            if arm == "dpo_expo":
                state, choice = bench.choose_alpha(load_state(source / "round-1"), bench.theta_base, script.alphas, arm)
                choice |= {"learning_rate": best["learning_rate"], "distance": distance(state, bench.theta_base)}
                record["rounds"] = [self._place(folder / "round-1", choice)]
                record["validation_accuracy"] = choice["validation_accuracy"]
            else:
                _copy_rounds(source, folder)
                bench.load(load_state(folder / f"round-{len(best['rounds'])}"))
            model = str(folder / f"round-{len(record['rounds'])}")
            revision = checkpoint_revision(model)
        results = bench.evaluate(script.test_split, arm, model, revision)
        results.save(job.output / "results" / f"{arm}.json")
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


def _copy_rounds(source: Path, folder: Path) -> None:
    """Copy a candidate's rounds; the arm's folder is complete or absent."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in sorted(source.glob("round-*")):
        shutil.copytree(path, partial / path.name)
    os.replace(partial, folder)


def _drop_losers(job: Job) -> None:
    """Delete the weights of learning rates that were not chosen; what they measured stays."""
    for arm in TRAINED:
        best = job.chosen(arm)["learning_rate"]
        for rate in job.rates:
            for path in job.candidate(arm, rate).glob("round-*"):
                if rate != best:
                    shutil.rmtree(path)


def _pick(record: dict, *names: str) -> dict:
    return {name: record[name] for name in names}


def _claim_output(job: Job, identity: dict, overwrite: bool) -> None:
    """Refuse or clear the arms of another configuration."""
    from recipes.rounds import difference

    path, identity = job.work / "job.json", json.loads(json.dumps(identity, default=str))
    known = read_json(path).get("config") if path.exists() else None
    if known is not None and known != identity:
        if not overwrite:
            raise KitError(
                f"{job.output} holds arms of another configuration ({difference(known, identity)}); "
                "choose another --output_dir, or replace them with --overwrite"
            )
        shutil.rmtree(job.output / "arms")
    content = {"argv": job.settings.argv, "config": identity}
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def _only_one(output: Path) -> Iterator[None]:
    """Two commands on one folder would train the same runs twice."""
    import fcntl

    output.mkdir(parents=True, exist_ok=True)
    with (output / ".arms.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KitError(f"{output}: another command is training these arms right now") from None
        yield


def _spawn(job: Job, workers: int) -> None:
    """Run workers to their end; they end by themselves when this process does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "recipes.arms", str(job.work / "job.json")]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) for _ in range(workers)]
    try:
        while any(child.poll() is None for child in children):
            if any(child.poll() not in (None, 0) for child in children):
                raise KitError("a worker of the arms failed (its message is above); the same command goes on from here")
            time.sleep(0.05)
        if any(child.returncode for child in children):
            raise KitError("a worker of the arms failed (its message is above); the same command goes on from here")
    finally:
        for child in children:
            child.kill()
            child.wait()
            child.stdin.close()


def _worker_main() -> int:
    """Entry of a worker: `python -m recipes.arms JOB.json`, started by :func:`_spawn` only."""

    def watch() -> None:
        while os.read(0, 1):  # ends when the parent is gone
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    settings = parse(read_json(sys.argv[1])["argv"])
    Worker(Job(settings, Path(settings.training.output_dir)), lambda line: print(line, flush=True)).run()
    return 0


__all__ = ["ARMS", "DPO_ARMS", "Job", "run_arms", "run_parsed", "to_argv"]

if __name__ == "__main__":
    raise SystemExit(run_cli(_worker_main))
