"""The configuration of ``python -m dataset_builder build``.

Relative paths in a configuration are relative to the folder the command is typed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.settings.judges import JudgeConfig
from dataset_builder.settings.selection import PairsConfig
from dataset_builder.settings.sources import Source
from dataset_builder.settings.strict_yaml import from_dict, load_yaml
from dataset_builder.settings.zoo import Member

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitConfig:
    """Shares of the videos whose rows name no split; the rest is `train`. Decided by the video's bytes."""

    validation: float = 0.1
    test: float = 0.1

    def __post_init__(self):
        if self.validation < 0 or self.test < 0 or self.validation + self.test > 1:
            raise ValueError("validation and test are shares from 0 to 1 that add up to at most 1")


@dataclass(frozen=True)
class BuildConfig:
    """Everything that decides a dataset.

    Attributes:
        sources: videos and questions, or ready-made preference rows (not both).
        zoo: the models that answer, at least one unless the sources are preference rows.
        judges: what scores the answers, likewise.
        name: name of the dataset.
        seed: of sampling.
        split: shares of validation and test.
        pairs: which pairs are kept.
        ids_only: put no video into the dataset, whatever the licences allow.
        block_size: questions per block, the unit of batching, storing and resuming (changes sampled answers).
        max_shard_mb: most megabytes of video in one Parquet file.
    """

    sources: list[Source]
    zoo: list[Member] = field(default_factory=list)
    judges: list[JudgeConfig] = field(default_factory=list)
    name: str = "mmaip-v"
    seed: int = 0
    split: SplitConfig = field(default_factory=SplitConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    ids_only: bool = False
    block_size: int = 64
    max_shard_mb: int = 256

    def __post_init__(self):
        if not self.sources:
            raise ValueError("sources: names nothing; at least one entry is needed")
        imported = [source.kind == "preferences" for source in self.sources]
        if any(imported) and not all(imported):
            raise ValueError("sources: preference rows and questions cannot be mixed in one build")
        if all(imported):
            if self.zoo or self.judges:
                raise ValueError("preference rows are taken as they are: leave out zoo and judges")
        else:
            for key in ("zoo", "judges"):
                if not getattr(self, key):
                    raise ValueError(f"{key}: names nothing; at least one entry is needed")
            if not any(judge.weight > 0 for judge in self.judges):
                raise ValueError("judges: every weight is 0, so nothing would decide")
        for key in ("zoo", "judges"):
            names = [entry.name for entry in getattr(self, key)]
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"{key}: the name {doubled[0]!r} stands for two entries; each needs its own `name`")
        if min(self.block_size, self.max_shard_mb) < 1:
            raise ValueError("block_size and max_shard_mb must be at least 1")

    @property
    def imports(self) -> bool:
        """Whether the sources are ready-made preference rows."""
        return self.sources[0].kind == "preferences"


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
