"""The stages that cost time, sampling and judging, over a share of the blocks.

The same :func:`run_job` runs inside the caller's process (one worker) or as ``python -m dataset_builder.worker
JOB.json`` (several workers, each with its own share of the *blocks*). Sharing out blocks rather than members means
that the clips of a block are decoded by one worker only, and that judging a block needs nobody else's answers.
Whoever runs a block, its requests go through the model as one call seeded by (seed, member, block), so neither a stop
nor the number of workers changes an answer.

A worker prints one JSON line per finished block on stdout and ends when its stdin closes, that is, when its parent
dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.answers import response_row
from dataset_builder.errors import KitError
from dataset_builder.stages import SHARD_SCHEMA, ShardStore, fingerprint, write_json

FRAME_CACHE_BYTES = 1 << 30
BATCH = 64  # most requests that go through a model at once
BATCH_BYTES = 256 << 20  # of frames; large clips go in smaller batches


@dataclass
class Job:
    """What one worker needs to know; plain values only, so that it travels as JSON.

    Attributes:
        work: the work folder.
        seed: the build's seed.
        prefix: put before the stage names; a control run has its own shards.
        members: ``{name, model, revision, samples, decoding, identity}``; identity is the resolved revision.
        judges: ``{spec, name, identity}``; identity stands for everything that determines the judge's scores.
        questions: ``{question_id, question, answers, video_sha256, video_path}``, all of them, in block order.
        block_size: questions per block.
        blocks: the blocks of this worker.
        device: where models run.
        threads: CPU threads of this worker.
    """

    work: str
    seed: int
    members: list[dict]
    judges: list[dict]
    questions: list[dict]
    block_size: int
    blocks: list[int] = field(default_factory=list)
    prefix: str = ""
    device: str = "auto"
    threads: int = 1

    def block(self, index: int) -> list[dict]:
        """The questions of one block."""
        return self.questions[index * self.block_size : (index + 1) * self.block_size]

    @property
    def block_count(self) -> int:
        return -(-len(self.questions) // self.block_size)


def block_seed(seed: int, member: str, block: int) -> int:
    """The seed of one block of one member: 31 bits of a hash, so that neighbours are unrelated."""
    digest = hashlib.sha256(f"{seed}\0{member}\0{block}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def sampling_key(job: Job, member: dict, block: int) -> str:
    """Fingerprint of everything that determines a member's answers to a block."""
    return fingerprint(
        {
            "schema": SHARD_SCHEMA,
            "seed": job.seed,
            "block": block,
            "member": {key: member[key] for key in ("name", "identity", "samples", "decoding")},
            "threads": job.threads,
            "questions": [[q["question_id"], q["question"], q["video_sha256"]] for q in job.block(block)],
        }
    )


def judging_key(job: Job, judge: dict, block: int, responses: list[dict]) -> str:
    """Fingerprint of everything that determines a judge's scores of a block's answers."""
    return fingerprint(
        {
            "schema": SHARD_SCHEMA,
            "block": block,
            "judge": judge["identity"],
            "threads": job.threads,
            "questions": [[q["question_id"], q["question"], q["answers"], q["video_sha256"]] for q in job.block(block)],
            "responses": [[r["response_id"], r["response"]] for r in responses],
        }
    )


def read_responses(job: Job, store: ShardStore, block: int) -> list[dict] | None:
    """Answers of all members to one block, member after member; None while one is missing."""
    rows: list[dict] = []
    for member in job.members:
        part = store.read(f"{job.prefix}sampling", member["name"], block, sampling_key(job, member, block))
        if part is None:
            return None
        rows += part
    return rows


def read_scores(job: Job, store: ShardStore, judge: dict, block: int, responses: list[dict]) -> list[dict] | None:
    """One judge's rows ``{response_id, scores}`` for the answers of a block; None when they have to be made."""
    return store.read(f"{job.prefix}judging", judge["name"], block, judging_key(job, judge, block, responses))


class FrameCache:
    """Frames of clips, decoded once and shared by all questions on the clip; the least recently used go first.

    Args:
        limit: most bytes of pixels to keep.
    """

    def __init__(self, limit: int = FRAME_CACHE_BYTES):
        self.limit, self.size = limit, 0
        self._items: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def get(self, question: dict, num_frames: int) -> Any:
        """Frames of the question's clip, or the :class:`KitError` that decoding it ended in."""
        from dataset_builder.media import sample_frames

        key = (question["video_sha256"], num_frames)
        if key in self._items:
            self._items.move_to_end(key)
            return self._items[key]
        try:
            value = sample_frames(question["video_path"], num_frames)
            self.size += value.array.nbytes
        except KitError as error:
            value = error
        self._items[key] = value
        while self.size > self.limit and len(self._items) > 1:
            _, old = self._items.popitem(last=False)
            self.size -= 0 if isinstance(old, KitError) else old.array.nbytes
        return value


