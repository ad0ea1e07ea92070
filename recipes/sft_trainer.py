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
from accelerate.utils import broadcast_object_list
from transformers import Trainer

from recipes.checkpoints import GoesOn, claim, last_step
from recipes.settings import INCIDENTAL

DRAWS = "draws-{rank}.json"  # in a checkpoint: where a process's collator was
OWN = "sft.json"  # in a work folder: what its checkpoints are of


class SFTTrainer(GoesOn, Trainer):
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
        """Weights, and the draws."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        kept = json.loads(Path(resume_from_checkpoint, DRAWS.format(rank=self.args.process_index)).read_text())
        self._batches, self._loss = kept["batches"], kept["loss"]
        if kept["state"] is not None:
            self.data_collator.go_on(self._batches, kept["state"])


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
    from dataset_builder.build import work_folder

    output, work, last = training.output_dir, work_folder(Path(training.output_dir)), None
    if training.process_index == 0:
        last = last_step(work)
        claim(work / OWN, identity, "checkpoints" if last is not None else None, training.save_strategy != "no")
    last = broadcast_object_list([last])[0]
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
