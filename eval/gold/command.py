"""``python -m eval label``: gold labels from people, on a page that this machine serves to itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builder.errors import EXIT_OK, KitError
from eval.gold.agreement import agreement_table
from eval.gold.rows import GoldLabel, LabelFile, clean_name, read_gold
from eval.gold.sampling import FEWEST_VIDEOS, Sample, draw_videos, extend_sample, sample_path

if TYPE_CHECKING:
    from eval.results import Results

DESCRIPTION = """Label answers by hand and blind: video, question, answer, without a model's name or a judge's verdict.

With RESULTS, say of each answer whether it is correct, incorrect, or that you are unsure; with RESULTS_B as well, which
of two answers is better. Labels go into a JSONL (format: eval/gold/rows.py), each one at once; the same command goes on
where it was. Whole videos are drawn at random and recorded in FILE.sample.json; more --videos add to them."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m eval label", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("results", metavar="RESULTS", help="saved results whose answers are labelled")
    made.add_argument("results_b", metavar="RESULTS_B", nargs="?", help="other answers to the same questions")
    made.add_argument("--dataset", help="dataset folder or Hub id with the videos (default: the one the results name)")
    made.add_argument("--media", metavar="FILE", help="media.json for videos that the dataset does not hold")
    made.add_argument("--output", metavar="FILE", default="gold.jsonl", help="label file (default: %(default)s)")
    made.add_argument("--annotator", metavar="NAME", help="whose labels these are; the page asks otherwise")
    made.add_argument(
        "--videos", type=int, metavar="N", help=f"videos to draw (default: {FEWEST_VIDEOS}, or all if there are fewer)"
    )
    made.add_argument("--seed", type=int, help="of the draw (default: 0, or that of the sample there is)")
    made.add_argument("--port", type=int, help="of the page (default: 7860, or a free one)")
    made.add_argument("--open", action="store_true", help="also open the page in the browser")
    made.add_argument("--agreement", action="store_true", help="only print how far annotators agree")
    made.add_argument(
        "--labels", metavar="FILE", nargs="+", default=[], help="more label files to read for the agreement"
    )
    return made


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code.

    Raises:
        KitError: if a file is missing or does not fit, or gradio is not installed.
        KeyboardInterrupt: on Ctrl-C.
    """
    made = parser()
    options = made.parse_args(arguments)
    if options.videos is not None and options.videos < 1:
        made.error("--videos must be at least 1")
    if options.port is not None and not 0 <= options.port < 65536:
        made.error("--port must be from 0 to 65535")

    from eval.details import load_results

    results = load_results(options.results)
    other = load_results(options.results_b) if options.results_b else None
    if options.agreement:
        return _print_agreement(results, other, [options.output, *options.labels])
    return _label(options, results, other)


def _label(options: argparse.Namespace, results: Results, other: Results | None) -> int:
    from eval.gold.items import common_videos, items_of, paired_items_of
    from eval.gold.page.server import make_app, need_gradio, serve
    from eval.gold.session import Labelling

    annotator = clean_name(options.annotator) if options.annotator is not None else None
    need_gradio()
    from eval.gold.clips import Clips

    videos = common_videos(results, other) if other else [row["video_id"] for row in results.rows]
    sample = _sample(options, videos)
    items = paired_items_of(results, other, sample.videos) if other else items_of(results, sample.videos)
    file = LabelFile(options.output)
    file.labels()  # a broken file is said now
    session = Labelling(items, file)
    clips = Clips(options.dataset or _own_dataset(results, options.media), options.media)
    clips.check(item.video_id for item in session.items)
    sample.save(sample_path(options.output))

    def table() -> tuple:
        return agreement_table(_of_these(_labels([*options.labels], file.labels()), results, other))

    def announce(address: str) -> None:
        print(f"{len(session.items)} answers from {len(sample.videos)} of {sample.population} videos", flush=True)
        print(f"labels go into {options.output}; open {address} and stop with Ctrl-C", flush=True)
        if options.open:
            import webbrowser

            webbrowser.open(address)

    serve(lambda port: make_app(session, clips, table, annotator, port), options.port, announce)
    return EXIT_OK


def _sample(options: argparse.Namespace, videos: list[str]) -> Sample:
    path, there = sample_path(options.output), len(set(videos))
    if path.exists():
        sample = Sample.load(path)
        if options.seed not in (None, sample.seed):
            raise KitError(
                f"{path}: this sample was drawn with seed {sample.seed}; leave --seed out, or give another --output"
            )
        if options.videos is not None and options.videos < len(sample.videos):
            print(f"note: the sample holds {len(sample.videos)} videos already and keeps them", file=sys.stderr)
        sample = extend_sample(sample, videos, options.videos or 0)
    else:
        sample = draw_videos(videos, options.videos or min(FEWEST_VIDEOS, there), options.seed or 0)
    if len(sample.videos) < FEWEST_VIDEOS:
        print(
            f"note: {len(sample.videos)} videos; intervals from gold labels want at least {FEWEST_VIDEOS}",
            file=sys.stderr,
        )
    return sample


def _own_dataset(results: Results, media: str | None) -> str | None:
    """The dataset that the results name, if it is a folder here."""
    if results.dataset and Path(results.dataset).is_dir():
        return results.dataset
    if media is None:
        raise KitError("the results name no dataset folder of this machine: give --dataset DATASET or --media FILE")
    return None


def _print_agreement(results: Results, other: Results | None, files: list[str]) -> int:
    header, rows, note = agreement_table(_of_these(_labels(files), results, other))
    lines = [header, *rows] if rows else []
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))] if lines else []
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print(note)
    return EXIT_OK


def _labels(files: list[str], first: list[GoldLabel] = ()) -> list[GoldLabel]:
    return [*first, *(label for file in files for label in read_gold(file))]


def _of_these(labels: list[GoldLabel], results: Results, other: Results | None) -> list[GoldLabel]:
    """Labels on answers that these results hold."""
    from eval.gold.items import items_of, paired_items_of

    videos = list(dict.fromkeys(str(row["video_id"]) for row in results.rows))
    items = paired_items_of(results, other, videos) if other else items_of(results, videos)
    keys = {item.key for item in items}
    return [label for label in labels if label.item in keys]
