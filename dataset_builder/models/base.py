"""What a chat model of the kit takes and gives, whatever is behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dataset_builder.media import Frames


@dataclass(frozen=True)
class Decoding:
    """Decoding parameters, kept with every answer.

    Attributes:
        temperature: 0 is greedy decoding.
        top_p: nucleus of the sampling distribution, in (0, 1].
        max_new_tokens: an answer that reaches it without ending is flagged as cut.
        num_frames: frames the model sees of each video.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 16
    num_frames: int = 8

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1 or self.num_frames < 1:
            raise ValueError(f"decoding out of range (temperature ≥ 0, 0 < top_p ≤ 1, others ≥ 1): {asdict(self)}")


@dataclass
class ChatRequest:
    """One user turn: the clip's frames (or none, for text only), then the question."""

    question: str
    frames: Frames | None
    system: str | None = None


@dataclass
class ChatReply:
    """One answer. ``finish_reason`` is ``stop`` (ended by itself) or ``length`` (cut at max_new_tokens)."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    error: str | None = None


class ChatModel(Protocol):
    """Anything that answers. ``revision`` changes whenever the weights behind ``name`` do."""

    name: str
    revision: str
    template_hash: str

    def generate(self, requests: list[ChatRequest], decoding: Decoding, seed: int) -> list[ChatReply]:
        """Answer every request; the same requests, decoding and seed give the same replies."""


def chat_messages(request: ChatRequest) -> list[dict]:
    """The request as conversational messages; content parts carry the keys ``type`` and ``text`` only."""
    content = [{"type": "video"}] if request.frames is not None else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": request.question}]}]
    if request.system is not None:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": request.system}]})
    return messages
