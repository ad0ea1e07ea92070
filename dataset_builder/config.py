"""The configuration of ``python -m dataset_builder build``, and what every configuration is read with.

Relative paths in a configuration are relative to the folder the command is typed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataset_builder.strict_yaml import from_dict, load_yaml, near, read_yaml

__all__ = [
    "SPLITS",
    "BuildConfig",
    "DecodingConfig",
    "JudgeConfig",
    "MemberConfig",
    "PairsConfig",
    "ReferenceJudgeConfig",
    "SourceConfig",
    "SplitConfig",
    "VisualJudgeConfig",
    "from_dict",
    "load_build_config",
    "load_yaml",
    "near",
    "parse_judge",
    "read_yaml",
]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SourceConfig:
    """Where the videos and their questions are.

    Attributes:
        videos: folder of video files.
        questions: JSONL file, one question a line; `video` is a path inside `videos`.
        kind: the reader; `folder` is the one there is.
        source: name of the source, for rows without their own.
        license: licence of the videos, for rows without their own (an SPDX name such as `cc-by-4.0`).
        redistribute: whether the licence allows the dataset to contain the videos' bytes.
    """

    videos: str
    questions: str
    kind: Literal["folder"] = "folder"
    source: str = "own"
    license: str = "unknown"
    redistribute: bool = False


@dataclass(frozen=True)
class SplitConfig:
    """Shares of the videos whose rows name no split; the rest is `train`. Decided by the video's bytes."""

    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self):
        if self.validation < 0 or self.test < 0 or self.validation + self.test > 1:
            raise ValueError("validation and test are shares from 0 to 1 that add up to at most 1")


@dataclass(frozen=True)
class DecodingConfig:
    """How a zoo member answers.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus sampling.
        max_new_tokens: an answer is cut after this many.
        num_frames: frames of the video that the member sees.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 16
    num_frames: int = 8

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError("temperature must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError("top_p must be above 0 and at most 1")
        if self.max_new_tokens < 1 or self.num_frames < 1:
            raise ValueError("max_new_tokens and num_frames must be at least 1")


@dataclass(frozen=True)
class MemberConfig:
    """One model of the zoo.

    Attributes:
        name: how the dataset calls it.
        model: a checkpoint folder or a Hub name.
        revision: commit of a Hub model.
        samples: answers to each question.
        decoding: how it answers.
    """

    name: str
    model: str
    revision: str | None = None
    samples: int = 1
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: {self.name!r} may hold letters, digits, '.', '_' and '-' only")
        if self.samples < 1:
            raise ValueError("samples must be at least 1")


@dataclass(frozen=True)
class ReferenceJudgeConfig:
    """Compares an answer with the question's own answers."""

    kind: Literal["reference"]
    weight: float = 1.0
    name: str = "reference"

    def __post_init__(self):
        _check_weight(self.weight)


@dataclass(frozen=True)
class VisualJudgeConfig:
    """Asks a checkpoint that sees the video whether an answer is right."""

    kind: Literal["visual"]
    model: str
    revision: str | None = None
    weight: float = 1.0
    num_frames: int = 8
    name: str = "visual"

    def __post_init__(self):
        _check_weight(self.weight)
        if self.num_frames < 1:
            raise ValueError("num_frames must be at least 1")


JudgeConfig = ReferenceJudgeConfig | VisualJudgeConfig


def _check_weight(weight: float) -> None:
    if weight < 0:
        raise ValueError("weight must be 0 (scored and shown, but not counted) or more")


@dataclass(frozen=True)
class PairsConfig:
    """Which pairs are kept: those whose aggregate scores (0 to 1) differ by at least `min_margin`."""

    min_margin: float = 0.1

    def __post_init__(self):
        if not 0 <= self.min_margin <= 1:
            raise ValueError("min_margin must be from 0 to 1")


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides a dataset.

    Attributes:
        source: videos and questions.
        zoo: the models that answer, at least one.
        judges: what scores the answers, at least one.
        name: name of the dataset.
        seed: of sampling.
        split: shares of validation and test.
        pairs: which pairs are kept.
        block_size: questions per block, the unit of batching, storing and resuming (changes sampled answers).
        max_shard_mb: most megabytes of video in one Parquet file.
    """

    source: SourceConfig
    zoo: list[MemberConfig]
    judges: list[JudgeConfig]
    name: str = "mmaip-v"
    seed: int = 0
    split: SplitConfig = field(default_factory=SplitConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    block_size: int = 64
    max_shard_mb: int = 256

    def __post_init__(self):
        for key in ("zoo", "judges"):
            names = [entry.name for entry in getattr(self, key)]
            if not names:
                raise ValueError(f"{key}: names nothing; at least one entry is needed")
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"{key}: the name {doubled[0]!r} stands for two entries; each needs its own `name`")
        if not any(judge.weight > 0 for judge in self.judges):
            raise ValueError("judges: every weight is 0, so nothing would decide")
        if min(self.block_size, self.max_shard_mb) < 1:
            raise ValueError("block_size and max_shard_mb must be at least 1")


def load_build_config(path: str | Path) -> BuildConfig:
    """Read a build's YAML file.

    Raises:
        KitError: the file or one of its values is wrong, in one line.
    """
    return load_yaml(path, BuildConfig)


def parse_judge(spec: dict[str, Any], file: str = "judges") -> JudgeConfig:
    """One judge's settings from plain values.

    Raises:
        KitError: unknown kind or key, or a wrong value.
    """
    return from_dict(spec, JudgeConfig, file)
