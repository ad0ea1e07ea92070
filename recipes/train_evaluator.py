"""Train a small local judge from the judge scores that a dataset was released with.

    accelerate launch recipes/train_evaluator.py --config recipes/configs/evaluator.yaml --dataset mmaip-v

Every answer in the dataset's `responses` has scores by the build's judges. The model learns to say yes or no to "is
this answer right for this video?", in the words of the `visual` judge, so the result is a judge of kind `visual` for a
build and for an evaluation. It learns what those judges think: their errors too. How well it agrees with them on
validation answers, which it has not seen, is written beside it in `judge_training.json`.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from recipes.settings import option, read_yaml, refuse, run_recipe


@dataclass
class EvaluatorArguments:
    """What to learn from, and from which checkpoint.

    Attributes:
        dataset: dataset folder or Hub id with a `responses` config.
        model_name_or_path: checkpoint folder or Hub id to start from.
        judge: name of the judge to learn from; without it the aggregate over all judges.
        criterion: the judge's criterion; without it the mean of its criteria.
        threshold: share of the scores' range from which an answer counts as right.
        media: `media.json` of a build, for a dataset without videos.
        num_frames: frames sampled per video, as the judge will see.
        freeze_vision: leave the vision tower and its projector as they are.
    """

    dataset: str = field(default="mmaip-v", metadata={"help": "Dataset folder or Hub id."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint to start from."})
    judge: str | None = field(default=None, metadata={"help": "Judge to learn from; default: the aggregate."})
    criterion: str | None = field(default=None, metadata={"help": "Its criterion; default: the mean of them."})
    threshold: float = field(default=0.5, metadata={"help": "Share of the range that counts as right."})
    media: str | None = field(default=None, metadata={"help": "media.json of a build."})
    num_frames: int = field(default=8, metadata={"help": "Frames sampled per video."})
    freeze_vision: bool = field(default=True, metadata={"help": "Leave the vision tower as it is."})


@dataclass(frozen=True)
class Example:
    """One answer with what the judges said of it."""

    video_id: str
    question: str
    answer: str
    right: bool


def examples(
    dataset: str | Path, split: str, judge: str | None, criterion: str | None, threshold: float
) -> tuple[list[Example], int]:
    """The distinct answers of a split with a score, and how many rows had none.

    Raises:
        KitError: no `responses`, no such judge or criterion.
    """
    from dataset_builder.loading import dataset_folder, split_files, stream_batches

    folder = dataset_folder(dataset, "responses/*.parquet")
    files = split_files(folder, "responses").get(split, [])
    columns = ["question_id", "video_id", "question", "response", "scores", "score", "flags"]
    found: dict[tuple, Example] = {}
    without, known = 0, Counter()
    for batch in stream_batches(files, columns):
        for row in batch.to_pylist():
            known.update((score["judge"], score["criterion"]) for score in row["scores"])
            value = _target(row, judge, criterion)
            if value is None or not row["response"].strip():
                without += 1
                continue
            key = (row["question_id"], row["response"].strip())
            found[key] = Example(row["video_id"], row["question"], row["response"].strip(), value >= threshold)
    if files and judge is not None and not any(name == judge and criterion in (None, c) for name, c in known):
        there = ", ".join(sorted({f"{name}:{c}" for name, c in known})) or "none"
        raise KitError(f"{dataset}: has no scores by '{judge}' ({criterion or 'any criterion'}); there are {there}")
    return list(found.values()), without


def _target(row: dict[str, Any], judge: str | None, criterion: str | None) -> float | None:
    """The score to learn, from 0 to 1; None where there is none."""
    if judge is None:
        return row["score"]
    scores = [s for s in row["scores"] if s["judge"] == judge and criterion in (None, s["criterion"])]
    if not scores or any(score["score"] is None for score in scores):
        return None
    return math.fsum((s["score"] - s["low"]) / (s["high"] - s["low"]) for s in scores) / len(scores)


def videos_of(dataset: str | Path, split: str, media: str | None) -> dict[str, Any]:
    """Content or path of every video of a split, by video id: from `preferences` and `benchmark`."""
    from dataset_builder.loading import load_config
    from eval.runner import MediaIndex, video_source

    attach = MediaIndex(media) if media else None
    found: dict[str, Any] = {}
    for config in ("preferences", "benchmark"):
        try:
            rows = load_config(dataset, config, split, ("video_id", "video"))
        except KitError:
            continue  # no pair or no benchmark question in this split
        for row in rows.select_columns(["video_id", "video"]):
            if row["video_id"] not in found:
                source = video_source(row["video"], row["video_id"], attach)
                if source is not None:
                    found[row["video_id"]] = source
    return found


def clips(found: Sequence[Example], videos: dict[str, Any]) -> list:
    """Training clips: all answers about one video, each a question whose answer is yes or no.

    Of the commoner verdict only as large a share is shown in an epoch as makes both equally frequent.
    """
    from dataset_builder.judges.fence import harmless
    from dataset_builder.judges.visual import VERIFIER_PROMPT
    from recipes.sft_data import Clip, Turn

    counts = Counter(e.right for e in found if e.video_id in videos)
    if len(counts) < 2:
        raise KitError("the answers with a video are all right or all wrong by these scores: nothing can be learned")
    chance = {right: min(counts.values()) / count for right, count in counts.items()}
    made: dict[str, Clip] = {}
    for e in found:
        if e.video_id in videos:
            clip = made.setdefault(e.video_id, Clip(videos[e.video_id]))
            prompt = VERIFIER_PROMPT.format(question=e.question, answer=harmless(e.answer))
            clip.turns.append(Turn(prompt, "yes" if e.right else "no", chance[e.right]))
    return list(made.values())


def measure(chat, found: Sequence[Example], videos: dict[str, Any], num_frames: int) -> dict[str, Any]:
    """Agreement with the scores on held-out answers: share of equal verdicts, and area under the ROC curve."""
    from dataset_builder.judges import JudgeItem, VisualJudge
    from eval.runner import FramesCache, frames_of
    from eval.stats import cluster_mean

    held = [e for e in found if e.video_id in videos]
    if not held:
        return {"answers": 0}
    judge, cache, said = VisualJudge(chat, num_frames), FramesCache(), []
    for start in range(0, len(held), 64):
        block = held[start : start + 64]
        items = [JudgeItem(e.question, [], frames_of(videos[e.video_id], num_frames, cache), e.answer) for e in block]
        said += [scores[0].score for scores in judge.score(items)]
    equal = [float((p >= 0.5) == e.right) for p, e in zip(said, held, strict=True)]
    estimate = cluster_mean(equal, [e.video_id for e in held])
    right = [p for p, e in zip(said, held) if e.right]
    wrong = [p for p, e in zip(said, held) if not e.right]
    wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    area = wins / (len(right) * len(wrong)) if right and wrong else None
    return {
        "answers": len(held),
        "videos": len({e.video_id for e in held}),
        "agreement": estimate.as_dict(),
        "auc": area,
        "share_right": len(right) / len(held),
    }


def parse(argv: list[str] | None = None):
    """Parse a command line with an optional `--config FILE.yaml` whose values it overrides.

    Returns:
        (`EvaluatorArguments`, `transformers.TrainingArguments`).

    Raises:
        KitError: an unknown key or a value out of range.
    """
    argv = sys.argv[1:] if argv is None else argv
    if (config := option(argv, "config")) is not None:
        read_yaml(config)
    import torch
    import yaml
    from transformers import TrainingArguments
    from trl import TrlParser

    parser = TrlParser((EvaluatorArguments, TrainingArguments), description=EvaluatorArguments.__doc__)
    parser.error = refuse
    parser.set_defaults(save_strategy="no", report_to="none", disable_tqdm=True)
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available())
    try:
        script, training = parser.parse_args_and_config(argv)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise KitError(f"configuration: {str(error).strip().splitlines()[0]}") from error
    if script.model_name_or_path is None:
        raise KitError("--model_name_or_path is needed: the checkpoint that becomes the judge")
    if not 0 < script.threshold <= 1 or script.num_frames < 1:
        raise KitError("threshold must be above 0 and at most 1, num_frames at least 1")
    if script.criterion is not None and script.judge is None:
        raise KitError("criterion needs the judge it belongs to (--judge)")
    return script, training


def main(argv: list[str] | None = None) -> None:
    """Parse, load, train, measure, save."""
    script, training = parse(argv)
    aim = (script.judge, script.criterion, script.threshold)
    found, without = examples(script.dataset, "train", *aim)
    videos = videos_of(script.dataset, "train", script.media)
    if not any(e.video_id in videos for e in found):
        raise KitError(f"{script.dataset}: none of its {len(found)} scored answers has a video; give --media")

    from dataset_builder.models import LocalChatModel, load_model
    from recipes.checkpoints import place, save_checkpoint
    from recipes.progress import ProgressLines
    from recipes.sft import train
    from recipes.sft_trainer import resumable, settings_identity
    from recipes.video.vision import freeze_vision

    data = clips(found, videos)
    loaded = load_model(script.model_name_or_path, device="cpu", dtype="float32")
    model, processor = loaded.model, loaded.processor
    if script.freeze_vision:
        freeze_vision(model)
    answers = sum(len(clip.turns) for clip in data)
    main_process = training.process_index == 0
    say = functools.partial(print, flush=True) if main_process else (lambda line: None)
    say(f"{answers} scored answers about {len(data)} clips ({without} rows without a score)")
    output, identity = Path(training.output_dir), settings_identity(script, training, loaded.revision, data)
    with resumable(training, identity, say) as last:
        lines = ProgressLines(say, "evaluator")
        # One verdict a sequence: packed, a judge listens to its own earlier verdicts instead of looking.
        how = {"num_frames": script.num_frames, "pack": False, "callbacks": (lines,), "last": last}
        metrics = train(model, processor, data, training, **how)
        if not main_process:
            return
        held, _ = examples(script.dataset, "validation", *aim)
        chat = LocalChatModel(model, processor, "evaluator", "training", str(model.device))
        record = {
            "from": loaded.revision,
            "dataset": Path(script.dataset).name,
            "target": {
                "judge": script.judge or "aggregate",
                "criterion": script.criterion,
                "threshold": script.threshold,
            },
            "answers": answers,
            "clips": len(data),
            "steps": training.max_steps,
            "train_loss": metrics["train_loss"],
            "num_frames": script.num_frames,
            "validation": measure(chat, held, videos_of(script.dataset, "validation", script.media), script.num_frames),
        }

        def write(folder: Path) -> None:
            save_checkpoint(model, processor, folder)
            (folder / "judge_training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

        place(output, write)
    held_out = record["validation"]
    said = (
        f"agrees on {held_out['agreement']['mean']:.1%} of {held_out['answers']}" if held_out["answers"] else "has no"
    )
    print(f"loss {metrics['train_loss']:.3f}; {said} validation answers; checkpoint in {output}", flush=True)


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
