"""A checkpoint that sees the video natively, for LightEval's ``custom`` command.

    python -m eval custom NAME eval/video_model.py mmaip_v_toy --custom-tasks eval/tasks.py

NAME is a checkpoint folder, or a Hub id with an optional revision (``NAMESPACE/NAME@v1``). LightEval's command takes no
model arguments: frames, tokens, batch, device and dtype come from the YAML named by ``MMAIP_V_EVAL``.
"""

from dataclasses import asdict
from pathlib import Path

from lighteval.models import abstract_model
from lighteval.models.custom.custom_model import CustomModelConfig

from dataset_builder.errors import KitError
from dataset_builder.models import ChatRequest, load_model
from eval.lighteval_adapter import PredictionCache, answer_through_cache, doc_frames, require_checkpoint, response
from eval.runner import greedy
from eval.settings import load_settings


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
        require_checkpoint(name)
        self.chat = load_model(name, revision, device=self.settings.device, dtype=self.settings.dtype)
        self.decoding = greedy(self.settings.max_new_tokens, self.settings.num_frames)
        settings = {
            **asdict(self.decoding),
            "template_hash": self.chat.template_hash,
            "dtype": self.settings.dtype,
            "media": self.settings.media,
        }
        self.config = VideoModelConfig(**config.model_dump(), model_revision=self.chat.revision, decoding=settings)
        self._cache = PredictionCache(self.config, self.chat.revision, settings)

    def greedy_until(self, docs: list) -> list:
        """One answer per document; an unreadable video gives a response that says so."""
        return answer_through_cache(self._cache, docs, self._answer)

    def _answer(self, docs: list) -> list:
        # Questions of one video side by side: each video is decoded once, however small the frame cache is.
        order = sorted(range(len(docs)), key=lambda i: (docs[i].specific or {}).get("video_id", ""))
        replies: list = [None] * len(docs)
        size = self.settings.batch_size
        for start in range(0, len(order), size):
            requests, places = [], []
            for place in order[start : start + size]:
                try:
                    frames = doc_frames(docs[place], self.decoding.num_frames)
                except KitError as error:
                    replies[place] = response(None, str(error))
                    continue
                requests.append(ChatRequest(question=docs[place].query, frames=frames))
                places.append(place)
            answers = self.chat.generate(requests, self.decoding, seed=0, batch_size=size) if requests else []
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
