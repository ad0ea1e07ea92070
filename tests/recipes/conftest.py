"""A tiny dataset and an untrained base for the recipes' tests, made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """A dataset folder with 24 pairs and 8 questions in validation and test each."""
    from tests.recipes.tiny import make_dataset

    return make_dataset(tmp_path_factory.mktemp("recipes") / "mmaip-v")


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """An untrained Qwen2-VL checkpoint."""
    from dataset_builder.toy_models import save_tiny

    return save_tiny("qwen2_vl", tmp_path_factory.mktemp("recipes") / "base")


@pytest.fixture(scope="session")
def rows(dataset):
    """The dataset's pairs with undecoded videos."""
    from recipes.data import load_preferences

    return load_preferences(str(dataset), "train")


def small_fields(dataset: Path, base: Path) -> dict:
    """Fields of a run that takes seconds."""
    return {
        "model_name_or_path": base,
        "dataset_name": dataset,
        "rounds": 3,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "sft_weight": 0.2,
        "alphas": [0.0, 0.5],
        "max_new_tokens": 2,
        "stop_early": False,
        # An untrained model answers anything; the limits have tests of their own.
        "max_malformed": 1.0,
        "max_repeated": 1.0,
        "max_chosen_drop": 1e9,
        "max_margin": 1e9,
        "max_length_ratio": float("inf"),
        "use_cpu": True,
    }


@pytest.fixture
def small(dataset, base) -> dict:
    """:func:`small_fields` of the shared dataset and base."""
    return small_fields(dataset, base)
