"""LightEval's own vision model (frames as images), put right: what is loaded, shown, answered and recorded."""

from __future__ import annotations

from collections.abc import Callable

from lighteval.models.model_output import ModelResponse
from lighteval.models.transformers import vlm_transformers_model as vlm
from lighteval.tasks.requests import Doc

from dataset_builder.errors import KitError
from dataset_builder.models import model_revision
from eval.lighteval_adapter.documents import VideoFrames
from eval.lighteval_adapter.predictions import PredictionCache, answer_through_cache, response
from eval.settings import load_settings

_ORIGINALS: dict[str, Callable] = {}


class VisionModelConfig(vlm.VLMTransformersModelConfig):
    """LightEval's configuration plus what decides an answer, so that saved results name it."""

    model_revision: str
    decoding: dict


def patch_vision_model() -> None:
    """Replace what the module's docstring speaks of; calling it again changes nothing."""
    if not _ORIGINALS:
        _ORIGINALS.update(
            load=vlm.VLMTransformersModel._create_auto_model,
            answer=vlm.VLMTransformersModel._greedy_until,
            collate=vlm.BatchCollator.__call__,
        )
    vlm.SampleCache = PredictionCache
    vlm._get_model_sha = _model_revision_of_repo
    vlm.BatchCollator.__call__ = _collate
    vlm.VLMTransformersModel._create_auto_model = _create_auto_model
    vlm.VLMTransformersModel._greedy_until = _greedy_until
    vlm.VLMTransformersModel.greedy_until = _cached_greedy_until


def _model_revision_of_repo(repo_id: str, revision: str) -> str:
    """Stands in for LightEval's look-up of a model's commit."""
    return model_revision(repo_id, revision)


def _create_auto_model(self):
    try:
        model = _ORIGINALS["load"](self)
    except (OSError, ValueError) as error:
        raise KitError(f"{self.config.model_name}: cannot be loaded: {str(error).splitlines()[0]}") from error
    settings, sampling = load_settings(), self.config.generation_parameters
    decoding = {
        "temperature": sampling.temperature or 0.0,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "max_new_tokens": self.config.generation_size or settings.max_new_tokens,
        "num_frames": settings.num_frames,
        "blind": settings.blind,
        "shown_as": "images",
    }
    self.config = VisionModelConfig(**self.config.model_dump(), model_revision=self.model_sha, decoding=decoding)
    return model


def _collate(self, requests: list[Doc]):
    try:
        if any(len(doc.images) for doc in requests):
            return _ORIGINALS["collate"](self, requests)
        # A processor refuses empty lists of images; the prompt has no place for one either.
        texts = [self.prompt_manager.prepare_prompt_multimodal(doc) for doc in requests]
        return self.processor(text=texts, **self.kwargs), requests, texts
    finally:
        for doc in requests:
            if isinstance(doc.images, VideoFrames):
                doc.images.release()


def _greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
    """LightEval's vision model over the documents whose video can be read; texts and tokens come as lists."""
    errors: dict[int, str] = {}
    for doc in docs:
        try:
            if isinstance(doc.images, VideoFrames) and not doc.images.blind:
                doc.images.frames()
        except KitError as error:
            errors[id(doc)] = str(error)
    readable = [doc for doc in docs if id(doc) not in errors]
    answered = iter(_ORIGINALS["answer"](self, readable) if readable else [])
    return [response(None, errors[id(doc)]) if id(doc) in errors else _listed(next(answered)) for doc in docs]


def _cached_greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
    return answer_through_cache(self._cache, docs, self._greedy_until)


def _listed(reply: ModelResponse) -> ModelResponse:
    texts = [reply.text] if isinstance(reply.text, str) else list(reply.text)
    # Prompt and tokens are left out: with padding they depend on the batch, and the details would be mostly tokens.
    return ModelResponse(text=[text.strip() for text in texts])
