"""Everything that LightEval 0.13 needs to be told otherwise, in one place. Nothing else in the kit patches it.

What it does by itself, and what :func:`install` makes of it:

* It imports all its built-in tasks first, one of which fetches from the network: only the custom task file is loaded.
* Its task listing shows names with a suite prefix only: every loaded task is listed.
* It decodes videos through torchcodec: videos stay undecoded, the kit's own sampler reads them.
* Its prediction cache keys on configuration and row number, and lies inside the checkpoint if that is given by an
  absolute path: it keys on the content of weights and dataset, and always lies in the cache folder.
* Its vision model returns a text where a list of texts is expected, and an empty answer then shifts all later ones.
* Model hashes are asked of the Hub even for folders: they are computed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from lighteval.models.model_output import ModelResponse
from lighteval.models.transformers import vlm_transformers_model as vlm
from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
from lighteval.tasks.registry import Registry
from lighteval.tasks.requests import Doc, SamplingMethod
from lighteval.utils.cache_management import SampleCache

from dataset_builder.errors import KitError
from dataset_builder.media import Frames
from dataset_builder.models import checkpoint_revision
from eval.results import benchmark_fingerprint
from eval.runner import FramesCache, MediaIndex, frames_of, load_rows, shared, video_source
from eval.settings import load_settings

logger = logging.getLogger(__name__)

TASK_FILE = Path(__file__).with_name("tasks.py")
ERROR_MARK = "error: "  # LightEval's response has no field for an error; its reasoning field carries it


@dataclass
class _Run:
    """What one LightEval process learns about its inputs and has no place for elsewhere."""

    model_revision: str = ""
    fingerprints: dict[str, str] = field(default_factory=dict)  # task name → content of its rows and videos
    frames: FramesCache = field(default_factory=FramesCache)
    media: MediaIndex | None = None
    video: str | bytes | None = None  # of the document made last


RUN = _Run()


@dataclass
class VideoTaskConfig(LightevalTaskConfig):
    """A task on the ``benchmark`` config of a dataset of this kit: ``hf_repo`` is a folder or a Hub id."""


class VideoFrames(list):
    """A document's frames as PIL images, decoded when they are first looked at.

    LightEval builds all documents before it answers the first one; holding every frame of a benchmark would not fit.
    """

    def __init__(self, images: Sequence = (), video: str | bytes | None = None, num_frames: int = 8):
        super().__init__(images)
        self.video, self.num_frames = video, num_frames

    def frames(self, num_frames: int | None = None) -> Frames:
        """The sampled frames with their time stamps, for models and judges that take video natively.

        Raises:
            KitError: if the video is missing or cannot be decoded.
        """
        return frames_of(self.video, num_frames or self.num_frames, RUN.frames)

    def load(self) -> None:
        """Fill the list with PIL images."""
        if not list.__len__(self) and self.video is not None:
            from PIL import Image

            self.extend(Image.fromarray(frame) for frame in self.frames().array)

    def release(self) -> None:
        """Forget the images; they are decoded again when needed."""
        if self.video is not None:
            self.clear()

    def __iter__(self):
        self.load()
        return super().__iter__()

    def __len__(self) -> int:
        self.load()
        return super().__len__()

    def __getitem__(self, index):
        self.load()
        return super().__getitem__(index)


def video_doc(row: dict, task_name: str) -> Doc:
    """The prompt function of every task here: the question, its references, and the frames as images.

    Args:
        row: a row of the ``benchmark`` config, its video undecoded.
        task_name: set by LightEval.
    """
    settings = load_settings()
    if settings.media and RUN.media is None:
        RUN.media = MediaIndex(settings.media)
    answers = list(row["answers"] or ())
    RUN.video = shared(video_source(row["video"], row["video_id"], RUN.media), RUN.video)
    return Doc(
        task_name=task_name,
        query=row["question"],
        choices=answers,
        gold_index=list(range(len(answers))),
        images=VideoFrames(video=RUN.video, num_frames=settings.num_frames),
        specific={key: row[key] or "" for key in ("question_id", "video_id", "question_type")},
    )


def doc_frames(doc: Doc, num_frames: int) -> Frames | None:
    """A document's frames for a model that takes video: the kit's own, or any other task's images at one per second."""
    if isinstance(doc.images, VideoFrames):
        return doc.images.frames(num_frames)
    if not doc.images:
        return None
    import numpy as np

    array = np.stack([np.asarray(image.convert("RGB")) for image in doc.images])  # [T, H, W, 3]
    count = len(array)
    return Frames(array, [float(t) for t in range(count)], 1.0, list(range(count)), count, float(count))


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
        self.settings = settings or {"num_frames": load_settings().num_frames}
        RUN.model_revision = self.revision
        # Path("~/.cache") / "/abs/checkpoint" would be the checkpoint itself
        safe = Path(config.model_name).name or "model"
        super().__init__(config.model_copy(update={"model_name": safe}))

    def get_model_hash(self, model_config) -> str:
        """Hash of configuration, weights and settings."""
        key = [model_config.model_dump(exclude={"cache_dir"}), self.revision, self.settings]
        return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _get_task_hash(self, full_task_name: str) -> str:
        task = super()._get_task_hash(full_task_name)
        content = RUN.fingerprints.get(full_task_name.split("|")[0], "")
        return hashlib.sha256(f"{task} {content}".encode()).hexdigest()[:16]


