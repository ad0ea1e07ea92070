"""The table of arms: accuracy with its interval, paired tests against `base` and `dpo`, and how far each arm moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.results import Results, compare, read_json, write_text
from eval.stats import holm
from recipes.arms.specs import CONTROLS, Arm
from recipes.settings import Settings

if TYPE_CHECKING:
    from recipes.arms.worker import Job

COMPARATORS = ("base", "dpo")


def write_table(output: Path, settings: Settings, job: Job) -> dict[str, Any]:
    """Compare the arms' test results and write ``arms.json``.

    p-values are corrected by Holm over all arms for each comparator; both they and the intervals treat the video, not
    the question, as the unit. Choices were made on validation, so the test split is read here for the first time.

    Returns:
        The content of ``arms.json``.
    """
    script, order = settings.script, [arm.name for arm in job.arms]
    results = {arm: Results.load(output / "results" / f"{arm}.json") for arm in order}
    arms = {arm.name: _row(arm, results[arm.name], read_json(job.arm_file(arm.name)), job) for arm in job.arms}
    kept = [a.name for a in job.arms if a.scheme not in CONTROLS and arms[a.name]["steps"]]  # one of them is released
    for other in COMPARATORS:
        if other not in order:
            continue
        names = [arm for arm in order if arm != other]
        tests = {a: compare(results[a], results[other], draws=script.draws, seed=settings.training.seed) for a in names}
        corrected = dict(zip(names, holm([tests[arm].p for arm in names]), strict=True))
        for arm in order:
            test = tests.get(arm)
            arms[arm] |= {
                f"p_vs_{other}": corrected.get(arm),
                f"diff_vs_{other}": test and test.difference,
                f"diff_vs_{other}_ci95": test and [test.as_dict()["low"], test.as_dict()["high"]],
            }
    rows = results["base"].rows
    table = {
        "arms": arms,
        "order": order,
        "release_arm": max(kept, key=lambda arm: arms[arm]["validation_accuracy"], default=None),
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
    wide = max(11, *map(len, table["order"]))
    head = f"{'arm':<{wide}} {'accuracy':>8} {'95 %':>13} {'vs base':>8} {'p':>8} {'vs dpo':>7} {'p':>8}"
    lines = [f"{head} {'moved':>6}  alpha"]
    for name in table["order"]:
        arm = table["arms"][name]
        low, high = (f"{100 * end:.1f}" for end in arm["ci95"])
        cells = [f"{name:<{wide}} {100 * arm['accuracy']:>7.1f}% {low + '–' + high:>13}"]
        for other, width in (("base", 8), ("dpo", 7)):
            difference, p = arm.get(f"diff_vs_{other}"), arm.get(f"p_vs_{other}")
            cells.append(f"{'–':>{width}} {'–':>8}" if p is None else f"{100 * difference:>+{width}.1f} {p:>8.2g}")
        lines.append(" ".join([*cells, f"{arm['distance']:>6.2f} ", " ".join(f"{a:g}" for a in arm["alpha"]) or "–"]))
    return "\n".join(lines)


def _row(arm: Arm, results: Results, record: dict[str, Any], job: Job) -> dict[str, Any]:
    estimate, rounds = results.accuracy, record["rounds"]
    chooses = arm.scheme not in CONTROLS
    return {
        "accuracy": estimate.mean,
        "ci95": [estimate.low, estimate.high],
        "accuracy_by_type": {kind: part.mean for kind, part in results.accuracy_by_type().items()},
        "validation_accuracy": record["validation_accuracy"],
        "alpha": [r["alpha"] for r in rounds] if chooses else [],
        "alpha_curves": [r["alpha_curve"] for r in rounds] if chooses else [],
        "distance": rounds[-1]["distance"] if rounds else 0.0,
        "learning_rate": record["learning_rate"],
        "lr_search": record["lr_search"],
        "sft_weight": job.sft_weight(arm),
        "steps": sum(r["steps"] for r in rounds),
        "samples": record["sampled"],
        "judge_calls": record["judge_calls"],
        "health": (rounds[-1].get("health") if rounds else None),
        "stopped": record["stopped"],
    }
