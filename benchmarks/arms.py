"""Arms over seeds: what every training variant reaches on the toy world, and what it costs.

``python -m benchmarks.arms RUN_DIR [RUN_DIR ...]`` takes run folders that differ in their seed only (each made by
``recipes/iter_w2s.py --arms true``, or by the demo) and writes ``results/arms.json`` and the plot of accuracy against
distance, ``results/arms.png``. Training happened before; this reads ``arms.json`` and ``results/ARM.json``.

Accuracies are means over seeds, each seed with the same weight; intervals resample seeds and videos
(`eval.stats.hierarchy`). Every arm is compared with `base`, with `dpo` and with its own control (`CONTROLS`): the arm
that differs from it in one thing. Two p-values stand beside a difference, and they answer different questions:

    p        sign-flip over (seed, video), Holm-corrected over all comparisons of the table: do *these trained models*
             differ by more than the choice of test videos explains? Training noise counts as a difference here.
    p_seeds  sign-flip over seeds alone, not corrected: does the *method* differ whatever the seed? Its smallest
             possible value is 2 / 2^seeds, 0.03 with 6 seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import PACKAGES, RESULTS
from dataset_builder.errors import KitError, run_cli
from eval.results import Results, benchmark_fingerprint, read_json, write_text
from eval.stats import hierarchical_difference, hierarchical_mean, holm, paired_test, sign_flip_over_seeds

COMPARATORS = ("base", "dpo")
CONTROLS = {  # arm → the arm that differs from it in one thing
    "iter_w2s": "iter",  # extrapolation
    "iter_w2s_on_policy": "iter_on_policy",  # extrapolation
    "iter_on_policy": "dpo_on_policy",  # iterating
    "dpo_matched": "iter_w2s",  # one long run that moves as far
}
SUFFIXES = ("+sft", "+visual")  # the control of a variant is the arm without the suffix, the first of these first


@dataclass(frozen=True)
class SeedRun:
    """One run folder.

    Attributes:
        folder: as it was given.
        seed: of the run.
        table: its ``arms.json``.
        results: arm → its answers to the test split, judged.
    """

    folder: Path
    seed: int
    table: dict[str, Any]
    results: dict[str, Results]

    @property
    def kind(self) -> dict[str, Any]:
        """What has to be the same in every run of one comparison, by the words of the message."""
        results = self.results["base"]
        return {
            "arms": sorted(self.table["arms"]),
            "steps": self.table.get("steps"),
            "question types": sorted({row["question_type"] or "" for row in results.rows}),
            "judge": results.judge,
            "decoding": {k: v for k, v in results.decoding.items() if k not in ("seed", "template_hash")},
        }


def load_run(folder: str | Path) -> SeedRun:
    """Read a run folder.

    Raises:
        KitError: when something is missing, `base` or `dpo` is not among the arms, or two arms were asked different
            questions or judged differently.
    """
    folder = Path(folder)
    path = folder / "arms.json"
    table = read_json(path)
    if not isinstance(table, dict) or not isinstance(table.get("arms"), dict) or "seed" not in table:
        raise KitError(f"{path}: fields 'arms' and 'seed' are needed; is {folder} a run folder?")
    missing = [arm for arm in COMPARATORS if arm not in table["arms"]]
    if missing:
        raise KitError(f"{path}: field 'arms' lacks {' and '.join(missing)}; the table compares every arm with it")
    results = {arm: Results.load(folder / "results" / f"{arm}.json") for arm in table["arms"]}
    asked = {arm: _asked(found) for arm, found in results.items()}
    for arm, fingerprint in asked.items():
        if fingerprint != asked["base"]:
            raise KitError(f"{folder}/results/{arm}.json: other questions than base.json; evaluate both on one split")
        if results[arm].judge != results["base"].judge:
            raise KitError(f"{folder}/results/{arm}.json: field 'judge' differs from base.json; judge both alike")
    return SeedRun(folder, table["seed"], table, results)


def check_runs(runs: Sequence[SeedRun]) -> None:
    """Refuse runs that are not repetitions of one comparison.

    Raises:
        KitError: naming the first difference in kind, or a seed that is there twice.
    """
    first, seen = runs[0], {}
    for run in runs:
        if run.seed in seen:
            raise KitError(f"{run.folder}: seed {run.seed} is that of {seen[run.seed]} too; give each seed once")
        seen[run.seed] = run.folder
        for (what, here), there in zip(run.kind.items(), first.kind.values(), strict=True):
            if here != there:
                raise KitError(
                    f"{run.folder}: {what} differ from {first.folder} ({_difference(here, there)}); "
                    "give runs that differ in their seed only"
                )


def control_of(arm: str, arms: Sequence[str]) -> str | None:
    """The arm's own control, if it is among the arms."""
    for suffix in SUFFIXES:
        if suffix in arm:
            plain = arm.replace(suffix, "", 1)
            return plain if plain in arms else None
    found = CONTROLS.get(arm)
    return found if found in arms else None


