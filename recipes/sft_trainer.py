"""The Trainer of supervised recipes, whose checkpoints hold all that going on exactly takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from dataset_builder.errors import KitError
from recipes.checkpoints import NoFurtherStep, last_step
from recipes.settings import INCIDENTAL, difference

DRAWS = "draws-{rank}.json"  # in a checkpoint: where a process's collator was
OWN = "sft.json"  # in a work folder: what its checkpoints are of


class SFTTrainer(NoFurtherStep, Trainer):
    """transformers' Trainer on `recipes.sft_data.SFTCollator`, stopped and resumed without a trace.

    The Trainer restores the order of clips; which questions of a clip are asked, and in which order, is drawn by the
    collator, which is ahead of training by what is prefetched. So every checkpoint holds the collator's state as of the
    last batch that was trained on. (With `dataloader_num_workers` the draws happen elsewhere and are not restored.)
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._batches, self._loss = 0, 0.0
        self.data_collator.remember(2 * self.args.gradient_accumulation_steps + 8)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """As the Trainer's, counted."""
        self._batches += 1
        loss = super().training_step(*args, **kwargs)
        self._loss = self._loss + loss.detach()
        return loss

    @property
    def mean_loss(self) -> float:
        """Loss over all steps; the Trainer's `train_loss` is over those since the last stop."""
        return float(self._loss) / max(self.state.global_step, 1)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # before the trainer's state, by which a checkpoint is complete
        state = self.data_collator.state_after(self._batches)
        path = Path(output_dir, DRAWS.format(rank=self.args.process_index))
        path.write_text(json.dumps({"batches": self._batches, "loss": float(self._loss), "state": state}) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        """Weights the way any checkpoint is loaded (see `VideoDPOTrainer._load_from_checkpoint`), and the draws."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype="float32", use_safetensors=True)
            (self.model if model is None else model).load_state_dict(saved.state_dict())
        kept = json.loads(Path(resume_from_checkpoint, DRAWS.format(rank=self.args.process_index)).read_text())
        self._batches, self._loss = kept["batches"], kept["loss"]
        if kept["state"] is not None:
            self.data_collator.go_on(self._batches, kept["state"])


def work_folder(output: str | Path) -> Path:
    """Where the checkpoints of a run lie until its result is complete: beside the output folder."""
    output = Path(output)
    return output.with_name(f".{output.name}-work")


@contextlib.contextmanager
def resumable(training, identity: dict[str, Any], say: Callable[[str], None]) -> Iterator[str | None]:
    """Let a run keep its checkpoints in its work folder, from where the same command goes on.

    Inside, `training.output_dir` is the work folder; after success it is deleted. Without checkpoints
    (`--save_strategy no`) nothing is written there.

    Args:
        training: `transformers.TrainingArguments`.
        identity: what decides the weights, as JSON values.
        say: takes a line about going on.

    Yields:
        The checkpoint to go on from, or None.

    Raises:
        KitError: checkpoints of another configuration lie there.
    """
    output, work = training.output_dir, work_folder(training.output_dir)
    last = _share(_claim(work, identity, training.save_strategy != "no") if training.process_index == 0 else None)
    if last is not None:
        say(f"going on at {last}")
    training.output_dir = str(work)
    try:
        yield last
    finally:
        training.output_dir = output
    if training.process_index == 0:
        shutil.rmtree(work, ignore_errors=True)


def settings_identity(script, training, base: str, clips: list) -> dict[str, Any]:
    """What decides the weights of a supervised run: its settings, where it starts, and its clips with their turns."""
    rows = [[_name(c.video), [[t.question, t.answer, t.weight] for t in c.turns]] for c in clips]
    digest = hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
    fields = {key: value for key, value in training.to_dict().items() if not key.startswith(INCIDENTAL)}
    return {**vars(script), **fields, "world_size": training.world_size, "base": base, "clips": digest}


def _name(video: Any) -> str:
    """A clip's content if it is in memory, else what its file is called: big files are not read for this."""
    return hashlib.sha256(video).hexdigest() if isinstance(video, bytes) else Path(video).name


def _claim(work: Path, identity: dict[str, Any], keeps: bool) -> str | None:
    identity = json.loads(json.dumps(identity, default=str))
    try:
        known = json.loads((work / OWN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    last = last_step(work)
    if last is not None and known != identity:
        raise KitError(
            f"{work} holds checkpoints of another configuration ({difference(known, identity)}); "
            "delete it, or choose another --output_dir"
        )
    if keeps:
        work.mkdir(parents=True, exist_ok=True)
        (work / OWN).write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return last


def _share(value: str | None) -> str | None:
    """The main process's value, in every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    held = [value]
    torch.distributed.broadcast_object_list(held)
    return held[0]
