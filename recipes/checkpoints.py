"""Checkpoint folders: ordinary ones that stock transformers loads, and never half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eval.results import read_json, write_text
from recipes.extrapolate import State, snapshot


def place(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder under a temporary name, then give it its own."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def save_checkpoint(model, processor, folder: Path, weights: State | None = None, dtype=torch.float32) -> None:
    """An ordinary checkpoint: safetensors weights, config, processor, chat template."""
    model.save_pretrained(folder, **({} if weights is None else {"state_dict": dict(weights)}))
    if (backend := getattr(processor.tokenizer, "backend_tokenizer", None)) is not None:
        # The last call's padding would be written down, and the checkpoint's hash would depend on it.
        backend.no_padding()
        backend.no_truncation()
    processor.save_pretrained(folder)
    if dtype is not torch.float32:  # the library wrote down the model's type, not that of the weights it was given
        config = read_json(folder / "config.json")
        write_text(folder / "config.json", json.dumps(_retyped(config, str(dtype).split(".")[1]), indent=2) + "\n")


def last_step(folder: Path | None) -> str | None:
    """The trainer's last complete checkpoint in a folder, or None; what a stop has left half-written is deleted.

    The trainer writes its state last, and not in one piece: a checkpoint whose state parses is complete.
    """
    found = {}
    for path in Path(folder).glob("checkpoint-*") if folder is not None else ():
        try:
            found[json.loads((path / "trainer_state.json").read_text())["global_step"]] = path
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
    return str(found[max(found)]) if found else None


class NoFurtherStep:
    """For a Trainer: one that goes on from a checkpoint of its last step makes no other.

    The Trainer's loop looks whether it has reached the end only after a step.
    """

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)


def _retyped(config: Any, dtype: str) -> Any:
    """A configuration with every ``dtype`` in it replaced."""
    if not isinstance(config, dict):
        return config
    return {k: dtype if k == "dtype" and v else _retyped(v, dtype) for k, v in config.items()}


def load_state(folder: Path) -> State:
    """The state of a saved checkpoint, in fp32."""
    from dataset_builder.models import load_model

    return snapshot(load_model(folder, device="cpu", dtype="float32").model)