def answer_through_cache(
    cache: PredictionCache, docs: Sequence[Doc], answer: Callable[[list[Doc]], list[ModelResponse]]
) -> list[ModelResponse]:
    """Answer the documents that the cache does not know, store what succeeded, and return all in order.

    LightEval's own decorator drops empty answers from the middle of the list and would store failures for good.
    """
    kind = SamplingMethod.GENERATIVE
    todo, _ = cache.get_samples_to_process_and_cache(list(docs), kind)
    pending = {id(doc) for doc in todo}
    known = [doc for doc in docs if id(doc) not in pending]
    if known:
        logger.info("%d of %d answers come from the prediction cache", len(known), len(docs))
    ids = {cache.get_task_id(doc.task_name, kind) for doc in docs}
    found = dict(zip(map(id, known), cache.get_samples_from_cache(known, ids, kind) if known else []))
    fresh = dict(zip(map(id, todo), answer(todo) if todo else []))
    good = [doc for doc in todo if response_error(fresh[id(doc)]) is None]
    cache.cache_samples(good, [fresh[id(doc)] for doc in good], list(ids), kind)
    return [found.get(id(doc)) or fresh[id(doc)] for doc in docs]


def model_revision(name: str, revision: str | None = None) -> str:
    """Content hash of a checkpoint folder, or the commit of a Hub id (the local copy's, when there is no network)."""
    require_checkpoint(name)
    if Path(name).is_dir():
        return checkpoint_revision(name)
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        return HfApi().model_info(name, revision=revision).sha
    except Exception:  # offline: the snapshot that from_pretrained will take lies in a folder named by its commit
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(cached).parent.name if isinstance(cached, str) else revision or "main"


def require_checkpoint(name: str) -> None:
    """Refuse a name that is neither a folder nor can be a Hub id, before anybody asks the Hub about it.

    Raises:
        KitError: for a path where nothing is.
    """
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise KitError(f"{name}: there is no checkpoint folder here")


def install() -> None:
    """Make LightEval behave as the module's docstring says; calling it again changes nothing."""
    Registry.load_all_task_configs = staticmethod(_load_task_configs)
    Registry.print_all_tasks = _print_tasks
    if not _ORIGINALS:
        _ORIGINALS.update(
            dataset=LightevalTask.download_dataset_worker,
            configs=Registry._update_task_configs,
            load=vlm.VLMTransformersModel._create_auto_model,
            answer=vlm.VLMTransformersModel._greedy_until,
            collate=vlm.BatchCollator.__call__,
        )
    LightevalTask.download_dataset_worker = staticmethod(_load_task_dataset)
    Registry._update_task_configs = _update_task_configs
    vlm.SampleCache = PredictionCache
    vlm._get_model_sha = model_revision_of_repo
    vlm.BatchCollator.__call__ = _collate
    vlm.VLMTransformersModel._create_auto_model = _create_auto_model
    vlm.VLMTransformersModel._greedy_until = _greedy_until
    vlm.VLMTransformersModel.greedy_until = _cached_greedy_until
    # LightEval reads its prediction cache as a "parquet" dataset, which datasets reports to a counter on the network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False


_ORIGINALS: dict[str, Callable] = {}


def model_revision_of_repo(repo_id: str, revision: str) -> str:
    """Stands in for LightEval's look-up of a model's commit."""
    return model_revision(repo_id, revision)


def _load_task_configs(custom_tasks=None, load_multilingual: bool = False) -> dict[str, LightevalTaskConfig]:
    source = custom_tasks or TASK_FILE
    if isinstance(source, str) and source.endswith(".py") and not Path(source).is_file():
        raise KitError(f"{source}: no such task file")
    return Registry._extract_configs(Registry.create_custom_tasks_module(source))


def _print_tasks(self: Registry, suites: str | None = None) -> None:
    for name, config in sorted(self._task_registry.items()):
        print(f"{name}\t{config.hf_repo} [{config.hf_subset}: {', '.join(config.evaluation_splits)}]")


def _update_task_configs(self: Registry) -> dict:
    try:
        return _ORIGINALS["configs"](self)
    except ValueError as error:
        raise KitError(f"{error}; tasks here: {', '.join(sorted(self._task_registry))}") from None


def _load_task_dataset(task: LightevalTask) -> datasets.DatasetDict:
    if not isinstance(task.config, VideoTaskConfig):
        return _ORIGINALS["dataset"](task)
    splits = {split: load_rows(task.dataset_path, split) for split in task.config.evaluation_splits}
    RUN.fingerprints[task.name] = _content_fingerprint(splits.values())
    return datasets.DatasetDict(splits)


def _content_fingerprint(splits) -> str:
    """Hash over questions, references and videos: rows are cached by number, so their content has to be in the key."""
    digest = hashlib.sha256()
    for rows in splits:
        keys = ("question_id", "video_id", "question", "answers")
        columns = [rows[key] for key in keys]
        # The order counts here, unlike in a benchmark's fingerprint: LightEval numbers the rows.
        digest.update(json.dumps(list(columns[0])).encode())
        digest.update(benchmark_fingerprint(zip(*columns)).encode())
        for video in rows["video"]:
            content = (video or {}).get("bytes")
            digest.update(hashlib.sha256(content).digest() if content else str((video or {}).get("path")).encode())
    return digest.hexdigest()[:16]


def _create_auto_model(self):
    try:
        return _ORIGINALS["load"](self)
    except (OSError, ValueError) as error:
        raise KitError(f"{self.config.model_name}: cannot be loaded: {str(error).splitlines()[0]}") from error


def _collate(self, requests: list[Doc]):
    try:
        return _ORIGINALS["collate"](self, requests)
    finally:
        for doc in requests:
            if isinstance(doc.images, VideoFrames):
                doc.images.release()


def _greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
    """LightEval's vision model over the documents whose video can be read; texts and tokens come as lists."""
    errors: dict[int, str] = {}
    for doc in docs:
        try:
            if isinstance(doc.images, VideoFrames):
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
