"""``rejudge``: stored answers, judged again by another judge or under other settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import EXIT_ROWS_LEFT_OUT, EXIT_UNJUDGED, KitError

if TYPE_CHECKING:
    from eval.results import Results
    from eval.settings import EvalSettings


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    top = argparse.ArgumentParser(
        prog="python -m eval rejudge",
        description="Judge stored answers again. No model answers anything; a stopped run goes on where it was.",
    )
    top.add_argument("results", metavar="RESULTS", help="results (this kit's or LightEval's), or predictions (JSONL)")
    top.add_argument("--judge", metavar="YAML", required=True, help="settings with a `judge:`, as for MMAIP_V_EVAL")
    top.add_argument("--output", metavar="FILE", required=True, help="the new results (JSON)")
    top.add_argument("--name", help="what tables call the model")
    top.add_argument("--dataset", help="dataset folder or Hub id with the videos, for judges that look")
    top.add_argument("--split", default="test", help="of the dataset (default: %(default)s)")
    top.add_argument("--media", metavar="FILE", help="media.json of a build, for a dataset without videos")
    top.add_argument("--videos", metavar="DIR", help="folder that the predictions' modal_path begins in")
    top.add_argument("--captions", metavar="FILE", help="JSONL with id and caption, for the hound judge")
    top.add_argument("--trained-on", metavar="DATASET", help="the model's training pairs: is the figure self-judged?")
    top.add_argument("--without-frames", action="store_true", help="the same judge, not shown the video: a baseline")
    top.add_argument("--max-unjudged", type=float, help="share without a verdict from which the exit code is 5")
    top.add_argument("--device", help="where a local judge runs")
    return top


def run(arguments: list[str]) -> int:
    """Judge, save, say what came out."""
    options = parser().parse_args(arguments)
    from dataset_builder.settings import load_yaml
    from eval.results import write_text
    from eval.settings import EvalSettings

    settings = load_yaml(Path(options.judge), EvalSettings)
    results, left_out = read_answers(options.results, options.captions, options.name)
    for error in left_out:
        print(f"left out: {error}", file=sys.stderr)
    output = Path(options.output)
    write_text(output.parent / ".writable", "").unlink()  # better now than after hours of judging
    judged = judge_all(results, settings, options, output)
    judged.save(output)
    say(judged)
    limit = settings.max_unjudged if options.max_unjudged is None else options.max_unjudged
    if judged.errors > limit * len(judged.rows):
        share = judged.errors / len(judged.rows)
        print(f"error: {share:.1%} of the answers have no verdict (limit {limit:.1%}); see above", file=sys.stderr)
        return EXIT_UNJUDGED
    return EXIT_ROWS_LEFT_OUT if left_out else 0


def read_answers(path: str, captions: str | None, name: str | None) -> tuple[Results, list]:
    """Results of any kind, or a prediction file; captions are added where they are given."""
    from eval.details import load_results
    from eval.predictions import read_predictions

    if Path(path).suffix == ".jsonl":
        return read_predictions(path, captions, name)
    results = load_results(path)
    if name:
        results.name = name
    return results, []


def judge_all(results: Results, settings: EvalSettings, options: argparse.Namespace, output: Path) -> Results:
    """Judge all answers, with a bar."""
    from tqdm import tqdm

    from dataset_builder.judges import make_judge
    from dataset_builder.models import CallCache
    from eval.rejudge import rejudge

    spec = dict(settings.judge)
    if options.without_frames:
        if spec.get("kind") not in ("vqa", "visual"):
            kind = spec.get("kind")
            raise KitError(f"{options.judge}: --without-frames needs a judge of kind 'vqa' or 'visual', not '{kind}'")
        spec["num_frames"] = 0
    work = output.parent / f".{output.stem}-work"
    cache = CallCache(work / "calls.sqlite") if spec.get("endpoint") else None
    judge = make_judge(spec, options.device or settings.device, cache)
    videos = find_videos(results, settings, options) if judge.needs_frames else {}
    with tqdm(total=len(results.rows), desc=f"judging by {judge.name}", unit="answer") as bar:
        return rejudge(
            results,
            judge,
            videos,
            work=work,
            trained_on=options.trained_on or settings.trained_on,
            on_block=lambda done, total: bar.update(done - bar.n),
        )


def find_videos(results: Results, settings: EvalSettings, options: argparse.Namespace) -> dict[str, Any]:
    """Videos by question id (of a dataset) or by video id (of predictions)."""
    if options.videos:
        return {row["video_id"]: str(Path(options.videos) / row["video_id"]) for row in results.rows}
    from eval.runner import load_benchmark
    from eval.settings import dataset_name

    items = load_benchmark(options.dataset or dataset_name(), options.split, options.media or settings.media)
    return {item.question_id: item.video for item in items}


def say(judged: Results) -> None:
    """The figures, and why verdicts are missing."""
    from eval.fingerprint import describe_judge

    print(f"{judged.name}, judged by {describe_judge(judged.judge)}")
    if judged.judged:
        accuracy, score = judged.accuracy, judged.mean_score()
        print(
            f"accuracy {accuracy.mean:.1%} (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}) over "
            f"{accuracy.n} answers about {accuracy.clusters} videos"
        )
        if score is not None:
            print(f"mean score {score.mean:.2f} ({score.low:.2f} to {score.high:.2f})")
    if judged.self_judged:
        print(f"self-judged: the judge '{judged.self_judged}' of the training pairs is the same model")
    if judged.errors:
        print(f"{judged.errors} answers have no verdict:")
        for reason, count in list(judged.failures().items())[:5]:
            print(f"  {count} × {reason}")
