"""``debias``: accuracy, or the difference of two models, by gold standards: verdicts on all, labels on some."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError

if TYPE_CHECKING:
    from eval.gold.rows import GoldLabel
    from eval.results import Results
    from eval.stats import Debiased


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    top = argparse.ArgumentParser(
        prog="python -m eval debias",
        description="Prediction-powered inference (PPI++), clustered by video: what a judge's verdicts say once gold "
        "labels have said how it errs. The labelled videos must be a random sample (`python -m eval label` draws it).",
    )
    top.add_argument("results", metavar="RESULTS", help="saved results")
    top.add_argument("other", metavar="RESULTS_B", nargs="?", help="another model's: estimate the difference to it")
    top.add_argument("--gold", metavar="FILE", action="append", required=True, help="gold labels; may be repeated")
    top.add_argument(
        "--estimand",
        choices=("benchmark", "population"),
        default="benchmark",
        help="the mean over exactly these questions, or over all videos they were drawn from (default: %(default)s)",
    )
    top.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    return top


def run(arguments: list[str]) -> int:
    """Estimate, print, write."""
    options = parser().parse_args(arguments)
    from eval.details import load_results
    from eval.gold.rows import read_gold
    from eval.results import refuse_different_judges, write_text

    labels = [label for path in options.gold for label in read_gold(path)]
    a = load_results(options.results)
    b = load_results(options.other) if options.other else None
    if b is not None:
        refuse_different_judges([a, b])
    record = debias_record(a, labels, options.estimand, b)
    print(debias_markdown(record))
    if options.json:
        write_text(options.json, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return 0


def debias_record(
    a: Results, labels: list[GoldLabel], estimand: str = "benchmark", b: Results | None = None
) -> dict[str, Any]:
    """The debiased estimate of a model's accuracy, or of ``a - b``, as JSON values.

    Raises:
        KitError: too few gold videos, or no label fits.
    """
    from eval.stats import debiased_difference, debiased_mean

    gold, notes = _gold(a, labels)
    try:
        if b is None:
            found = debiased_mean(_verdicts(a.rows), [row["video_id"] for row in a.rows], gold, estimand)
        else:
            gold_b, more = _gold(b, labels)
            notes += more
            left = {row["question_id"]: (row, value) for row, value in zip(a.rows, gold)}
            right = {row["question_id"]: (row, value) for row, value in zip(b.rows, gold_b)}
            both = [question for question in left if question in right]
            found = debiased_difference(
                _verdicts([left[q][0] for q in both]),
                _verdicts([right[q][0] for q in both]),
                [left[q][0]["video_id"] for q in both],
                [left[q][1] for q in both],
                [right[q][1] for q in both],
                estimand,
            )
    except ValueError as error:
        raise KitError(f"the estimate cannot be made: {error}") from None
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    names = {"a": a.name, "b": b.name if b is not None else None}
    return {**names, "judge": a.judge, "self_judged": a.self_judged, "notes": notes, **found.as_dict()}


def debias_markdown(record: dict[str, Any] | Debiased) -> str:
    """A table of what verdicts, labels and both together say."""
    what = f"accuracy of {record['a']}" if record["b"] is None else f"{record['a']} − {record['b']}"
    over = "these questions" if record["estimand"] == "benchmark" else "the videos these were drawn from"
    lines = [f"{what}, over {over}, in % (95 % intervals, clustered by video)", ""]
    lines += ["| from | estimate | 95 % interval | questions | videos |", "| --- | --- | --- | --- | --- |"]
    naive, gold = record["naive"], record["gold_only"]
    rows = [
        ("verdicts alone, the judge's errors included", naive, naive["n"], naive["clusters"]),
        ("gold labels alone", gold, record["gold_n"], record["gold_clusters"]),
        ("verdicts and gold labels (debiased)", {**record}, record["n"], record["clusters"]),
    ]
    for name, e, n, videos in rows:
        span = "–" if e["low"] is None else f"{100 * e['low']:.1f} – {100 * e['high']:.1f}"
        lines.append(f"| {name} | {100 * e['mean']:.1f} | {span} | {n} | {videos} |")
    return "\n".join([*lines, "", f"lambda (weight of the verdicts): {record['lam']:.2f}"])


def _gold(results: Results, labels: list[GoldLabel]) -> tuple[list[float | None], list[str]]:
    from eval.gold.matching import match_gold

    matched, notes = match_gold(results, labels), []
    if matched.other_response:
        notes.append(f"{results.name}: {matched.other_response} labels are about other answers and were left out")
    if matched.undecided:
        notes.append(f"{results.name}: {matched.undecided} labelled answers have no majority and count as unlabelled")
    return matched.values, notes


def _verdicts(rows: list[dict]) -> list[float | None]:
    return [None if row["correct"] is None else float(row["correct"]) for row in rows]
