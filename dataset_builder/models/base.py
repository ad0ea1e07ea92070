"""What a chat model of the kit takes and gives, whatever is behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from dataset_builder.errors import EXIT_BUDGET, KitError

if TYPE_CHECKING:
    from dataset_builder.media import Frames


class BadReply(ValueError):
    """A reply's content cannot be used, says the one who asked; an endpoint is asked again."""


class BudgetReached(KitError):
    """One more call could pass the spend limit of an endpoint. Nothing is lost: a higher limit goes on from here."""

    exit_code = EXIT_BUDGET


@dataclass(frozen=True)
class Decoding:
    """Decoding parameters, kept with every answer.

    Attributes:
        temperature: 0 is greedy decoding.
        top_p: nucleus of the sampling distribution, in (0, 1].
        max_new_tokens: an answer that reaches it without ending is flagged as cut.
        num_frames: frames the model sees of each video, at most.
        fps: frames a second of the video that it sees; None spreads num_frames evenly over it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 16
    num_frames: int = 8
    fps: float | None = None

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1 or self.num_frames < 1:
            raise ValueError(f"decoding out of range (temperature ≥ 0, 0 < top_p ≤ 1, others ≥ 1): {asdict(self)}")


@dataclass
class ChatRequest:
    """One user turn: the clip's frames (or none, for text only), then the question.

    Attributes:
        question: text of the user turn.
        frames: what is seen of the video; None for text only.
        system: text of the system turn, if any.
        schema: JSON schema of the reply, for servers that can be held to one.
    """

    question: str
    frames: Frames | None
    system: str | None = None
    schema: dict | None = None


@dataclass
class ChatReply:
    """One answer.

    Attributes:
        text: what was said.
        finish_reason: ``stop`` (ended by itself) or ``length`` (cut at max_new_tokens); an endpoint may say others.
        prompt_tokens: tokens of the prompt, frames included; 0 when an endpoint does not count.
        completion_tokens: tokens of the answer; 0 when an endpoint does not count.
        error: one line when there is no answer.
        model: what an endpoint says that it is.
        attempts: calls on the wire for this reply; 0 when it was kept from an earlier one.
        cost: of these calls, in the currency of the price table.
        logprobs: what an endpoint that was asked for it says of every token of the reply: its text, its log-probability
            and the likeliest ones in its place, as ``[token, logprob, [[token, logprob], …]]``; None without.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    error: str | None = None
    model: str | None = None
    attempts: int = 1
    cost: float = 0.0
    logprobs: list[list] | None = None


class ChatModel(Protocol):
    """Anything that answers.

    ``revision`` changes whenever the weights behind ``name`` do; ``asked_as`` is what a configuration calls it, a
    folder's path cut to its name.
    """

    name: str
    asked_as: str
    revision: str
    template_hash: str
    is_endpoint: bool

    def generate(self, requests: list[ChatRequest], decoding: Decoding, seed: int) -> list[ChatReply]:
        """Answer every request; the same requests, decoding and seed give the same replies."""


def served_name(model: str) -> str:
    """What a served model is called in a dataset: a folder's path on somebody's machine is cut to its name."""
    return model.rstrip("/").rsplit("/", 1)[-1] if model.startswith(("/", "./", "../", "~")) else model


def chat_messages(request: ChatRequest, images: bool = False) -> list[dict]:
    """The request as conversational messages; content parts carry the keys ``type`` and ``text`` only.

    Args:
        request: what is asked.
        images: one image part a frame, for models that know no video.
    """
    content = []
    if request.frames is not None:
        content = [{"type": "image"} for _ in range(len(request.frames))] if images else [{"type": "video"}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": request.question}]}]
    if request.system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": request.system}]})
    return messages