def batch_size(clips: list[Any]) -> int:
    """How many requests with such clips go through a model at once; it depends on the clips alone."""
    largest = max((clip.array.nbytes for clip in clips if clip is not None), default=0)
    return max(1, min(BATCH, BATCH_BYTES // max(1, largest)))


def sample_block(job: Job, model: Any, member: dict, block: int, frames: FrameCache) -> list[dict]:
    """Answers of one member to one block: rows of :func:`~dataset_builder.answers.response_row`."""
    from dataset_builder.models import ChatReply, ChatRequest, Decoding

    decoding = Decoding(**member["decoding"])
    slots = [(q, i, frames.get(q, decoding.num_frames)) for q in job.block(block) for i in range(member["samples"])]
    good = [(q, clip) for q, _, clip in slots if not isinstance(clip, KitError)]
    requests = [ChatRequest(question=q["question"], frames=clip) for q, clip in good]
    seed = block_seed(job.seed, member["name"], block)
    size = batch_size([clip for _, clip in good])
    replies = iter(model.generate(requests, decoding, seed, batch_size=size) if requests else [])
    rows = []
    for question, index, clip in slots:
        failed = isinstance(clip, KitError)
        reply = ChatReply("", "stop", 0, 0, error=str(clip)) if failed else next(replies)
        rows.append(response_row(question, index, reply, model, member, job.seed, block))
    return rows


def judge_block(job: Job, judge: Any, block: int, responses: list[dict], frames: FrameCache) -> list[dict]:
    """Scores of one judge for the answers of a block: ``{response_id, scores}`` in the order of the answers.

    Equal answers to the same question are judged once: on short answers that halves the work.
    """
    from dataset_builder.judges import JudgeItem, error_scores

    questions = {q["question_id"]: q for q in job.block(block)}
    order: dict[tuple[str, str], list] = {}
    items, keys = [], []
    for row in responses:
        key = (row["question_id"], row["response"])
        if key in order:
            continue
        question = questions[row["question_id"]]
        clip = frames.get(question, judge.num_frames) if judge.needs_frames else None
        if isinstance(clip, KitError):
            order[key] = error_scores(judge, str(clip))
            continue
        order[key] = []
        keys.append(key)
        items.append(
            JudgeItem(question=question["question"], answers=question["answers"], frames=clip, response=row["response"])
        )
    size = batch_size([item.frames for item in items])
    for start in range(0, len(items), size):
        scores = judge.score(items[start : start + size])
        order.update(zip(keys[start : start + size], scores, strict=True))
    return [
        {"response_id": r["response_id"], "scores": [asdict(s) for s in order[r["question_id"], r["response"]]]}
        for r in responses
    ]


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


def run_job(job: Job, report: Callable[[str, int], None]) -> None:
    """Make every missing shard of the job's blocks: first all members' answers, then all judges' scores.

    Args:
        job: what to do.
        report: called as ``report(stage, answers)`` after each block that was made.

    Raises:
        KitError: a model cannot be loaded, or changed under our hands.
    """
    store, frames = ShardStore(Path(job.work)), FrameCache()
    sampling, judging = f"{job.prefix}sampling", f"{job.prefix}judging"
    for member in job.members:
        keys = {block: sampling_key(job, member, block) for block in job.blocks}
        todo = [b for b, key in keys.items() if store.read(sampling, member["name"], b, key) is None]
        if not todo:
            continue
        with model_room(job.threads):
            model = open_member(member, job.device)
            for block in todo:
                rows = sample_block(job, model, member, block, frames)
                store.write(sampling, member["name"], block, keys[block], rows)
                report("sampling", len(rows))
            del model
    answers: dict[int, list[dict]] = {}
    for spec in job.judges:
        judge = None
        for block in job.blocks:
            if block not in answers:
                rows = read_responses(job, store, block)
                if rows is None:
                    raise KitError(f"answers of block {block} vanished from {job.work}: run the same command again")
                answers[block] = rows
            responses = answers[block]
            if read_scores(job, store, spec, block, responses) is not None:
                continue
            with model_room(job.threads):
                judge = judge or open_judge(spec, job)
                rows = judge_block(job, judge, block, responses, frames)
            key = judging_key(job, spec, block, responses)
            store.write(judging, spec["name"], block, key, rows)
            report("judging", len(rows))


def open_member(member: dict, device: str) -> Any:
    """Load a zoo member and make sure that it is the checkpoint the build was planned with."""
    from dataset_builder.models import load_model

    model = load_model(member["model"], revision=member.get("revision"), device=device, name=member["name"])
    if model.revision != member["identity"]["revision"]:
        raise KitError(f"{member['model']}: the checkpoint changed while the build ran; run the same command again")
    return model


def open_judge(judge: dict, job: Job) -> Any:
    """Make a judge from its spec, and note in the work folder what its settings hash stands for."""
    from dataset_builder.judges import make_judge

    made = make_judge(judge["spec"], device=job.device)
    write_json(settings_file(Path(job.work), made.settings_hash), made.settings)
    return made


def settings_file(work: Path, settings_hash: str) -> Path:
    """Where the work folder spells out a judge's settings."""
    return work / "judges" / f"{settings_hash}.json"


def main(argv: list[str]) -> int:
    """Entry of a worker process: ``JOB.json``; progress as JSON lines on stdout."""
    job = Job(**json.loads(Path(argv[0]).read_text()))

    def follow_parent() -> None:
        # Ends when the parent's end of the pipe closes, however it died. Not sys.stdin: its lock would be held at exit.
        while os.read(0, 1 << 10):
            pass
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()

    def say(**message: Any) -> None:
        print(json.dumps(message), flush=True)

    try:
        run_job(job, lambda stage, n: say(stage=stage, n=n))
    except KitError as error:
        say(error=str(error))
        return 2
    say(done=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
