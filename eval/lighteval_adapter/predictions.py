"""Answers as LightEval passes them on, and the cache that keeps them between runs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc, SamplingMethod
from lighteval.utils.cache_management import SampleCache

from dataset_builder.models import model_revision
from eval.lighteval_adapter.state import RUN
from eval.settings import load_settings

logger = logging.getLogger(__name__)

BLOCK = 256  # answers stored at once; a stopped run loses at most so many
ERROR_MARK = "error: "  # LightEval's response has no field for an error; its reasoning field carries it


def response(text: str | None, error: str | None = None) -> ModelResponse:
    """An answer, or the reason why there is none."""
    if error is None:
        return ModelResponse(text=[text or ""])
    return ModelResponse(text=[""], reasonings=[ERROR_MARK + error])


def response_error(reply: ModelResponse) -> str | None:
    """The reason given to :func:`response`, or None for an answer."""
    reason = reply.reasonings[0] if reply.reasonings else None
    return reason[len(ERROR_MARK) :] if reason and reason.startswith(ERROR_MARK) else None


class PredictionCache(SampleCache):
    """LightEval's prediction cache, keyed on what decides an answer.

    Args:
        config: the model's LightEval configuration.
        revision: content hash of the weights; looked up from ``config.model_name`` if not given.
        settings: anything else that decides answers, such as decoding; JSON values.
    """

    def __init__(self, config, revision: str | None = None, settings: dict | None = None):
        self.revision = revision or model_revision(config.model_name, getattr(config, "revision", None))
        run = load_settings()
        self.settings = settings or {"num_frames": run.num_frames, "blind": run.blind}
        RUN.model_revision = self.revision
        # Path("~/.cache") / "/abs/checkpoint" would be the checkpoint itself
        safe = Path(config.model_name).name or "model"
        super().__init__(config.model_copy(update={"model_name": safe}))

    def get_model_hash(self, model_config) -> str:
        """Hash of configuration, weights and settings."""
        key = [model_config.model_dump(exclude={"cache_dir"}), self.revision, self.settings]
        return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _get_task_hash(self, full_task_name: str) -> str:
        name = full_task_name.split("|")[0]
        content = RUN.fingerprints.get(name)
        if content is None or self.registry is None:
            return super()._get_task_hash(full_task_name)
        # Of the task's configuration, only what decides an answer: where its data lies and who judges does not.
        config = self.registry.task_to_configs[name][0]
        key = [full_task_name, config.version, config.generation_size, content]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def answer_through_cache(
    cache: PredictionCache, docs: Sequence[Doc], answer: Callable[[list[Doc]], list[ModelResponse]]
) -> list[ModelResponse]:
    """Answer the documents that the cache does not know, block by block, store what succeeded, and return all in order.

    LightEval's own decorator drops empty answers from the middle of the list, would store failures for good, and stores
    nothing before the last answer is there. Blocks are cut the same way in every run, so that a stopped run gives the
    answers of one that was not.
    """
    from tqdm.auto import tqdm

    replies, known = {}, 0
    with tqdm(total=len(docs), desc="answers", unit="answer") as bar:
        for places in _blocks(docs):
            block, found = _answer_block(cache, [docs[i] for i in places], answer)
            replies.update(zip(places, block, strict=True))
            known += found
            bar.update(len(places))
    if known:
        logger.info("%d of %d answers come from the prediction cache", known, len(docs))
    return [replies[i] for i in range(len(docs))]


def _blocks(docs: Sequence[Doc]) -> Iterator[list[int]]:
    """Places of the documents, task by task, questions of one video side by side: each video is decoded once, however
    small the frame cache is."""
    tasks: dict[str, list[int]] = {}
    for index, doc in enumerate(docs):
        tasks.setdefault(doc.task_name, []).append(index)
    for _, places in sorted(tasks.items()):
        ordered = sorted(places, key=lambda i: ((docs[i].specific or {}).get("video_id", ""), docs[i].id))
        for start in range(0, len(ordered), BLOCK):
            yield ordered[start : start + BLOCK]


def _answer_block(
    cache: PredictionCache, docs: list[Doc], answer: Callable[[list[Doc]], list[ModelResponse]]
) -> tuple[list[ModelResponse], int]:
    """Replies to documents of one task in order, and how many of them the cache knew."""
    kind = SamplingMethod.GENERATIVE
    todo, _ = cache.get_samples_to_process_and_cache(docs, kind)
    pending = {id(doc) for doc in todo}
    known = [doc for doc in docs if id(doc) not in pending]
    ids = {cache.get_task_id(doc.task_name, kind) for doc in docs}
    found = dict(zip(map(id, known), cache.get_samples_from_cache(known, ids, kind) if known else []))
    fresh = dict(zip(map(id, todo), answer(todo) if todo else []))
    good = [doc for doc in todo if response_error(fresh[id(doc)]) is None]
    cache.cache_samples(good, [fresh[id(doc)] for doc in good], list(ids), kind)
    return [found.get(id(doc)) or fresh[id(doc)] for doc in docs], len(known)
