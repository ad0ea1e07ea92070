"""The report of a paired comparison: one record of numbers, and the same as Markdown."""

from __future__ import annotations

from eval.results import Results, compare


def comparison_record(a: Results, b: Results, draws: int = 100_000, seed: int = 0) -> dict:
    """Everything a comparison has to say, as JSON values.

    Raises:
        KitError: if the two were not measured on the same questions, or one holds no verdict.
    """
    paired = compare(a, b, draws=draws, seed=seed)
    return {
        "a": _side(a),
        "b": _side(b),
        "paired": paired.as_dict(),
        "same_judge": a.judge == b.judge,
        "test": {"kind": "per-video sign flips, two-sided", "draws": draws, "seed": seed},
    }


def comparison_markdown(record: dict) -> str:
    """The record as a short Markdown text."""
    paired, lines = record["paired"], []
    lines += [
        "| | accuracy | 95 % interval | questions | videos | no verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for side in (record["a"], record["b"]):
        e = side["accuracy"]
        interval = f"{_percent(e['low'])} – {_percent(e['high'])}"
        label = f"{side['name']} ({side['model_revision'][:8] or 'revision unknown'})"
        lines.append(
            f"| {label} | {_percent(e['mean'])} | {interval} | {e['n']} | {e['clusters']} | {side['errors']} |"
        )
    low, high = paired["low"], paired["high"]
    span = "" if low is None or high is None else f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    lines += [
        "",
        f"{record['a']['name']} − {record['b']['name']}: {100 * paired['difference']:+.1f} points{span}, "
        f"p = {paired['p']:.2g}, over {paired['n']} questions about {paired['clusters']} videos "
        f"({record['test']['kind']}, {record['test']['draws']:,} draws).",
    ]
    if paired["left_out"]:
        lines.append(f"{paired['left_out']} questions are left out: no verdict on one side, or one side lacks them.")
    if not record["same_judge"]:
        lines.append("Careful: the two were judged by different judges or settings.")
    return "\n".join(lines)


def _side(results: Results) -> dict:
    return {
        "name": results.name,
        "model": results.model,
        "model_revision": results.model_revision,
        "judge": results.judge,
        "accuracy": results.accuracy.as_dict(),
        "errors": results.errors,
    }


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
