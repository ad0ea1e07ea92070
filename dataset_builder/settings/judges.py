"""Settings of the judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dataset_builder.settings.zoo import EndpointConfig


@dataclass(frozen=True)
class ReferenceJudgeConfig:
    """Compares an answer with the question's own answers."""

    kind: Literal["reference"]
    weight: float = 1.0
    name: str = "reference"

    def __post_init__(self):
        check_weight(self.weight)


@dataclass(frozen=True)
class VisualJudgeConfig:
    """A visual reward: asks a local checkpoint that sees the video for the probability that an answer is right.

    Attributes:
        num_frames: evenly spaced frames it looks at; 0 is a judge that reads text only, a baseline.
        use_references: whether it reads the question's reference answers.
    """

    kind: Literal["visual"]
    model: str
    revision: str | None = None
    weight: float = 1.0
    num_frames: int = 8
    use_references: bool = False
    name: str = "visual"

    def __post_init__(self):
        check_weight(self.weight)
        if self.num_frames < 0:
            raise ValueError("num_frames must be 0 (a judge that reads text only) or more")


@dataclass(frozen=True)
class VLMJudgeConfig:
    """A vision-language model that scores relevance, accuracy, completeness and clarity from 1 to 5.

    Attributes:
        model: a checkpoint folder or Hub id; with `endpoint`, the model's name there.
        endpoint: where it is served; null loads the checkpoint here.
        revision: commit of a Hub model; with `endpoint`, what to record instead of what it reports.
        use_references: whether the judge reads the question's reference answers.
        num_frames: evenly spaced frames it looks at.
        max_new_tokens: a verdict that is cut here is unparseable.
        max_retries: repetitions after a verdict that cannot be used (local models; an endpoint has its own).
    """

    kind: Literal["vlm"]
    model: str
    endpoint: EndpointConfig | None = None
    revision: str | None = None
    weight: float = 1.0
    use_references: bool = True
    num_frames: int = 8
    max_new_tokens: int = 256
    temperature: float = 0.0
    max_retries: int = 2
    name: str = "vlm"

    def __post_init__(self):
        check_weight(self.weight)
        check_frames(self.num_frames)
        check_asking(self.temperature, self.max_retries, self.max_new_tokens)


@dataclass(frozen=True)
class VQAJudgeConfig:
    """A vision-language model that says whether an answer is right, with a score from 0 to 5 and a reason.

    Attributes:
        model, endpoint, revision, use_references, max_new_tokens, max_retries: as for a `vlm` judge.
        num_frames: evenly spaced frames it looks at; 0 is a judge that reads text only, a baseline.
        probability: whether `correct` is the model's probability of yes where that can be had (an endpoint has to be
            asked for it: `logprobs`), else 1 or 0.
    """

    kind: Literal["vqa"]
    model: str
    endpoint: EndpointConfig | None = None
    revision: str | None = None
    weight: float = 1.0
    use_references: bool = True
    num_frames: int = 8
    max_new_tokens: int = 128
    temperature: float = 0.0
    max_retries: int = 2
    probability: bool = True
    name: str = "vqa"

    def __post_init__(self):
        check_weight(self.weight)
        if self.num_frames < 0:
            raise ValueError("num_frames must be 0 (a judge that reads text only) or more")
        check_asking(self.temperature, self.max_retries, self.max_new_tokens)


@dataclass(frozen=True)
class VideoChatGPTJudgeConfig:
    """Video-ChatGPT's protocol, for comparability: text only, yes or no and a score from 0 to 5.

    Attributes:
        model, endpoint, revision, max_new_tokens, max_retries: as for a `vlm` judge.
    """

    kind: Literal["video_chatgpt"]
    model: str
    endpoint: EndpointConfig | None = None
    revision: str | None = None
    weight: float = 1.0
    max_new_tokens: int = 64
    temperature: float = 0.0
    max_retries: int = 2
    name: str = "video_chatgpt"

    def __post_init__(self):
        check_weight(self.weight)
        check_asking(self.temperature, self.max_retries, self.max_new_tokens)


@dataclass(frozen=True)
class HoundJudgeConfig:
    """LLaVA-Hound's protocol, for comparability: caption and reference, text only, one score from 1 to 5.

    Attributes:
        model, endpoint, revision, max_new_tokens, max_retries: as for a `vlm` judge.
    """

    kind: Literal["hound"]
    model: str
    endpoint: EndpointConfig | None = None
    revision: str | None = None
    weight: float = 1.0
    max_new_tokens: int = 64
    temperature: float = 0.0
    max_retries: int = 2
    name: str = "hound"

    def __post_init__(self):
        check_weight(self.weight)
        check_asking(self.temperature, self.max_retries, self.max_new_tokens)


@dataclass(frozen=True)
class ConfirmConfig:
    """The pair judge that sees both answers of a pair, in both orders.

    Attributes:
        model, endpoint, revision, use_references, num_frames, max_new_tokens, max_retries: as for a `vlm` judge.
    """

    model: str
    endpoint: EndpointConfig | None = None
    revision: str | None = None
    use_references: bool = True
    num_frames: int = 8
    max_new_tokens: int = 128
    max_retries: int = 2
    name: str = "confirm"

    def __post_init__(self):
        check_frames(self.num_frames)
        if self.max_retries < 0 or self.max_new_tokens < 1:
            raise ValueError("max_retries must be 0 or more, max_new_tokens at least 1")


JudgeConfig = (
    ReferenceJudgeConfig
    | VisualJudgeConfig
    | VLMJudgeConfig
    | VQAJudgeConfig
    | VideoChatGPTJudgeConfig
    | HoundJudgeConfig
)


def check_weight(weight: float) -> None:
    """A judge's weight is 0 or more."""
    if weight < 0:
        raise ValueError("weight must be 0 (scored and shown, but not counted) or more")


def check_frames(num_frames: int) -> None:
    """A judge that looks at a video sees at least one frame."""
    if num_frames < 1:
        raise ValueError("num_frames must be at least 1")


def check_asking(temperature: float, max_retries: int, max_new_tokens: int) -> None:
    """How a judge asks its model is in range."""
    if temperature < 0 or max_retries < 0 or max_new_tokens < 1:
        raise ValueError("temperature and max_retries must be 0 or more, max_new_tokens at least 1")
