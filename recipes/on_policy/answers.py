"""Fresh answers from the model that is trained, in fixed blocks, so that one seed gives one set of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import torch

from dataset_builder.answers import response_row
from dataset_builder.errors import KitError
from dataset_builder.models import ChatRequest, Decoding, LocalChatModel
from dataset_builder.selection.pairs import EXCLUDING_FLAGS
from dataset_builder.stages.clips import batch_size
from dataset_builder.stages.job import block_seed
from recipes.on_policy.pool import Answer, Clips, Question

BLOCK = 64  # answers of one block: one call of the model, one seed


def sample_own(
    chat: Any,
    clips: Clips,
    questions: Sequence[Question],
    samples: int,
    decoding: Decoding,
    seed: int,
    log: Callable[[str], None] = print,
) -> dict[str, list[Answer]]:
    """Answers of one model to some questions.

    A block holds whole questions, those of one clip together; its answers are drawn by one call of the model, seeded by
    (seed, number of the block). How a block is cut into batches depends on its clips alone, as in a build. So the
    answers follow from the model, the questions, the settings and the seed.

    Args:
        chat: the model behind the chat interface (``generate``, ``name``, ``revision``, ``template_hash``).
        clips: where frames come from.
        questions: in any order, each once.
        samples: answers per question.
        decoding: how they are drawn.
        seed: of all blocks.
        log: gets one line when clips cannot be read.

    Returns:
        Answers by question id, with ids as a build would give them; none for a question whose clip cannot be decoded,
        and none where the model gave an error.
    """
    member = {"name": chat.name, "decoding": asdict(decoding)}
    policy = SharedPrompts(chat) if isinstance(chat, LocalChatModel) else chat
    own: dict[str, list[Answer]] = {question.question_id: [] for question in questions}
    unreadable: list[str] = []
    order = sorted(questions, key=lambda question: (question.video_id, question.question_id))
    for number, block in enumerate(blocks(order, max(1, BLOCK // samples))):
        slots = []
        for question in block:
            clip = clips.frames(question.video_id, decoding.num_frames)
            if isinstance(clip, KitError):
                unreadable.append(f"{question.video_id}: {clip}")
                continue
            slots += [(question, index, clip) for index in range(samples)]
        if not slots:
            continue
        requests = [ChatRequest(question=question.question, frames=clip) for question, _, clip in slots]
        size = batch_size([clip for *_, clip in slots])
        replies = policy.generate(requests, decoding, block_seed(seed, "on_policy", number), batch_size=size)
        for (question, index, clip), reply in zip(slots, replies, strict=True):
            if reply.error:
                continue
            key = question.question_id
            row = response_row({"question_id": key}, index, reply, chat, member, seed, number, clip)
            malformed = not EXCLUDING_FLAGS.isdisjoint(row["flags"])
            own[key].append(Answer(row["response_id"], chat.name, row["response"], malformed, True, {}, {}))
    if unreadable:
        log(f"note: clips of {len(unreadable)} questions cannot be read, the first: {unreadable[0]}")
    return own


class SharedPrompts(LocalChatModel):
    """A chat model that runs the processor once for equal requests and repeats what comes out: the same inputs, sooner.

    Args:
        chat: prepares the distinct requests, and may remember them.
    """

    def __init__(self, chat: LocalChatModel):
        self.__dict__.update(chat.__dict__)
        self._chat = chat

    def prepare(self, requests: list[ChatRequest], texts: list[str] | None = None) -> dict[str, Any]:
        """As in the base class; frames of one batch have one shape, so the inputs divide into equal shares."""
        if texts is not None:
            return self._chat.prepare(requests, texts)
        place: dict[tuple, int] = {}
        index = [place.setdefault((id(r.frames), r.question, r.system), len(place)) for r in requests]
        first = [index.index(number) for number in range(len(place))]
        batch = self._chat.prepare([requests[i] for i in first])
        return {key: _repeat(value, len(first), index) for key, value in batch.items()}


def _repeat(value: Any, count: int, index: list[int]) -> Any:
    """Rows of ``count`` equal shares along the first dimension, in the order of ``index``."""
    if not torch.is_tensor(value):
        return value
    shares = value.unflatten(0, (count, -1))  # [count, share, ...]
    return shares[torch.tensor(index, device=value.device)].flatten(0, 1)


def blocks(items: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` items in their order; the last may be shorter."""
    source = iter(items)
    while block := list(islice(source, size)):
        yield block