def summarise(runs: Sequence[SeedRun], draws: int = 100_000, resamples: int = 10_000) -> dict[str, Any]:
    """The table over all runs.

    Args:
        runs: repetitions with different seeds, see :func:`check_runs`.
        draws: sign flips of the paired tests.
        resamples: of the hierarchical bootstrap.

    Returns:
        The content of ``results/arms.json`` but for machine, versions and date.

    Raises:
        KitError: when the runs differ in kind, or two arms of a seed share no verdict.
    """
    check_runs(runs)
    runs = sorted(runs, key=lambda run: run.seed)
    order = list(runs[0].table.get("order") or runs[0].table["arms"])
    arms = {arm: _row(runs, arm, resamples) for arm in order}
    comparisons: dict[tuple[str, str], dict] = {}
    for arm in order:
        arms[arm]["control"] = control_of(arm, order)
        for other in dict.fromkeys((*COMPARATORS, arms[arm]["control"])):
            if other is not None and other != arm:
                comparisons[arm, other] = _compare(runs, arm, other, draws, resamples)
    # dpo against base and base against dpo are one hypothesis
    family = {frozenset(pair): comparison["p_raw"] for pair, comparison in comparisons.items()}
    corrected = dict(zip(family, holm(list(family.values())), strict=True))
    for pair, comparison in comparisons.items():
        comparison["p"] = corrected[frozenset(pair)]
    for arm in order:
        for label, other in (*zip(COMPARATORS, COMPARATORS), ("control", arms[arm]["control"])):
            found = comparisons.get((arm, other), {})
            arms[arm] |= {
                f"diff_vs_{label}": found.get("difference"),
                f"diff_vs_{label}_ci95": found.get("ci95"),
                f"diff_vs_{label}_by_seed": found.get("by_seed"),
                f"p_vs_{label}": found.get("p"),
                f"p_vs_{label}_raw": found.get("p_raw"),
                f"p_vs_{label}_seeds": found.get("p_seeds"),
            }
    return {
        "name": "arms",
        "arms": arms,
        "order": order,
        "seeds": [run.seed for run in runs],
        "steps": runs[0].table.get("steps"),
        "test_questions": {str(run.seed): len(run.results["base"].rows) for run in runs},
        "test_clips": {str(run.seed): len({row["video_id"] for row in run.results["base"].rows}) for run in runs},
        "question_types": runs[0].kind["question types"],
        "comparisons": len(family),
        "draws": draws,
        "resamples": resamples,
    }


def format_table(table: dict[str, Any]) -> str:
    """The table as lines of text: first the arms, then the comparisons."""
    arms, order = table["arms"], table["order"]
    wide = max(len(arm) for arm in order)
    lines = [
        f"{len(table['seeds'])} seeds ({', '.join(map(str, table['seeds']))}), "
        f"{sum(table['test_clips'].values())} test clips, {sum(table['test_questions'].values())} questions, %",
        "",
        f"{'arm':<{wide}} {'accuracy':>8} {'95 %':>11} {'seeds':>11} {'steps':>6} {'samples':>8} {'calls':>7} "
        f"{'moved':>6}  alpha",
    ]
    for name in order:
        arm = arms[name]
        seeds = arm["by_seed"].values()
        counts = " ".join(f"{_number(arm[key]):>{w}}" for key, w in (("steps", 6), ("samples", 8), ("judge_calls", 7)))
        used = Counter(alpha for alphas in arm["alpha"].values() for alpha in alphas)
        alphas = " ".join(f"{alpha:g}×{times}" for alpha, times in sorted(used.items())) or "–"
        ranges = f"{_range(arm['ci95']):>11} {_range((min(seeds), max(seeds))):>11}"
        lines.append(
            f"{name:<{wide}} {100 * arm['accuracy']:>8.1f} {ranges} {counts} {arm['distance']:>6.2f}  {alphas}"
        )
    lines += ["", f"{'difference':<{2 * wide + 3}} {'points':>7} {'95 %':>14} {'p':>8} {'p_seeds':>8}"]
    for name in order:
        for label in dict.fromkeys((*COMPARATORS, "control")):
            arm, other = arms[name], arms[name]["control"] if label == "control" else label
            if arm[f"diff_vs_{label}"] is None or (label == "control" and other in COMPARATORS):
                continue
            lines.append(
                f"{name + ' − ' + other:<{2 * wide + 3}} {100 * arm[f'diff_vs_{label}']:>+7.1f} "
                f"{_range(arm[f'diff_vs_{label}_ci95'], sign='+'):>14} {arm[f'p_vs_{label}']:>8.2g} "
                f"{arm[f'p_vs_{label}_seeds']:>8.2g}"
            )
    lines += [
        "",
        f"p: Holm-corrected over {table['comparisons']} comparisons, these models; p_seeds: whatever the seed",
    ]
    lines += [
        f"{name}, seed {seed}: stopped early ({line})"
        for name in order
        for seed, line in arms[name]["stopped"].items()
        if line
    ]
    return "\n".join(lines)


