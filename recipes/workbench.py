"""One loaded base model, its data and its evaluation: what rounds and arms work with.

The model is loaded once; runs start from a state (a dict of fp32 tensors) that is copied into it. That is sound because
every trainer is taken off the model again (`VideoDPOTrainer.finish`).
"""

from __future__ import annotations

import atexit
import copy
import gc
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.utils import logging as transformers_logging

from dataset_builder.errors import KitError
from dataset_builder.loading import load_config
from dataset_builder.models import LocalChatModel, load_model
from eval.results import Results
from eval.runner import BenchmarkItem, FramesCache, MediaIndex, evaluate, greedy, load_benchmark
from recipes.extrapolate import State, extrapolate, snapshot
from recipes.settings import Settings
from recipes.video_dpo import (
    VideoDPOCollator,
    VideoDPOTrainer,
    VideoPromptEncoder,
    VideoSFTCollator,
    freeze_vision,
    text_linear_names,
)

transformers_logging.disable_progress_bar()
datasets.disable_progress_bars()

KEPT_METRICS = (
    *("loss", "grad_norm", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"),
    *("logps/chosen", "logps/rejected", "mean_token_accuracy"),
)
Log = Callable[[str], None]


class Diverged(KitError):
    """Training did not stay finite; another learning rate may."""


class Workbench:
    """Loads what a run needs and knows how to train and evaluate.

    Args:
        settings: the parsed command.
        log: where progress lines go.

    Raises:
        KitError: when base or dataset cannot be used.
    """

    def __init__(self, settings: Settings, log: Log = print):
        self.settings, self.log = settings, log
        script, training = settings.script, settings.training
        self.device = str(training.device)  # sets up the processes of a distributed run
        self.rank, self.world = training.process_index, training.world_size
        loaded = load_model(
            settings.model.model_name_or_path, _revision(settings.model), device=self.device, dtype="float32"
        )
        self.model, self.processor, self.base_revision = loaded.model, loaded.processor, loaded.revision
        if settings.model.attn_implementation:
            self.model.set_attn_implementation(settings.model.attn_implementation)
        self.theta_base = snapshot(self.model)
        media = MediaIndex(script.media) if script.media else None
        self.encoder = VideoPromptEncoder(self.processor, script.num_frames, media)
        self.rows = load_preferences(script.dataset_name, script.dataset_train_split)
        self.dataset_fingerprint = dataset_fingerprint(script.dataset_name, self.rows)
        self.references: dict = {}  # reference log-probabilities, shared by all runs of this process
        self._frames, self._items, self._prepared = FramesCache(), {}, {}
        # accelerate collects garbage after every training; without this it would walk through all of torch each time.
        gc.collect()
        gc.freeze()
        atexit.register(gc.unfreeze)

    @property
    def batch_size(self) -> int:
        """Pairs per optimizer step over all processes."""
        training = self.settings.training
        return training.per_device_train_batch_size * training.gradient_accumulation_steps * self.world

    def items(self, split: str) -> list[BenchmarkItem]:
        """The questions of a benchmark split, read once."""
        if split not in self._items:
            script = self.settings.script
            limit = script.validation_limit if split == script.validation_split else None
            self._items[split] = load_benchmark(script.dataset_name, split, script.media, limit)
        return self._items[split]

    def load(self, state: State) -> None:
        """Copy a state into the model."""
        self.model.load_state_dict(state)

    def evaluate(self, split: str, name: str, model: str = "", revision: str = "") -> Results:
        """Answer and judge a split with the model as it is now."""
        chat = RememberingChat(self.model, self.processor, model or name, revision or "unsaved", self.device)
        chat.remembered = self._prepared
        script = self.settings.script
        decoding = greedy(script.max_new_tokens, script.num_frames)
        return evaluate(
            chat,
            self.items(split),
            decoding=decoding,
            name=name,
            dataset=script.dataset_name,
            frames_cache=self._frames,
            batch_size=max(self.settings.training.per_device_eval_batch_size, 1),
        )

    def choose_alpha(self, theta: State, theta_ref: State, alphas: Sequence[float], name: str) -> tuple[State, dict]:
        """Extrapolate by the alpha that is best on the validation split; ties go to the smaller one.

        Only the first process evaluates; all of them end with the same model.

        Returns:
            (the extrapolated state, ``{alpha, alpha_curve, validation_accuracy}``).
        """
        curve = []
        if self.rank == 0:
            for alpha in alphas:
                self.load(extrapolate(theta, theta_ref, alpha))
                accuracy = self.evaluate(self.settings.script.validation_split, name).accuracy.mean
                curve.append({"alpha": alpha, "accuracy": accuracy})
        curve = self.share(curve)
        best = max(curve, key=lambda point: (point["accuracy"], -abs(point["alpha"])))
        state = extrapolate(theta, theta_ref, best["alpha"])
        self.load(state)
        return state, {
            "alpha": best["alpha"],
            "alpha_curve": curve,
            "validation_accuracy": best["accuracy"],
        }

    def share(self, value):
        """The first process's value, on every process."""
        holder = [value]
        if self.world > 1:
            broadcast_object_list(holder, from_process=0)
        return holder[0]

    def schedule(self, start: int, count: int) -> list[int]:
        """Row numbers for `count` pairs after the first `start` of a run; every epoch has an order of its own.

        One run of 45 steps and three rounds of 15 so see the same pairs in the same order.
        """
        size, seed = len(self.rows), self.settings.training.seed
        epochs = range(start // size, (start + count - 1) // size + 1)
        order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(size) for epoch in epochs])
        offset = start - epochs[0] * size
        return order[offset : offset + count].tolist()

    def train_dpo(self, start: int, steps: int, learning_rate: float, label: str) -> dict:
        """Train the model in place by DPO, with its present weights as the reference.

        Args:
            start: optimizer steps of this run that came before; decides which pairs are next.
            steps: optimizer steps.
            learning_rate: constant unless the settings name another schedule.
            label: for progress lines.

        Returns:
            The last logged training metrics, without times.
        """
        args = self._arguments(steps, learning_rate)
        peft_config = None
        if self.settings.model.use_peft:
            peft_config = self._lora()
        elif self.settings.script.freeze_vision:
            freeze_vision(self.model)
        trainer = VideoDPOTrainer(
            model=self.model,
            args=args,
            data_collator=VideoDPOCollator(self.encoder, args.max_length),
            train_dataset=self.rows.select(self.schedule(start * self.batch_size, steps * self.batch_size)),
            processing_class=self.processor,
            peft_config=peft_config,
            reference_cache=self.references,
            callbacks=[ProgressLines(self.log, label)],
        )
        return self._run(trainer, trainer.finish)

    def train_sft(self, steps: int, learning_rate: float, label: str) -> dict:
        """Train the model in place on the chosen answers, over the same pairs in the same order as DPO would see."""
        args = self._arguments(steps, learning_rate)
        model = self.model
        if self.settings.model.use_peft:
            from peft import get_peft_model

            torch.manual_seed(args.seed)
            model = get_peft_model(model, self._lora())
        elif self.settings.script.freeze_vision:
            freeze_vision(model)
        trainer = Trainer(
            model=model,
            args=args,
            data_collator=VideoSFTCollator(self.encoder, args.max_length),
            train_dataset=self.rows.select(self.schedule(0, steps * self.batch_size)),
            callbacks=[ProgressLines(self.log, label)],
        )
        merged = (lambda: model.merge_and_unload()) if self.settings.model.use_peft else (lambda: model)
        return self._run(trainer, merged)

    def _arguments(self, steps: int, learning_rate: float):
        args = copy.copy(self.settings.training)
        args.max_steps, args.learning_rate = steps, learning_rate
        return args

    def _lora(self):
        from trl import get_peft_config

        config = copy.copy(self.settings.model)
        if config.lora_target_modules is None:
            config.lora_target_modules = text_linear_names(self.model)
        return get_peft_config(config)

    def _run(self, trainer: Trainer, finish: Callable) -> dict:
        trainer.remove_callback(PrinterCallback)
        result = trainer.train()
        self.model = finish()
        self.model.requires_grad_(True)
        self.model.eval()
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        metrics = {key: history[-1][key] for key in KEPT_METRICS if history and key in history[-1]}
        loss = result.training_loss
        if not np.isfinite(loss):
            raise Diverged(f"the training loss is {loss}: lower learning_rate ({trainer.args.learning_rate:g})")
        return {**metrics, "train_loss": loss}


