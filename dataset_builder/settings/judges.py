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
    """A visual reward: asks a local checkpoint that sees the video for the probability that an answer is right."""

    kind: Literal["visual"]
    model: str
    revision: str | None = None
    weight: float = 1.0
    num_frames: int = 8
    name: str = "visual"

    def __post_init__(self):
        check_weight(self.weight)
        check_frames(self.num_frames)


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
        if self.temperature < 0 or self.max_retries < 0 or self.max_new_tokens < 1:
            raise ValueError("temperature and max_retries must be 0 or more, max_new_tokens at least 1")


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


JudgeConfig = ReferenceJudgeConfig | VisualJudgeConfig | VLMJudgeConfig


def check_weight(weight: float) -> None:
    """A judge's weight is 0 or more."""
    if weight < 0:
        raise ValueError("weight must be 0 (scored and shown, but not counted) or more")


def check_frames(num_frames: int) -> None:
    """A judge that looks at a video sees at least one frame."""
    if num_frames < 1:
        raise ValueError("num_frames must be at least 1")
