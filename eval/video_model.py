"""A checkpoint that sees the video natively, for LightEval's ``custom`` command.

    python -m eval custom NAME eval/video_model.py mmaip_v --custom-tasks eval/tasks.py

NAME is a checkpoint folder, or a Hub id with an optional revision (``NAMESPACE/NAME@v1``). LightEval's command takes no
model arguments: frames (or none), tokens, batch, device and dtype come from the YAML named by ``MMAIP_V_EVAL``.
"""

from dataclasses import asdict
from pathlib import Path

from lighteval.models import abstract_model
from lighteval.models.custom.custom_model import CustomModelConfig

from dataset_builder.errors import KitError
from dataset_builder.models import ChatRequest, load_model
from eval.lighteval_adapter import PredictionCache, answer_through_cache, doc_frames, response
from eval.runner import greedy
from eval.settings import load_settings

SEED = 0  # greedy answers do not depend on it


class VideoModelConfig(CustomModelConfig):
    """LightEval's configuration plus what decides an answer, so that saved results name it."""

    model_revision: str
    decoding: dict


class VideoModel(abstract_model.LightevalModel):
    """LightEval takes the alphabetically first ``LightevalModel`` in this module: there must be no other.

    Args:
        config: with ``model_name`` as typed after ``custom``.

    Raises:
        KitError: if there is no such checkpoint.
    """

    def __init__(self, config: CustomModelConfig):
        self.settings = load_settings()
        name, revision = split_revision(config.model_name)
        self.chat = load_model(name, revision, device=self.settings.device, dtype=self.settings.dtype)
        self.decoding = greedy(self.settings.max_new_tokens, self.settings.num_frames)
        settings = {
            **asdict(self.decoding),
            "seed": SEED,
            "template_hash": self.chat.template_hash,
            "dtype": self.settings.dtype,
            "blind": self.settings.blind,
            "shown_as": "video",
        }
        self.config = VideoModelConfig(**config.model_dump(), model_revision=self.chat.revision, decoding=settings)
        self._cache = PredictionCache(self.config, self.chat.revision, settings)

    def greedy_until(self, docs: list) -> list:
        """One answer per document; an unreadable video gives a response that says so."""
        return answer_through_cache(self._cache, docs, self._answer)

    def _answer(self, docs: list) -> list:
        replies: list = []
        for start in range(0, len(docs), self.settings.batch_size):
            replies += self._answer_batch(docs[start : start + self.settings.batch_size])
        return replies

    def _answer_batch(self, docs: list) -> list:
        replies: list = [None] * len(docs)
        requests, places = [], []
        for place, doc in enumerate(docs):
            try:
                frames = doc_frames(doc, self.decoding.num_frames)
            except KitError as error:
                replies[place] = response(None, str(error))
                continue
            requests.append(ChatRequest(question=doc.query, frames=frames))
            places.append(place)
        size = self.settings.batch_size
        answers = self.chat.generate(requests, self.decoding, seed=SEED, batch_size=size) if requests else []
        for place, answer in zip(places, answers, strict=True):
            replies[place] = response(answer.text, answer.error)
        return replies

    def loglikelihood(self, docs: list) -> list:
        """Not offered: the tasks here are generative."""
        raise KitError("eval/video_model.py answers questions; it gives no log-likelihoods")

    loglikelihood_rolling = loglikelihood

    @property
    def tokenizer(self):
        """The processor's tokenizer."""
        return self.chat.processor.tokenizer

    @property
    def add_special_tokens(self) -> bool:
        """The chat template writes them."""
        return False

    @property
    def max_length(self) -> int:
        """Positions of the text model."""
        return getattr(self.chat.model.config.get_text_config(), "max_position_embeddings", 32768)


def split_revision(name: str) -> tuple[str, str | None]:
    """``NAMESPACE/NAME@v1`` → (``NAMESPACE/NAME``, ``v1``); an existing folder is taken as it is."""
    if Path(name).is_dir() or "@" not in name:
        return name, None
    repo, revision = name.rsplit("@", 1)
    return repo, revision
