"""The release's evaluator: a judge that watches the video, what it says of the released model, and its own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cards.run_folder import Run

GOLD_VIDEOS = 40  # simulated, where the truth is known
FOLDER = "evaluator"


def measure_evaluator(run: Run, spec: dict[str, Any], truth_known: bool) -> dict[str, Any]:
    """Judge the stored answers of base and released arm by the evaluator, and write the evaluator's folder.

    Args:
        run: with results of the arms on the test split.
        spec: of the evaluator's judge; a checkpoint's path in it is a folder.
        truth_known: whether the stored verdicts are the truth (the toy world's references say all there is to say), so
            that the evaluator's errors can be told and gold labels simulated.

    Returns:
        ``judge`` (its record), and for each arm what the evaluator says: ``accuracy``, ``self_judged``, ``unjudged``;
        with a known truth also ``error``, ``missed``, ``false_alarms`` and ``debiased``. Of the released arm also
        ``without_frames`` (the judge is shown no video) and ``blind`` (the model is shown none).
    """
    import transformers

    from dataset_builder.judges import make_judge, without_frames
    from dataset_builder.models import load_model
    from eval.evaluator import VQAEvaluator
    from eval.rejudge import rejudge
    from eval.results import Results
    from eval.runner import evaluate, load_benchmark
    from eval.truth import error_rates, simulated_debiasing

    transformers.utils.logging.disable_progress_bar()  # loading takes no time here
    judge = make_judge(spec)
    items = load_benchmark(run.dataset, "test")
    videos = {item.question_id: item.video for item in items}
    arms: dict[str, Any] = {}
    for arm in dict.fromkeys(("base", run.release_arm)):
        if arm is None or not (run.folder / "results" / f"{arm}.json").is_file():
            continue
        results = Results.load(run.folder / "results" / f"{arm}.json")
        judged = rejudge(results, judge, videos, trained_on=run.dataset)
        judged.save(run.folder / "results" / FOLDER / f"{arm}.json")
        said: dict[str, Any] = {
            "accuracy": judged.accuracy.as_dict(),
            "self_judged": judged.self_judged,
            "unjudged": judged.errors,
        }
        if truth_known:
            truth = {row["question_id"]: row["correct"] for row in results.rows if row["correct"] is not None}
            said |= error_rates(judged, truth)
            if said["accuracy"]["clusters"] >= GOLD_VIDEOS:
                said["debiased"] = simulated_debiasing(judged, truth, GOLD_VIDEOS)
        arms[arm] = said
        if arm == run.release_arm:
            unseeing = without_frames(judge)
            if unseeing is not None:
                shown_nothing = rejudge(results, unseeing)
                shown_nothing.save(run.folder / "results" / FOLDER / "without_frames.json")
                said["without_frames"] = shown_nothing.accuracy.as_dict()
            checkpoint = run.release_folder
            if checkpoint is not None:
                blind = evaluate(load_model(checkpoint), items, name="blind", blind=True)
                blind.save(run.folder / "results" / FOLDER / "blind.json")
                said["blind"] = blind.accuracy.as_dict()
    VQAEvaluator(spec).save_pretrained(run.folder / FOLDER)
    record = {key: value for key, value in judged.judge.items() if key != "settings"} if arms else {}
    return {"judge": record, "arms": arms, "gold_videos": GOLD_VIDEOS if truth_known else None}


def headline(measured: dict[str, Any], folder: Path) -> str:
    """One line for the release's log."""
    if not measured["arms"]:
        return f"evaluator in {folder}/; no arm was judged by it"
    said = [f"{arm} {100 * side['accuracy']['mean']:.1f} %" for arm, side in measured["arms"].items()]
    mark = " (self-judged: it also chose the pairs)" if any(s["self_judged"] for s in measured["arms"].values()) else ""
    return f"by the judge that watches: {', '.join(said)}{mark}; evaluator in {folder}/"
