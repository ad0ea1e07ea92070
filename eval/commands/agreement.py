"""``agreement``: do several judges say the same of the same answers?"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError

if TYPE_CHECKING:
    from eval.results import Results


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    top = argparse.ArgumentParser(
        prog="python -m eval agreement",
        description="Agreement of judges on the same answers: Cohen's kappa for each pair, Krippendorff's alpha over "
        "all. A failed verdict is a missing value.",
    )
    top.add_argument("results", metavar="RESULTS", nargs="+", help="the same answers, judged by two judges or more")
    top.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    return top


def run(arguments: list[str]) -> int:
    """Compare verdicts, print, write."""
    top = parser()
    options = top.parse_args(arguments)
    if len(options.results) < 2:
        top.error("name two results or more")
    from eval.details import load_results
    from eval.results import write_text

    record = agreement_record([load_results(path) for path in options.results])
    print(agreement_markdown(record))
    if options.json:
        write_text(options.json, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return 0


def agreement_record(results: list[Results]) -> dict[str, Any]:
    """Kappa of each pair and alpha of all, over the answers that all of the results hold.

    Raises:
        KitError: they hold no answer in common, or different answers to a question.
    """
    from eval.stats import cohen_kappa, krippendorff_alpha

    sides = [{row["question_id"]: row for row in side.rows} for side in results]
    common = [q for q in sorted(sides[0]) if all(q in side for side in sides)]
    for question in common:
        if len({side[question]["response"] for side in sides}) > 1:
            raise KitError(f"question {question}: the results hold different answers; judges need the same ones")
    if not common:
        raise KitError("the results hold no answer in common")
    videos = [sides[0][q]["video_id"] for q in common]
    ratings = [[side[q]["correct"] for q in common] for side in sides]
    pairs = []
    for i, j in combinations(range(len(results)), 2):
        kept = [n for n in range(len(common)) if ratings[i][n] is not None and ratings[j][n] is not None]
        if not kept:
            raise KitError(f"results {i + 1} and {j + 1} share no answer with two verdicts")
        left, right = [ratings[i][n] for n in kept], [ratings[j][n] for n in kept]
        kappa = cohen_kappa(left, right, [videos[n] for n in kept])
        same = sum(x == y for x, y in zip(left, right)) / len(kept)
        pairs.append({"a": i, "b": j, "answers": len(kept), "same_verdict": same, "kappa": kappa.as_dict()})
    alpha = krippendorff_alpha(ratings, "nominal", videos)
    judges = [{**side.judge, "accuracy": side.accuracy.as_dict(), "results": side.name} for side in results]
    return {"judges": judges, "answers": len(common), "pairs": pairs, "alpha": alpha.as_dict()}


def agreement_markdown(record: dict[str, Any]) -> str:
    """The record as a table."""
    from eval.fingerprint import judge_digits

    names = [f"{judge.get('name')} ({judge_digits(judge)})" for judge in record["judges"]]
    lines = ["| judges | answers | same verdict | Cohen's κ | 95 % interval |", "| --- | --- | --- | --- | --- |"]
    for pair in record["pairs"]:
        kappa = pair["kappa"]
        lines.append(
            f"| {names[pair['a']]} and {names[pair['b']]} | {pair['answers']} | {100 * pair['same_verdict']:.1f} % | "
            f"{_number(kappa['value'])} | {_number(kappa['low'])} to {_number(kappa['high'])} |"
        )
    alpha = record["alpha"]
    said = f"Krippendorff's α over {record['answers']} answers: {_number(alpha['value'])}"
    return "\n".join([*lines, "", f"{said} ({_number(alpha['low'])} to {_number(alpha['high'])})"])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
