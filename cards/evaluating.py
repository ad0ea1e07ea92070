"""The release's evaluator: a judge, what it says of the released model, and its own folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cards.run_folder import Run

if TYPE_CHECKING:
    from eval.results import Results

GOLD_VIDEOS = 40  # simulated, where the truth is known
FOLDER = "evaluator"
SIMULATED = "results/gold/simulated.jsonl"  # the labels on those videos, in the form of `python -m eval label`


def measure_evaluator(
    run: Run, spec: dict[str, Any], truth_known: bool, media: Path | None = None, license: str = "apache-2.0"
) -> dict[str, Any]:
    """Judge the stored answers of base and released arm by the evaluator, and write the evaluator's folder.

    Every figure that is returned can be computed again from rows that are released: verdicts in
    ``results/evaluator/``, simulated gold labels in ``results/gold/simulated.jsonl``, and all of them side by side in
    ``results/verdicts.parquet`` of the evaluator's folder.

    Args:
        run: with results of the arms on the test split.
        spec: of the evaluator's judge; a checkpoint's path in it is a folder.
        truth_known: whether the stored verdicts are the truth (the toy world's references say all there is to say), so
            that the evaluator's errors can be told and gold labels simulated.
        media: ``media.json`` of the build, for videos that the dataset does not hold.
        license: of the evaluator's repo.

    Returns:
        ``judge`` (its record), ``sees`` (what it is shown, in words), and for each arm what the evaluator says:
        ``accuracy``, ``self_judged``, ``unjudged``; with a known truth also ``error``, ``missed``, ``false_alarms`` and
        ``debiased``. Of the released arm also ``without_frames`` (the judge is shown no video) and ``blind`` (the model
        is shown none).
    """
    import transformers

    from dataset_builder.judges import make_judge, without_frames
    from dataset_builder.models import load_model
    from dataset_builder.settings import parse_judge
    from eval.evaluator import VQAEvaluator
    from eval.evaluator.agreement import EVALUATOR, JUDGE, TRUTH, WITHOUT_FRAMES, verdict_rows, write_verdicts
    from eval.evaluator.card import sees
    from eval.rejudge import rejudge
    from eval.results import Results
    from eval.runner import evaluate, load_benchmark
    from eval.truth import error_rates

    transformers.utils.logging.disable_progress_bar()  # loading takes no time here
    judge = make_judge(spec)
    items = load_benchmark(run.dataset, "test", media)
    videos = {item.question_id: item.video for item in items}
    folder = run.folder / "results" / FOLDER
    arms: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    pairs: dict[str, tuple[Results, Results]] = {}
    for arm in dict.fromkeys(("base", run.release_arm)):
        if arm is None or not (run.folder / "results" / f"{arm}.json").is_file():
            continue
        results = Results.load(run.folder / "results" / f"{arm}.json")
        judged = rejudge(results, judge, videos, trained_on=run.dataset)
        judged.save(folder / f"{arm}.json")
        pairs[arm] = results, judged
        said: dict[str, Any] = {
            "accuracy": judged.accuracy.as_dict(),
            "self_judged": judged.self_judged,
            "unjudged": judged.errors,
        }
        rows += verdict_rows(judged, EVALUATOR, arm) + verdict_rows(results, TRUTH if truth_known else JUDGE, arm)
        if truth_known:
            said |= error_rates(judged, _truth(results))
        arms[arm] = said
        if arm == run.release_arm:
            unseeing = without_frames(judge)
            if unseeing is not None:
                shown_nothing = rejudge(results, unseeing)
                shown_nothing.save(folder / "without_frames.json")
                rows += verdict_rows(shown_nothing, WITHOUT_FRAMES, arm)
                said["without_frames"] = shown_nothing.accuracy.as_dict()
            checkpoint = run.release_folder
            if checkpoint is not None:
                blind = evaluate(load_model(checkpoint), items, name="blind", blind=True)
                blind.save(folder / "blind.json")
                said["blind"] = blind.accuracy.as_dict()
    gold = None
    if truth_known and pairs and min(said["accuracy"]["clusters"] for said in arms.values()) >= GOLD_VIDEOS:
        gold = GOLD_VIDEOS
        for arm, (debiased, labelled) in simulate_gold(pairs, gold, run.folder / SIMULATED).items():
            arms[arm]["debiased"] = debiased
            rows += labelled
    if rows:
        write_verdicts(folder / "verdicts.parquet", rows)
    given = folder / "verdicts.parquet" if rows else None
    VQAEvaluator(spec, license=license, verdicts=given).save_pretrained(run.folder / FOLDER)
    record = {key: value for key, value in judged.judge.items() if key != "settings"} if arms else {}
    shown = sees(dataclasses.asdict(parse_judge(dict(spec))))
    return {"judge": record, "sees": shown, "arms": arms, "gold_videos": gold}


def simulate_gold(
    pairs: Mapping[str, tuple[Results, Results]], videos: int, path: Path
) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Label the answers about some videos, drawn at random, with the truth, and put the judge's figures right by them.

    Args:
        pairs: by arm, the answers with their true verdicts and with the judge's.
        videos: how many videos are labelled.
        path: where the labels are written, as ``python -m eval debias`` reads them.

    Returns:
        By arm, the debiased accuracy and the labels as rows of the evaluator's verdicts.
    """
    from eval.evaluator.agreement import GOLD, verdict_rows
    from eval.gold.matching import gold_for
    from eval.gold.rows import GoldLabel, latest, response_hash
    from eval.gold.sampling import draw_sample
    from eval.results import write_text
    from eval.stats import debiased_mean

    labels, found = [], {}
    for true, _ in pairs.values():
        drawn = set(draw_sample(true, videos).videos)
        for row in true.rows:
            if row["video_id"] in drawn and row["correct"] is not None:
                said = "correct" if row["correct"] else "incorrect"
                answer = (response_hash(row["response"]),)
                labels.append(GoldLabel(row["question_id"], row["video_id"], answer, "simulated", said))
    labels = latest(labels)
    write_text(path, "".join(f"{label.as_json()}\n" for label in labels))
    for arm, (true, judged) in pairs.items():
        values = gold_for(judged, labels)
        verdicts = [None if row["correct"] is None else float(row["correct"]) for row in judged.rows]
        debiased = debiased_mean(verdicts, [row["video_id"] for row in judged.rows], values).as_dict()
        known = {row["question_id"] for row, value in zip(judged.rows, values) if value is not None}
        rows = [row for row in verdict_rows(true, GOLD, arm) if row["question_id"] in known]
        found[arm] = debiased, [{**row, "judge": "simulated gold labels", "fingerprint": None} for row in rows]
    return found


def _truth(results: Results) -> dict[str, int]:
    return {row["question_id"]: row["correct"] for row in results.rows if row["correct"] is not None}


def headline(measured: dict[str, Any], folder: Path) -> str:
    """One line for the release's log."""
    if not measured["arms"]:
        return f"evaluator in {folder}/; no arm was judged by it"
    said = [f"{arm} {100 * side['accuracy']['mean']:.1f} %" for arm, side in measured["arms"].items()]
    mark = " (self-judged: it also chose the pairs)" if any(s["self_judged"] for s in measured["arms"].values()) else ""
    return f"by the released judge, {measured['judge']['name']}: {', '.join(said)}{mark}; evaluator in {folder}/"
