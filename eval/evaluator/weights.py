"""The checkpoint of a small local judge, carried in an evaluator's repo: ``judge/NAME/``.

It keeps its folder's name, for that is what results call the judge's model. Only what makes it load is taken along;
pickle files, code and what a trainer left behind stay where they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.models.revision import REVISION_FILES
from eval.results import read_json

WEIGHTS = "judge"
TRAINING = "judge_training.json"  # written beside a checkpoint by recipes/train_evaluator.py
_MORE_FILES = (
    "vocab.json",
    "merges.txt",
    "*.spm",
    "*.tiktoken",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "LICENSE*",
    TRAINING,
)
_NAMES = ("_name_or_path", "name_or_path")


def copy_weights(source: Path, repo: Path) -> None:
    """Copy a checkpoint into a repo, as ``judge/NAME``.

    Args:
        source: the checkpoint's folder, an absolute path.
        repo: the folder of the repo, which holds no judge yet.

    Raises:
        KitError: the checkpoint is incomplete, or one of its files holds a path of this machine.
    """
    files = sorted({path for pattern in (*REVISION_FILES, *_MORE_FILES) for path in source.glob(pattern)})
    names = {path.name for path in files}
    for index in (path for path in files if path.name.endswith(".safetensors.index.json")):
        if missing := sorted(set(_parts(index)) - names):
            raise KitError(f"{source}: {missing[0]} is missing, which {index.name} names")
    target = repo / WEIGHTS / source.name
    target.mkdir(parents=True)
    for path in files:
        if path.suffix == ".json":
            _refuse_paths(read_json(path), path)
        shutil.copyfile(path, target / path.name)  # of the file itself where it is a link into a cache


def read_training(weights: Path | None) -> dict[str, Any] | None:
    """How a judge was trained and how well it agrees with its teachers; None if nothing says."""
    if weights is None or not (weights / TRAINING).is_file():
        return None
    content = read_json(weights / TRAINING)
    return content if isinstance(content, dict) else None


def _parts(index: Path) -> list[str]:
    content = read_json(index)
    found = content.get("weight_map") if isinstance(content, dict) else None
    return [str(name) for name in found.values()] if isinstance(found, dict) else []


def _refuse_paths(content: Any, path: Path) -> None:
    """Refuse the folder that older libraries note in a checkpoint: it would be published."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key in _NAMES and isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
            raise KitError(f"{path}: {json.dumps(key)} is a path of this machine; take it out, it would be published")
        if isinstance(value, dict):
            _refuse_paths(value, path)
