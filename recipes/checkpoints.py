"""Checkpoint folders: ordinary ones that stock transformers loads, and never half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model

from dataset_builder.errors import KitError
from eval.results import read_json, write_text
from recipes.extrapolate import State, snapshot
from recipes.settings import difference


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


class GoesOn:
    """For a Trainer: what its own way of going on from a checkpoint lacks."""

    def _run_epoch(self, *args, **kwargs) -> None:
        """As the Trainer's, whose loop looks only after a step whether it has reached the end."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """As the Trainer's, but the way any checkpoint is loaded.

        `save_pretrained` writes the names that released checkpoints have; the Trainer compares them with the names in
        memory, finds none in most vision-language models, and would go on from the start's weights with a warning only.
        """
        model = self.model if model is None else model
        if is_peft_model(model) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:  # the processor need not lie beside the weights
            saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype="float32", use_safetensors=True)
            model.load_state_dict(saved.state_dict())


def claim(file: Path, identity: dict[str, Any], holds: str | None, write: bool = True) -> None:
    """Remember what a folder's checkpoints are of, and refuse those of something else.

    Args:
        file: in the folder, with the identity of what lies there.
        identity: what decides the weights.
        holds: what lies in the folder, in words; None for nothing.
        write: whether to write the file.

    Raises:
        KitError: it is of another configuration.
    """
    identity = json.loads(json.dumps(identity, default=str))
    if holds and (known := read_json(file) if file.exists() else {}) != identity:
        raise KitError(
            f"{file.parent} holds {holds} of another configuration ({difference(known, identity)}); "
            "choose another --output_dir, or delete it"
        )
    if write:
        write_text(file, json.dumps(identity, indent=1, sort_keys=True) + "\n")


def _retyped(config: Any, dtype: str) -> Any:
    """A configuration with every ``dtype`` in it replaced."""
    if not isinstance(config, dict):
        return config
    return {k: dtype if k == "dtype" and v else _retyped(v, dtype) for k, v in config.items()}


def load_state(folder: Path) -> State:
    """The state of a saved checkpoint, in fp32."""
    from dataset_builder.models import load_model

    return snapshot(load_model(folder, device="cpu", dtype="float32").model)
