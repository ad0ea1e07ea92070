"""Sampling and judging with checkpoints on this machine, block by block.

A block's requests go through the model as one call seeded by (seed, member, block), so neither a stop nor the number of
workers changes an answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dataset_builder.answers import response_row
from dataset_builder.errors import KitError
from dataset_builder.stages.clips import FrameCache, batch_size
from dataset_builder.stages.job import (
    Job,
    block_seed,
    is_remote,
    judging_key,
    member_settings,
    need_responses,
    sampling_key,
    score_rows,
    settings_file,
    unique_answers,
)
from dataset_builder.stages.store import ShardStore, write_json

Report = Callable[[str, int], None]


def sample_block(job: Job, model: Any, member: dict, block: int, frames: FrameCache) -> list[dict]:
    """Answers of one member to one block: rows of :func:`~dataset_builder.answers.response_row`."""
    from dataset_builder.models import ChatReply, Decoding

    decoding = Decoding(**member["decoding"])
    slots = [
        (q, i, frames.get(q, decoding.num_frames, decoding.fps))
        for q in job.block(block)
        for i in range(member["samples"])
    ]
    good = [(q, clip) for q, _, clip in slots if not isinstance(clip, KitError)]
    requests = [chat_request(member, q, clip) for q, clip in good]
    seed = block_seed(job.seed, member["name"], block)
    size = batch_size([clip for _, clip in good])
    replies = iter(model.generate(requests, decoding, seed, batch_size=size) if requests else [])
    rows = []
    for question, index, clip in slots:
        failed = isinstance(clip, KitError)
        reply = ChatReply("", "stop", 0, 0, error=str(clip)) if failed else next(replies)
        seen = None if failed else clip
        rows.append(response_row(question, index, reply, model, member, job.seed, block, seen))
    return rows


def chat_request(member: dict, question: dict, clip: Any) -> Any:
    """A member's prompt template around one question."""
    from dataset_builder.models import ChatRequest

    # Not str.format: the rest of the template may hold braces.
    text = member["prompt"].replace("{question}", question["question"])
    return ChatRequest(question=text, frames=clip, system=member["system"])


def judge_item(question: dict, response: dict, clip: Any) -> Any:
    """One answer as a judge takes it."""
    from dataset_builder.judges import JudgeItem

    return JudgeItem(
        question=question["question"], answers=question["answers"], frames=clip, response=response["response"]
    )


def judge_block(job: Job, judge: Any, block: int, responses: list[dict], frames: FrameCache) -> list[dict]:
    """Scores of one judge for the answers of a block: ``{response_id, scores}`` in the order of the answers."""
    from dataset_builder.judges import error_scores

    questions = {q["question_id"]: q for q in job.block(block)}
    scores: dict[tuple[str, str], list] = {}
    items, keys = [], []
    for key, row in unique_answers(responses).items():
        question = questions[row["question_id"]]
        clip = frames.get(question, judge.num_frames) if judge.needs_frames else None
        if isinstance(clip, KitError):
            scores[key] = error_scores(judge, str(clip))
            continue
        keys.append(key)
        items.append(judge_item(question, row, clip))
    size = batch_size([item.frames for item in items])
    for start in range(0, len(items), size):
        scores.update(zip(keys[start : start + size], judge.score(items[start : start + size]), strict=True))
    return score_rows(responses, scores)


@contextlib.contextmanager
def model_room(threads: int) -> Iterator[None]:
    """Set torch's CPU threads for a while, without the bars and warnings that transformers writes into our bars.

    The order of sums, and so now and then an answer, depends on the number of threads. The warnings are about what a
    checkpoint's ``generation_config.json`` sets and a build overrides; what is wrong with a checkpoint is an error.
    """
    import torch
    from transformers.utils import logging

    before, bars, verbosity = torch.get_num_threads(), logging.is_progress_bar_enabled(), logging.get_verbosity()
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def run_local(job: Job, stage: str, report: Report) -> None:
    """Make the missing shards of a stage that local models make, in the job's blocks.

    Args:
        job: what to do.
        stage: ``sampling`` or ``judging``.
        report: called as ``report(stage, answers)`` after each block that was made.

    Raises:
        KitError: a model cannot be loaded, or changed under our hands.
    """
    store, frames = ShardStore(Path(job.work)), FrameCache()
    if stage == "sampling":
        for member in (m for m in job.members if not is_remote(m)):
            _sample(job, store, member, frames, report)
    else:
        for judge in (j for j in job.judges if not is_remote(j)):
            _judge(job, store, judge, frames, report)


def _sample(job: Job, store: ShardStore, member: dict, frames: FrameCache, report: Report) -> None:
    stage, model = job.stage("sampling"), None
    for block in job.blocks:
        key = sampling_key(job, member, block)
        if store.has(stage, member["name"], block, key):
            continue
        with model_room(job.threads):
            model = model or open_member(member, job.device)
            rows = sample_block(job, model, member, block, frames)
        store.write(stage, member["name"], block, key, rows)
        report("sampling", len(rows))


def _judge(job: Job, store: ShardStore, spec: dict, frames: FrameCache, report: Report) -> None:
    stage, judge = job.stage("judging"), None
    for block in job.blocks:
        responses = need_responses(job, store, block)
        key = judging_key(job, spec, block, responses)
        if store.has(stage, spec["name"], block, key):
            continue
        with model_room(job.threads):
            judge = judge or open_judge(spec, job)
            rows = judge_block(job, judge, block, responses, frames)
        store.write(stage, spec["name"], block, key, rows)
        report("judging", len(rows))


def open_member(member: dict, device: str) -> Any:
    """Load a zoo member and make sure that it is the checkpoint the build was planned with."""
    from dataset_builder.models import open_model

    model = open_model(member_settings(member), None, device=device)
    if model.revision != member["identity"]["revision"]:
        raise KitError(f"{member['model']}: the checkpoint changed while the build ran; run the same command again")
    return model


def open_judge(judge: dict, job: Job, cache: Any = None) -> Any:
    """Make a judge from its spec, and note in the work folder what its settings hash stands for."""
    from dataset_builder.judges import make_judge

    made = make_judge(judge["spec"], device=job.device, cache=cache)
    write_json(settings_file(Path(job.work), made.settings_hash), made.settings)
    return made
