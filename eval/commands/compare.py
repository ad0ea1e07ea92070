"""``compare``: the paired report of two or more saved results."""

from __future__ import annotations

import argparse
import json


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    top = argparse.ArgumentParser(
        prog="python -m eval compare",
        description="Paired tests over the questions that both sides have a verdict for: per-video sign flips, with "
        "Holm's correction over all pairs.",
    )
    top.add_argument(
        "results",
        metavar="RESULTS",
        nargs="+",
        help="results JSON, LightEval results or details, or a folder with one of them; two or more on one benchmark",
    )
    top.add_argument("--baseline", action="store_true", help="compare all with the last one only")
    top.add_argument("--different-judges", action="store_true", help="compare although their judges differ")
    top.add_argument("--draws", type=int, default=100_000, help="random sign assignments (default: %(default)s)")
    top.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    top.add_argument("--markdown", metavar="FILE", help="also write the report as Markdown")
    top.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    top.add_argument("--png", metavar="FILE", help="also draw accuracies and differences with their intervals")
    return top


def run(arguments: list[str]) -> int:
    """Compare, print, write."""
    top = parser()
    options = top.parse_args(arguments)
    if options.draws < 1:
        top.error("--draws must be at least 1")
    if len(options.results) < 2:
        top.error("name two results or more")

    from eval.details import load_results
    from eval.report import comparison_markdown, comparison_record
    from eval.results import write_text

    results = [load_results(path) for path in options.results]
    record = comparison_record(results, options.draws, options.seed, options.baseline, options.different_judges)
    report = comparison_markdown(record)
    print(report)
    if options.markdown:
        write_text(options.markdown, report + "\n")
    if options.json:
        write_text(options.json, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if options.png:
        from eval.figure import draw_comparison

        draw_comparison(record, options.png)
    return 0
