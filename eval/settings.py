"""Settings of an evaluation through LightEval, which has no arguments for them: environment variables and one YAML."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

DATA_VARIABLE = "MMAIP_V_DATA"  # dataset folder or Hub id that eval/tasks.py reads
SETTINGS_VARIABLE = "MMAIP_V_EVAL"  # YAML file with the fields of EvalSettings
DEFAULT_DATASET = "mmaip-v"


@dataclass
class EvalSettings:
    """What the YAML named by ``MMAIP_V_EVAL`` may hold; without it the defaults apply.

    Attributes:
        num_frames: frames a model sees of each video.
        max_new_tokens: longest answer, in tokens.
        batch_size: questions per batch of the native-video model.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
        dtype: ``auto``, ``float32``, ``bfloat16`` …
        media: ``media.json`` of a build, for datasets that hold no video.
        judge: specification of the judge, as in a build's YAML.
    """

    num_frames: int = 8
    max_new_tokens: int = 16
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "auto"
    media: str | None = None
    judge: dict = field(default_factory=lambda: {"kind": "reference"})


def dataset_name() -> str:
    """The dataset folder or Hub id to evaluate on."""
    return os.environ.get(DATA_VARIABLE) or DEFAULT_DATASET


def load_settings() -> EvalSettings:
    """The settings of this process.

    Raises:
        KitError: if the file is missing or holds an unknown key.
    """
    path = os.environ.get(SETTINGS_VARIABLE)
    return _read(path) if path else EvalSettings()


@cache
def _read(path: str) -> EvalSettings:
    from dataset_builder.settings import load_yaml

    return load_yaml(Path(path), EvalSettings)
