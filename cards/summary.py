"""``summary.json`` and the tables a release ends with."""

from __future__ import annotations

from cards.run_folder import Run
from cards.stage_log import StageLog, write_json
from cards.text import alphas, count, interval, number, p_value, remark, share
from dataset_builder.selection.pairs import HELD_OUT

ARM_FIELDS = ("accuracy", "ci95", "p_vs_base", "p_vs_dpo", "alpha", "distance")
COUNTS = {"steps": "steps", "extra samples": "samples", "judge calls": "judge_calls"}  # heading: field
COUNT_FIELDS = (*COUNTS.values(), "stopped")


def build_summary(run: Run, seconds: dict[str, float], wall_seconds: float) -> dict:
    """The content of ``summary.json``; accuracies and shares are fractions, p-values Holm-corrected per comparator."""
    control = run.measured("control")
    return {
        **run.counts,
        "drops": run.drops,
        "coverage": control.get("coverage", {"zoo": None, "single": None}),
        "chosen_correct": control.get("chosen_correct", {"zoo": None, "single": None}),
        "arms": {name: {key: arm.get(key) for key in ARM_FIELDS + COUNT_FIELDS} for name, arm in run.arms.items()},
        "release_arm": run.release_arm,
        "test_clips": run.training.get("test_clips"),
        "wall_seconds": wall_seconds,
        "stages": seconds,
    }


def write_summary(run: Run, log: StageLog) -> dict:
    """Write ``summary.json`` into the run folder and return it."""
    summary = build_summary(run, log.seconds, log.wall_seconds)
    write_json(run.folder / "summary.json", summary)
    return summary


def table(header: list[str], rows: list[list[str]]) -> str:
    """Plain text columns: the first one left, the others right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, ["─" * width for width in widths], *rows]:
        cells = [cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def summary_text(run: Run, summary: dict) -> str:
    """What the person who ran the release reads at the end."""
    control, models = run.measured("control"), run.measured("models")
    # steps are equal and nothing else was asked for, unless some arm sampled answers or was stopped
    uneven = any(arm["samples"] or arm["judge_calls"] or arm["stopped"] for arm in summary["arms"].values())
    counted = list(COUNTS) if uneven else []
    lines = [
        "",
        f"clips {count(summary['clips'])} · questions {count(summary['questions'])} · "
        f"answers {count(summary['answers'])} · pairs {count(summary['pairs'])}",
        *([drops_text(summary["drops"])] if run.measured("dataset") else []),
    ]
    if models.get("types_left_out"):
        lines.append(
            f"question types left out (base below 95 % before the bias): {', '.join(models['types_left_out'])}"
        )
    if control:
        lines += ["", _control_table(summary, control.get("member"))]
    lines += [
        "",
        table(
            ["arm", "accuracy", "95 % interval", "p vs base", "p vs dpo", "alpha per round", "distance", *counted],
            [
                [
                    name + (" *" if name == summary["release_arm"] else ""),
                    share(arm["accuracy"]),
                    interval(arm["ci95"]),
                    p_value(arm["p_vs_base"]) if name != "base" else "–",
                    p_value(arm["p_vs_dpo"]) if name != "dpo" else "–",
                    alphas(arm["alpha"]),
                    number(arm["distance"], 2),
                    *(count(arm[COUNTS[head]]) for head in counted),
                ]
                for name, arm in summary["arms"].items()
            ],
        ),
        f"  * released (best trained arm on validation, controls left out); {count(summary['test_clips'])} test clips; "
        "p-values Holm-corrected over all arms",
        *(f"  {name}: {said}" for name, arm in run.arms.items() if (said := remark(arm))),
        "",
        f'dataset  {run.dataset}/   (load_dataset("{run.dataset}"))',
        f"models   {f'{run.folder}/models/, ' if (run.folder / 'models').is_dir() else ''}{run.folder}/arms/",
        *([f"judge    {run.folder}/evaluator/"] if (run.folder / "evaluator" / "config.json").is_file() else []),
        f"report   {run.folder}/report.html",
        f"summary  {run.folder}/summary.json",
        f"{summary['wall_seconds']:.0f} s of wall time, all sittings together",
    ]
    return "\n".join(lines)


def _control_table(summary: dict, single: str | None) -> str:
    """The zoo beside its best single member."""
    return table(
        ["", "zoo", f"best single member{f' ({single})' if single else ''}"],
        [
            ["questions with a right answer (coverage)", *_two(summary["coverage"])],
            ["chosen answers that are right", *_two(summary["chosen_correct"])],
        ],
    )


def drops_text(drops: dict[str, int]) -> str:
    """Questions that gave no pair, by reason; those of the test split apart, since that is by design."""
    others = ", ".join(f"{drop.replace('_', ' ')} {n:,}" for drop, n in drops.items() if drop != HELD_OUT) or "none"
    held_out = f"; {drops[HELD_OUT]:,} test questions give no pairs by design" if drops.get(HELD_OUT) else ""
    return f"dropped without a pair: {others}{held_out}"


def _two(pair: dict) -> list[str]:
    return [share(pair.get("zoo")), share(pair.get("single"))]
