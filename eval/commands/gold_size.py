"""``gold-size``: how many gold labels a wanted interval needs."""

from __future__ import annotations

import argparse

from dataset_builder.errors import KitError


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    top = argparse.ArgumentParser(
        prog="python -m eval gold-size",
        description="How many videos have to be labelled by hand for a 95 % interval of accuracy ± HALF_WIDTH: from "
        "saved results and a few gold labels (a pilot), or from what you expect of model and judge.",
    )
    top.add_argument("results", metavar="RESULTS", nargs="?", help="saved results; with --gold they are the pilot")
    top.add_argument("--gold", metavar="FILE", action="append", help="gold labels of the pilot; may be repeated")
    top.add_argument("--half-width", type=float, required=True, help="wanted, such as 0.03 for ± 3 points")
    top.add_argument("--estimand", choices=("benchmark", "population"), default="benchmark")
    top.add_argument("--videos", type=int, help="videos in the set (default: those of RESULTS)")
    top.add_argument("--questions", type=float, help="questions about a video (default: as in RESULTS)")
    top.add_argument("--accuracy", type=float, default=0.7, help="of the model, expected (default: %(default)s)")
    top.add_argument("--missed", type=float, default=0.1, help="share of right answers called wrong (%(default)s)")
    top.add_argument(
        "--false-alarms", type=float, default=0.1, help="share of wrong answers called right (%(default)s)"
    )
    top.add_argument("--icc", type=float, default=0.3, help="how alike a video's questions are (%(default)s)")
    return top


def run(arguments: list[str]) -> int:
    """Plan and print."""
    options = parser().parse_args(arguments)
    from eval.stats import gold_needed

    try:
        spread, source = _spread(options)
        plan = gold_needed(options.half_width, spread, options.estimand)
    except ValueError as error:
        raise KitError(f"gold-size: {error}") from None
    print(f"from {source}, for the {options.estimand}:")
    wide = f"± {100 * plan.half_width:.1f} points"
    print(f"label {plan.videos} of {spread.videos} videos, about {plan.labels} labels: {wide}")
    if plan.gold_only_videos is None:
        print("without the judge's verdicts all videos together would not do")
    else:
        print(f"without the judge's verdicts it would take {plan.gold_only_videos} videos")
    return 0


def _spread(options: argparse.Namespace):
    from eval.stats import Spread

    results = None
    if options.results:
        from eval.details import load_results

        results = load_results(options.results)
    if options.gold:
        if results is None:
            raise KitError("gold-size: --gold needs the results that the labels are about")
        from eval.gold.matching import gold_for
        from eval.gold.rows import read_gold

        gold = gold_for(results, [label for path in options.gold for label in read_gold(path)])
        verdicts = [None if row["correct"] is None else float(row["correct"]) for row in results.rows]
        videos = [row["video_id"] for row in results.rows]
        return Spread.from_pilot(verdicts, videos, gold), f"a pilot of {sum(g is not None for g in gold)} labels"
    rows = results.rows if results else []
    count = options.videos or len({row["video_id"] for row in rows})
    if not count:
        raise KitError("gold-size: give RESULTS, or --videos and --questions")
    questions = options.questions or len(rows) / max(1, len({row["video_id"] for row in rows})) or 1.0
    rates = (options.accuracy, options.missed, options.false_alarms, options.icc)
    return Spread.from_rates(count, questions, *rates), "expected rates"