class RememberingChat(LocalChatModel):
    """Keeps the inputs it has prepared: the alpha search asks one model the same questions again and again."""

    LIMIT = 1 << 30  # bytes
    remembered: dict

    def prepare(self, requests, texts=None):
        """As in the base class; whole batches are kept, with their frames, up to a limit."""
        key = tuple((id(request.frames), request.question, request.system) for request in requests)
        if texts is not None or any(request.frames is None for request in requests):
            return super().prepare(requests, texts)
        if key not in self.remembered:
            batch = super().prepare(requests)
            used = sum(size for *_, size in self.remembered.values())
            size = sum(tensor.nbytes for tensor in batch.values())
            if used + size > self.LIMIT:
                return batch
            # Frames are kept too: as long as they live, nothing else can have their ids.
            self.remembered[key] = (batch, [request.frames for request in requests], size)
        return self.remembered[key][0]


class ProgressLines(TrainerCallback):
    """One line now and then: step, rate, time left."""

    def __init__(self, log: Log, label: str, every: float = 5.0):
        self.log, self.label, self.every = log, label, every
        self._started = self._last = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self._started = self._last = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        """Say where training is, at most every few seconds."""
        now = time.monotonic()
        if state.is_world_process_zero and now - self._last >= self.every:
            self._last = now
            rate = state.global_step / (now - self._started)
            left = (state.max_steps - state.global_step) / rate
            self.log(f"{self.label}: step {state.global_step}/{state.max_steps}, {rate:.2f} steps/s, {left:.0f} s left")


def load_preferences(dataset: str, split: str):
    """The `preferences` config with undecoded videos.

    Raises:
        KitError: when there is no such dataset, config or split, or it is empty.
    """
    rows = load_config(dataset, "preferences", split, ("prompt", "chosen", "rejected", "video"))
    if not len(rows):
        raise KitError(f"{dataset}: split '{split}' of 'preferences' has no pairs to train on")
    return rows


def dataset_fingerprint(dataset: str, rows) -> str:
    """16 hex digits over the content of a dataset folder's Parquet files; for a Hub dataset, datasets' own."""
    folder = Path(dataset)
    if not folder.is_dir():
        return str(rows._fingerprint)
    digest = hashlib.sha256()
    for config in ("preferences", "benchmark"):
        for path in sorted((folder / config).glob("*.parquet")):
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{config}/{path.name}\0{content}\n".encode())
    return digest.hexdigest()[:16]


def _revision(model) -> str | None:
    return None if model.model_revision == "main" else model.model_revision
