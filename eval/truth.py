"""How a judge errs where the truth is known, and what a simulated sample of gold labels makes of its verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.gold.sampling import draw_sample
from eval.results import Results
from eval.stats import cluster_mean, debiased_mean


def error_rates(results: Results, truth: Mapping[str, int]) -> dict[str, Any]:
    """What a judge's verdicts say, beside what is true.

    Args:
        results: judged answers.
        truth: 1 or 0 by question id: whether the answer is right.

    Returns:
        ``accuracy`` (by the verdicts) and ``error`` (share of wrong verdicts), each an estimate clustered by video;
        ``truth`` (share of right answers); ``missed`` (share of right answers called wrong) and ``false_alarms``
        (share of wrong answers called right), None where there are none; ``unjudged``.
    """
    rows = [(row["correct"], truth[row["question_id"]], row["video_id"]) for row in results.judged]
    right = [said for said, true, _ in rows if true]
    wrong = [said for said, true, _ in rows if not true]
    videos = [video for _, _, video in rows]
    return {
        "judge": results.judge.get("name"),
        "accuracy": results.accuracy.as_dict(),
        "error": cluster_mean([float(said != true) for said, true, _ in rows], videos).as_dict(),
        "truth": sum(truth[row["question_id"]] for row in results.rows) / len(results.rows),
        "missed": 1 - sum(right) / len(right) if right else None,
        "false_alarms": sum(wrong) / len(wrong) if wrong else None,
        "unjudged": results.errors,
        "self_judged": results.self_judged,
    }


def simulated_debiasing(
    results: Results, truth: Mapping[str, int], videos: int, seed: int = 0, estimand: str = "benchmark"
) -> dict[str, Any]:
    """The debiased accuracy, had the answers about so many videos drawn at random been labelled with the truth.

    Raises:
        KitError: there are not so many videos.
        ValueError: the estimate cannot be made.
    """
    drawn = set(draw_sample(results, videos, seed).videos)
    gold = [truth[row["question_id"]] if row["video_id"] in drawn else None for row in results.rows]
    verdicts = [None if row["correct"] is None else float(row["correct"]) for row in results.rows]
    return debiased_mean(verdicts, [row["video_id"] for row in results.rows], gold, estimand).as_dict()