def _row(runs: Sequence[SeedRun], arm: str, resamples: int) -> dict[str, Any]:
    """One arm over all seeds, without its comparisons."""
    judged = [(row, run.seed) for run in runs for row in run.results[arm].judged]
    for run in runs:
        if not run.results[arm].judged:
            raise KitError(f"{run.folder}/results/{arm}.json: no row has a verdict")
    estimate = hierarchical_mean(
        [row["correct"] for row, _ in judged],
        [seed for _, seed in judged],
        [row["video_id"] for row, _ in judged],
        draws=resamples,
    )
    records = {str(run.seed): run.table["arms"][arm] for run in runs}
    return {
        "accuracy": estimate.mean,
        "ci95": [estimate.low, estimate.high],
        "by_seed": {str(seed): mean for seed, mean in estimate.by_seed.items()},
        "left_out": sum(run.results[arm].errors for run in runs),
        "validation_accuracy": _mean([record.get("validation_accuracy") for record in records.values()]),
        **{name: _mean([r.get(name) for r in records.values()]) for name in ("steps", "samples", "judge_calls")},
        "distance": _mean([record.get("distance") for record in records.values()]),
        "distance_by_seed": {seed: record.get("distance") for seed, record in records.items()},
        "alpha": {seed: record.get("alpha") or [] for seed, record in records.items()},
        "learning_rate": {seed: record.get("learning_rate") for seed, record in records.items()},
        "stopped": {seed: record.get("stopped") for seed, record in records.items()},
    }


def _compare(runs: Sequence[SeedRun], arm: str, other: str, draws: int, resamples: int) -> dict[str, Any]:
    """Paired difference of two arms over the questions that both have a verdict for."""
    a, b, seeds, clusters = [], [], [], []
    for run in runs:
        theirs = {row["question_id"]: row["correct"] for row in run.results[other].judged}
        shared = [row for row in run.results[arm].judged if row["question_id"] in theirs]
        if not shared:
            raise KitError(f"{run.folder}: '{arm}' and '{other}' share no question with a verdict on both sides")
        a += [row["correct"] for row in shared]
        b += [theirs[row["question_id"]] for row in shared]
        seeds += [run.seed] * len(shared)
        clusters += [(run.seed, row["video_id"]) for row in shared]
    found = hierarchical_difference(a, b, seeds, clusters, draws=resamples)
    return {
        "difference": found.mean,
        "ci95": [found.low, found.high],
        "by_seed": {str(seed): mean for seed, mean in found.by_seed.items()},
        "p_raw": paired_test(a, b, clusters, draws=draws).p,
        "p_seeds": sign_flip_over_seeds(list(found.by_seed.values()), draws),
    }


def _asked(results: Results) -> str:
    rows = ((row["question_id"], row["video_id"], row["question"], row["answers"]) for row in results.rows)
    return benchmark_fingerprint(rows)


def _difference(here: Any, there: Any) -> str:
    """What differs, in a few words."""
    if isinstance(here, list):
        gone, new = [x for x in there if x not in here], [x for x in here if x not in there]
        parts = [f"{word} {', '.join(map(str, names))}" for word, names in (("without", gone), ("with", new)) if names]
        return "; ".join(parts)
    if isinstance(here, dict):
        changed = [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]
        return ", ".join(f"{key} {here.get(key)}, not {there.get(key)}" for key in changed)
    return f"{here}, not {there}"


def _mean(values: Sequence[float | None]) -> float | None:
    """None when a run does not say."""
    return None if any(value is None for value in values) else sum(values) / len(values)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _range(ends: Sequence[float], sign: str = "") -> str:
    return ("…" if sign else "–").join(f"{100 * end:{sign}.1f}" for end in ends)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the runs, print the table, write ``arms.json`` and ``arms.png``."""
    from benchmarks.arms_plot import draw

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run folders that differ in their seed only")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where arms.json and arms.png go")
    parser.add_argument("--draws", type=int, default=100_000, help="sign flips of the paired tests")
    parser.add_argument("--resamples", type=int, default=10_000, help="of the hierarchical bootstrap")
    options = parser.parse_args(argv)
    table = summarise([load_run(folder) for folder in options.runs], options.draws, options.resamples)
    print(format_table(table))
    content = {
        **table,
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "date": date.today().isoformat(),
    }
    write_text(options.output / "arms.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    draw(table, options.output / "arms.png")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
