"""The table of arms: accuracy with its interval, paired tests against `base` and `dpo`, and how far each arm moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.results import Results, compare, read_json, write_text
from eval.stats import holm
from recipes.settings import ARMS, Settings

if TYPE_CHECKING:
    from recipes.arms import Job

DPO_ARMS = ("dpo", "dpo_expo", "iter", "iter_w2s")  # one of them is released; sft_chosen stays a control
COMPARATORS = ("base", "dpo")


def write_table(output: Path, settings: Settings, job: Job) -> dict[str, Any]:
    """Compare the arms' test results and write ``arms.json``.

    p-values are corrected by Holm over all arms for each comparator; both they and the intervals treat the video, not
    the question, as the unit. Choices were made on validation, so the test split is read here for the first time.

    Returns:
        The content of ``arms.json``.
    """
    script = settings.script
    results = {arm: Results.load(output / "results" / f"{arm}.json") for arm in ARMS}
    records = {arm: read_json(job.arm_file(arm)) for arm in ARMS}
    arms = {arm: _row(results[arm], records[arm]) for arm in ARMS}
    for other in COMPARATORS:
        names = [arm for arm in ARMS if arm != other]
        tests = {a: compare(results[a], results[other], draws=script.draws, seed=settings.training.seed) for a in names}
        corrected = dict(zip(names, holm([tests[arm].p for arm in names]), strict=True))
        for arm in ARMS:
            test = tests.get(arm)
            arms[arm] |= {
                f"p_vs_{other}": corrected.get(arm),
                f"diff_vs_{other}": test and test.difference,
                f"diff_vs_{other}_ci95": test and [test.as_dict()["low"], test.as_dict()["high"]],
            }
    rows = results["base"].rows
    table = {
        "arms": arms,
        "order": list(ARMS),
        "release_arm": max(DPO_ARMS, key=lambda arm: arms[arm]["validation_accuracy"]),
        "test_clips": len({row["video_id"] for row in rows}),
        "test_questions": len(rows),
        "draws": script.draws,
        "seed": settings.training.seed,
        "steps": job.steps,
    }
    write_text(output / "arms.json", json.dumps(table, indent=1) + "\n")
    return table


def format_table(table: dict[str, Any]) -> str:
    """The table as lines of text."""
    lines = [
        f"{'arm':<11} {'accuracy':>8} {'95 %':>13} {'vs base':>8} {'p':>8} {'vs dpo':>7} {'p':>8} {'moved':>6}  alpha"
    ]
    for name in table["order"]:
        arm = table["arms"][name]
        low, high = (f"{100 * end:.1f}" for end in arm["ci95"])
        cells = [f"{name:<11} {100 * arm['accuracy']:>7.1f}% {low + '–' + high:>13}"]
        for other, width in (("base", 8), ("dpo", 7)):
            difference, p = arm[f"diff_vs_{other}"], arm[f"p_vs_{other}"]
            cells.append(f"{'–':>{width}} {'–':>8}" if p is None else f"{100 * difference:>+{width}.1f} {p:>8.2g}")
        lines.append(" ".join([*cells, f"{arm['distance']:>6.2f} ", " ".join(f"{a:g}" for a in arm["alpha"]) or "–"]))
    return "\n".join(lines)


def _row(results: Results, record: dict[str, Any]) -> dict[str, Any]:
    estimate, rounds = results.accuracy, record["rounds"]
    extrapolates = record["arm"] in DPO_ARMS
    return {
        "accuracy": estimate.mean,
        "ci95": [estimate.low, estimate.high],
        "accuracy_by_type": {kind: part.mean for kind, part in results.accuracy_by_type().items()},
        "validation_accuracy": record["validation_accuracy"],
        "alpha": [r["alpha"] for r in rounds] if extrapolates else [],
        "alpha_curves": [r["alpha_curve"] for r in rounds] if extrapolates else [],
        "distance": rounds[-1]["distance"] if rounds else 0.0,
        "learning_rate": record["learning_rate"],
        "lr_search": record["lr_search"],
    }
