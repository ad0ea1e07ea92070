"""The report of a comparison of two or more results on the same questions: one record of numbers, and its Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from dataset_builder.errors import KitError
from eval.fingerprint import describe_judge, judge_digits, same_judge
from eval.results import Results, common_rows, compare, refuse_different_judges
from eval.stats import holm, length_sensitivity, smallest_difference


def comparison_record(
    results: Sequence[Results],
    draws: int = 100_000,
    seed: int = 0,
    baseline: bool = False,
    different_judges: bool = False,
) -> dict[str, Any]:
    """Everything a comparison has to say, as JSON values.

    Args:
        results: two or more, measured on the same questions.
        draws: random sign assignments of each test.
        seed: of the draws.
        baseline: compare all with the last one only, instead of every pair.
        different_judges: compare although judges differ.

    Returns:
        ``results`` (one entry each), ``pairs`` (one paired test each, with Holm's correction over all of them),
        ``same_judge`` and ``test``.

    Raises:
        KitError: fewer than two, not measured on the same questions, one holds no verdict, or their judges differ.
    """
    if len(results) < 2:
        raise KitError("a comparison needs two results or more")
    if not different_judges:
        refuse_different_judges(results)
    labels = _labels(results)
    places = list(combinations(range(len(results)), 2))
    if baseline:
        places = [(place, len(results) - 1) for place in range(len(results) - 1)]
    tests = [compare(results[i], results[j], draws, seed, different_judges=True) for i, j in places]
    corrected = holm([test.p for test in tests])
    pairs = [
        {"a": labels[i], "b": labels[j], **test.as_dict(), "p_holm": p, **_more(results[i], results[j])}
        for (i, j), test, p in zip(places, tests, corrected, strict=True)
    ]
    return {
        "results": [_side(side, label) for side, label in zip(results, labels, strict=True)],
        "pairs": pairs,
        "same_judge": all(same_judge(results[0].judge, side.judge) for side in results[1:]),
        "test": {"kind": "per-video sign flips, two-sided", "draws": draws, "seed": seed, "correction": "Holm"},
    }


def _labels(results: Sequence[Results]) -> list[str]:
    """A name for each that no other has: revision or judge is added where names are the same."""
    labels = [side.name for side in results]
    for digits in (lambda side: side.model_revision[:8], lambda side: judge_digits(side.judge)):
        doubled = {label for label in labels if labels.count(label) > 1}
        labels = [
            f"{label} ({digits(side)})" if label in doubled else label
            for label, side in zip(labels, results, strict=True)
        ]
    return [f"{label} #{n}" if labels.count(label) > 1 else label for n, label in enumerate(labels, 1)]


def _side(side: Results, label: str) -> dict[str, Any]:
    score, rows = side.mean_score(), side.judged
    words = [_words(row) for row in rows]
    equal = length_sensitivity([r["correct"] for r in rows], words, [r["video_id"] for r in rows])
    return {
        "name": label,
        "model": side.model,
        "model_revision": side.model_revision,
        "judge": side.judge,
        "blind": bool(side.decoding.get("blind")),
        "self_judged": side.self_judged,
        "accuracy": side.accuracy.as_dict(),
        "mean_score": score and score.as_dict(),
        "errors": side.errors,
        "failures": side.failures(),
        "mean_words": fmean(words),
        "length": equal and equal.as_dict(),
    }


def _more(a: Results, b: Results) -> dict[str, Any]:
    """What the questions of both can show at all, and the difference at equal length of answers."""
    rows = common_rows([a, b])
    differences = [left["correct"] - right["correct"] for left, right in rows]
    videos = [left["video_id"] for left, _ in rows]
    words = ([_words(row) for row in side] for side in zip(*rows, strict=True))
    equal = length_sensitivity(differences, next(words), videos, other_words=next(words))
    return {"smallest_difference": smallest_difference(differences, videos), "length": equal and equal.as_dict()}


def _words(row: dict) -> int:
    return len((row["response"] or "").split())


def comparison_markdown(record: dict) -> str:
    """The record as Markdown: a table of the results, one of the differences, and what to mind."""
    sides, lines = record["results"], []
    if record["same_judge"]:
        lines += [f"Judge: {describe_judge(sides[0]['judge'])}", ""]
    lines += [
        "| | accuracy | 95 % interval | mean score | questions | videos | no verdict | words |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for side in sides:
        accuracy, score = side["accuracy"], side["mean_score"]
        notes = [f"judged by {describe_judge(side['judge'])}"] if not record["same_judge"] else []
        notes += ["shown no video"] if side["blind"] else []
        notes += ["**self-judged**"] if side["self_judged"] else []
        label = "; ".join([side["name"], *notes])
        lines.append(
            f"| {label} | {_percent(accuracy['mean'])} | {_percent(accuracy['low'])} – {_percent(accuracy['high'])} | "
            f"{_plain(score and score['mean'], '.2f')} | {accuracy['n']} | {accuracy['clusters']} | "
            f"{side['errors']} | {side['mean_words']:.1f} |"
        )
    lines += [
        "",
        "| difference | points | 95 % interval | p | p (Holm) | could show | at equal length | questions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for pair in record["pairs"]:
        low, high, equal = pair["low"], pair["high"], pair["length"]
        span = "–" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"
        shown = pair["smallest_difference"]
        lines.append(
            f"| {pair['a']} − {pair['b']} | {100 * pair['difference']:+.1f} | {span} | {pair['p']:.2g} | "
            f"{pair['p_holm']:.2g} | {_plain(shown and 100 * shown, '.1f')} | "
            f"{_plain(equal and 100 * equal['adjusted']['mean'], '+.1f')} | {pair['n']} |"
        )
    return "\n".join([*lines, "", *_remarks(record)])


def _remarks(record: dict) -> list[str]:
    test = record["test"]
    said = [
        f"Intervals and tests take the video as the unit ({test['kind']}, {test['draws']:,} draws). *Could show*: the "
        "smallest true difference, in points, that these questions show with 80 % power at the 5 % level. *At equal "
        "length*: a linear model on the logarithm of the number of words; it also takes out what longer answers are "
        "really better for, so it is a check of sensitivity, never the result."
    ]
    left_out = max(pair["left_out"] for pair in record["pairs"])
    if left_out:
        said.append(f"Up to {left_out} questions are left out: no verdict on one side, or one side lacks them.")
    if not record["same_judge"]:
        said.append(
            "Careful: these were judged by different judges or settings; differences are not the models' alone."
        )
    if any(side["self_judged"] for side in record["results"]):
        said.append(
            "*Self-judged*: this evaluator's model also chose the training pairs. Such a figure must not be a headline."
        )
    return ["\n\n".join(said)]


def _plain(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
