"""Sampling and judging through endpoints: many calls in flight, from as many blocks as it takes to keep them so.

Every reply is in the call cache as soon as it arrives, so a block that was stopped half-way costs nothing twice. When
something stops the build (a spend limit, a wrong key, Ctrl-C) no new call is made, and those on the wire, which are
paid for, are waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dataset_builder.answers import response_row
from dataset_builder.errors import KitError
from dataset_builder.stages.clips import FrameCache
from dataset_builder.stages.job import (
    Job,
    call_seed,
    is_remote,
    judging_key,
    member_settings,
    need_responses,
    sampling_key,
    score_rows,
    unique_answers,
)
from dataset_builder.stages.local import Report, chat_request, judge_item, open_judge
from dataset_builder.stages.store import ShardStore


class Remote:
    """Runs the endpoints' part of some stages in a thread of its own, beside local models.

    Args:
        job: what to do.
        stage: ``sampling`` or ``judging``.
        report: called as ``report(stage, answers)`` after each block that was made.
        cache: the call cache.
    """

    def __init__(self, job: Job, stage: str, report: Report, cache: Any):
        self.job, self.stage, self.report, self.cache = job, stage, report, cache
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"remote-{stage}", daemon=True)

    def __enter__(self) -> Remote:
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            self.stop.set()
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self.stop.set()
            self._thread.join()
            raise
        if error is None and self.error is not None:
            raise self.error

    def check(self) -> None:
        """Raise what ended the thread, so that local work does not go on for hours beside a wrong key."""
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            asyncio.run(_run_stage(self.job, self.stage, self.report, self.cache, self.stop))
        except BaseException as error:  # handed to the thread that waits
            self.error = error


@contextlib.contextmanager
def remote_beside(job: Job, stage: str, report: Report, cache: Any) -> Iterator[Report]:
    """Run a stage's endpoints beside what the caller does meanwhile.

    Yields:
        The report for the caller's own work; it raises what ended the endpoints' part.
    """
    if not any_remote(job, stage):
        yield report
        return
    with Remote(job, stage, report, cache) as remote:

        def said(stage: str, count: int) -> None:
            report(stage, count)
            remote.check()

        yield said


def any_remote(job: Job, stage: str) -> bool:
    """Whether a stage asks an endpoint at all."""
    return any(is_remote(entry) for entry in (job.members if stage == "sampling" else job.judges))


async def _run_stage(job: Job, stage: str, report: Report, cache: Any, stop: threading.Event) -> None:
    store, frames = ShardStore(Path(job.work)), FrameCache()
    if stage == "sampling":
        work = [_sample(job, store, m, frames, report, cache, stop) for m in job.members if is_remote(m)]
    else:
        work = [_judge(job, store, j, frames, report, cache, stop) for j in job.judges if is_remote(j)]
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def limited(entry: dict, share: float) -> dict:
    """A member's or judge's settings with its endpoint's limits cut down to this worker's share."""
    endpoint = dict(entry["endpoint"])
    endpoint["concurrency"] = max(1, int(endpoint["concurrency"] * share))
    for key in ("requests_per_minute", "spend_limit"):
        if endpoint[key] is not None:
            endpoint[key] *= share
    return {**entry, "endpoint": endpoint}


async def _sample(job: Job, store: ShardStore, member: dict, frames: FrameCache, report: Report, cache, stop) -> None:
    from dataset_builder.models import ChatReply, Decoding, open_model

    settings = member_settings(limited(member, job.share))
    model, decoding, stage = open_model(settings, cache), Decoding(**member["decoding"]), job.stage("sampling")

    def items(block: int) -> tuple[str, list] | None:
        questions = job.block(block)
        key = sampling_key(job, member, block, questions)
        if store.has(stage, member["name"], block, key):
            return None
        return key, [(block, question, index) for question in questions for index in range(member["samples"])]

    async def one(item: tuple) -> dict:
        block, question, index = item
        clip = await asyncio.to_thread(frames.get, question, decoding.num_frames, decoding.fps)
        if isinstance(clip, KitError):
            clip, reply = None, ChatReply("", "stop", 0, 0, error=str(clip))
        else:
            seed = call_seed(job.seed, member["name"], question["question_id"], index)
            reply = await model.areply(chat_request(member, question, clip), decoding, seed)
        return response_row(question, index, reply, model, member, job.seed, block, clip)

    def finish(block: int, key: str, rows: list[dict]) -> None:
        store.write(stage, member["name"], block, key, rows)
        report("sampling", len(rows))

    try:
        await run_blocks(job.blocks, items, one, finish, settings.endpoint.concurrency, stop)
    finally:
        await model.aclose()


async def _judge(job: Job, store: ShardStore, spec: dict, frames: FrameCache, report: Report, cache, stop) -> None:
    from dataset_builder.judges import error_scores

    limits = limited(spec["spec"], job.share)
    judge, stage = open_judge({**spec, "spec": limits}, job, cache), job.stage("judging")
    answers: dict[int, list[dict]] = {}  # of the blocks under way

    def items(block: int) -> tuple[str, list] | None:
        questions, responses = job.block(block), need_responses(job, store, block)
        key = judging_key(job, spec, block, responses, questions)
        if store.has(stage, spec["name"], block, key):
            return None
        answers[block] = responses
        asked = {question["question_id"]: question for question in questions}
        return key, [(asked[row["question_id"]], row) for row in unique_answers(responses).values()]

    async def one(item: tuple) -> tuple:
        question, row = item
        clip = await asyncio.to_thread(frames.get, question, judge.num_frames) if judge.needs_frames else None
        scores = (
            error_scores(judge, str(clip))
            if isinstance(clip, KitError)
            else await judge.ascore(judge_item(question, row, clip))
        )
        return (row["question_id"], row["response"]), scores

    def finish(block: int, key: str, results: list[tuple]) -> None:
        responses = answers.pop(block)
        store.write(stage, spec["name"], block, key, score_rows(responses, dict(results)))
        report("judging", len(responses))

    try:
        await run_blocks(job.blocks, items, one, finish, limits["endpoint"]["concurrency"], stop)
    finally:
        await judge.model.aclose()


async def run_blocks(
    blocks: Iterable[int],
    items: Callable[[int], tuple[str, list] | None],
    one: Callable[[Any], Awaitable[Any]],
    finish: Callable[[int, str, list], None],
    concurrency: int,
    stop: threading.Event,
) -> None:
    """Work through blocks of calls with a sliding window that does not wait for the slowest call of a block.

    Args:
        blocks: in their order.
        items: a block's key and its calls, or None when it is finished already; runs in a thread.
        one: makes one call.
        finish: stores a block's results, in the order of its calls; runs in a thread.
        concurrency: calls on the wire at once; a few more are prepared (their frames decoded) meanwhile.
        stop: no new call is made once this is set; it is set here by the first exception.

    Raises:
        BaseException: the first that a call or a block raised, after the calls on the wire have ended.
    """
    ready = concurrency + max(2, concurrency // 4)
    gate, room = asyncio.Semaphore(ready), asyncio.Condition()
    pending, failures, running = 0, [], set()

    async def call(item: Any) -> Any:
        nonlocal pending
        try:
            async with gate:
                if stop.is_set():
                    return None
                return await one(item)
        except BaseException as error:
            failures.append(error)
            stop.set()
        finally:
            pending -= 1
            async with room:
                room.notify()

    def has_room() -> bool:
        return pending < 2 * ready or stop.is_set()

    async def whole(block: int, key: str, calls: list) -> None:
        results = await asyncio.gather(*map(call, calls))
        if not stop.is_set() or not any(result is None for result in results):
            try:
                await asyncio.to_thread(finish, block, key, results)
            except BaseException as error:
                failures.append(error)
                stop.set()

    try:
        for block in blocks:
            if stop.is_set():
                break
            found = await asyncio.to_thread(items, block)
            if found is None:
                continue
            pending += len(found[1])
            task = asyncio.ensure_future(whole(block, *found))
            running.add(task)
            task.add_done_callback(running.discard)
            async with room:
                await room.wait_for(has_room)
    except BaseException as error:
        failures.append(error)
        stop.set()
    await asyncio.gather(*running)
    if failures:
        raise failures[0]
