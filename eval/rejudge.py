"""Judge stored answers again: other judges, other settings, no inference by the model.

Verdicts of a local judge are stored block by block in a work folder, replies of an endpoint call by call, so a run that
was stopped goes on where it was, and nothing that was answered is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError
from dataset_builder.stages import ShardStore, fingerprint
from eval.fingerprint import judge_record, selection_judges, shared_model
from eval.predictions import NOT_JUDGED
from eval.results import Results
from eval.runner import FramesCache, frames_of, video_key
from eval.verdicts import judge_answers

if TYPE_CHECKING:
    from dataset_builder.judges import Judge

BLOCK = 64  # answers that a local judge gets at once, and that are lost at most
STAGE = "verdicts"
Video = str | bytes | None


def rejudge(
    results: Results,
    judge: Judge,
    videos: Mapping[str, Video] | None = None,
    *,
    work: str | Path | None = None,
    trained_on: str | Path | None = None,
    on_block: Callable[[int, int], None] | None = None,
) -> Results:
    """Verdicts of ``judge`` on the answers of ``results``.

    Args:
        results: answers with or without verdicts. Those that the model failed to give stay without.
        judge: any judge of ``dataset_builder.judges``.
        videos: path or content by question id, for a judge that looks; by video id if the question id is not there.
        work: folder for the verdicts of a local judge, kept between runs; None keeps none.
        trained_on: dataset the model was trained on, for the label *self-judged*.
        on_block: called with (done, total) after each block.

    Returns:
        New results with the same answers.

    Raises:
        KitError: the judge's model cannot be asked.
    """
    store = ShardStore(Path(work)) if work is not None and not getattr(judge, "is_endpoint", False) else None
    cache, rows = FramesCache(), []
    size = BLOCK if not getattr(judge, "is_endpoint", False) else max(BLOCK, 4 * judge.model.config.concurrency)
    for start in range(0, len(results.rows), size):
        rows += _judge_block(results.rows[start : start + size], start // size, judge, videos or {}, cache, store)
        if on_block:
            on_block(len(rows), len(results.rows))
    record = judge_record(judge)
    return replace(results, judge=record, rows=rows, self_judged=self_judged(record, trained_on))


def self_judged(record: Mapping[str, Any], trained_on: str | Path | None) -> str | None:
    """Name of the training pairs' judge that shares the evaluator's model; None without, or if nothing is known."""
    return shared_model(record, selection_judges(trained_on)) if trained_on else None


def _judge_block(
    block: list[dict], number: int, judge: Judge, videos: Mapping[str, Video], cache: FramesCache, store
) -> list[dict]:
    from dataset_builder.judges import JudgeItem

    found = [_video(row, videos) if judge.needs_frames else None for row in block]
    key = None
    if store is not None:
        content = [
            [row["question"], row["answers"], row["caption"], row["response"], str(video_key(video))]
            for row, video in zip(block, found)
        ]
        judged_by = [judge.kind, judge.model_name, judge.revision, judge.settings_hash]
        key = fingerprint({"judge": judged_by, "rows": content})
        kept = store.read(STAGE, judge.name, number, key)
        if kept is not None:
            return [{**row, **verdict} for row, verdict in zip(block, kept, strict=True)]
    answers: list[str | Exception] = []
    items = []
    for row, video in zip(block, found):
        answer, frames = _answer(row), None
        if judge.needs_frames and isinstance(answer, str):
            try:
                frames = frames_of(video, judge.num_frames, cache)
            except KitError as error:
                answer = error
        answers.append(answer)
        items.append(JudgeItem(row["question"], list(row["answers"]), frames, row["response"] or "", row["caption"]))
    verdicts = judge_answers(answers, items, judge)
    if store is not None and all(v["correct"] is not None for v, a in zip(verdicts, answers) if isinstance(a, str)):
        store.write(STAGE, judge.name, number, key, verdicts)  # a block with a failure is asked again next time
    return [{**row, **verdict} for row, verdict in zip(block, verdicts)]


def _answer(row: dict) -> str | KitError:
    if row["response"] is not None:
        return row["response"]
    reason = row["error"] if row["error"] and row["error"] != NOT_JUDGED else "the model's answer is missing"
    return KitError(reason)


def _video(row: dict, videos: Mapping[str, Video]) -> Video:
    return videos.get(row["question_id"], videos.get(row["video_id"]))
