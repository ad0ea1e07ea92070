"""One loaded base model, its data and its evaluation: what rounds and arms work with.

The model is loaded once; runs start from a state (a dict of fp32 tensors) that is copied into it. That is sound because
every trainer is taken off the model again (`VideoDPOTrainer.finish`).
"""

from __future__ import annotations

import atexit
import copy
import gc
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import IntervalStrategy

from dataset_builder.errors import KitError
from dataset_builder.models import load_model
from eval.results import Results
from eval.runner import BenchmarkItem, FramesCache, MediaIndex, evaluate, greedy, load_benchmark
from recipes.alpha import search_alpha
from recipes.checkpoints import last_step
from recipes.data import dataset_fingerprint, held_out_ids, load_held_out, load_preferences
from recipes.extrapolate import State, extrapolate, snapshot
from recipes.guards import GuardLimits, RoundHealth, health
from recipes.on_policy.builder import BuiltPairs, OnPolicySettings, PairBuilder
from recipes.progress import Log, ProgressLines, StopAtLimits, step_logs
from recipes.remembering import RememberingChat
from recipes.round_adapter import RoundAdapter
from recipes.settings import Settings
from recipes.validation import ValidationRows
from recipes.video.score import PreferenceScore, preference_score
from recipes.video.sharding import gathered_state, wants_sharding
from recipes.video_dpo import (
    FeatureStore,
    ReferenceStore,
    VideoDPOTrainer,
    VideoSFTCollator,
    freeze_vision,
    make_encoder,
    text_linear_names,
)

datasets.disable_progress_bars()

KEPT_METRICS = (
    *("loss", "grad_norm", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"),
    *("logps/chosen", "logps/rejected", "mean_token_accuracy"),
)


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
        self.encoder = make_encoder(self.processor, training)
        self.rows = load_preferences(script.dataset_name, script.dataset_train_split)
        self.held_out = load_held_out(script.dataset_name, script.validation_split)
        self.dataset_fingerprint = dataset_fingerprint(script.dataset_name, self.rows)
        # Shared by all runs of this process, and by the next command on the same folder.
        self.references = ReferenceStore(training.reference_cache or Path(training.output_dir) / "references")
        self.features = FeatureStore(training.feature_cache, int(training.feature_cache_gb * (1 << 30)))
        self.replies: list = []  # of the last evaluation
        self.validated = ValidationRows()  # behind the last choice on validation
        self._builders: dict[tuple | None, PairBuilder] = {}
        self.adapter = RoundAdapter()  # of the last training, with LoRA
        self._noted: set[str] = set()
        self._base_metrics: dict | None = None
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

    @property
    def _window(self) -> int:
        """Steps that logged metrics are averaged over."""
        wanted = self.settings.training.logging_steps
        return max(1, int(wanted if wanted >= 1 else wanted * self.settings.training.max_steps))

    def items(self, split: str) -> list[BenchmarkItem]:
        """The questions of a benchmark split, read once."""
        if split not in self._items:
            script = self.settings.script
            limit = script.validation_limit if split == script.validation_split else None
            self._items[split] = load_benchmark(script.dataset_name, split, self.settings.training.media, limit)
        return self._items[split]

    def load(self, state: State) -> None:
        """Copy a state into the model."""
        self.model.load_state_dict(state)

    def evaluate(self, split: str, name: str, model: str = "", revision: str = "") -> Results:
        """Answer and judge a split with the model as it is now."""
        chat = RememberingChat(self.model, self.processor, model or name, revision or "unsaved", self.device)
        chat.remembered = self._prepared
        script = self.settings.script
        decoding = greedy(script.max_new_tokens, self.settings.training.num_frames)
        results = evaluate(
            chat,
            self.items(split),
            decoding=decoding,
            name=name,
            dataset=script.dataset_name,
            frames_cache=self._frames,
            batch_size=max(self.settings.training.per_device_eval_batch_size, 1),
        )
        self.replies = chat.replies
        return results

    def builder(self, judge_names: Sequence[str] | None = None) -> PairBuilder:
        """Builds pairs by the judges that count; keeps clips and verdicts over rounds and runs."""
        key = None if judge_names is None else tuple(judge_names)
        if key not in self._builders:
            script, training = self.settings.script, self.settings.training
            asked = OnPolicySettings(
                judges=tuple(script.judges),
                samples=script.own_samples,
                temperature=script.own_temperature,
                max_new_tokens=script.max_new_tokens,
                num_frames=training.num_frames,
                error_below=script.error_below,
                judge_names=key,
            )
            media = MediaIndex(training.media) if training.media else None
            split = script.dataset_train_split
            builder = PairBuilder(script.dataset_name, split, asked, media, self.device, log=self._note)
            if self._verdicts(key).exists():
                builder.verdicts.load(self._verdicts(key))  # asked before a stop
            self._builders[key] = builder
        return self._builders[key]

    def _verdicts(self, judge_names: Sequence[str] | None) -> Path:
        """Where the verdicts on fresh answers are kept."""
        names = "all" if judge_names is None else "-".join(judge_names)
        return Path(self.settings.training.output_dir) / "references" / f"verdicts-{names}.json"

    def fixed_rows(self, judge_names: Sequence[str] | None = None):
        """The dataset's pairs, or pairs of the zoo's stored answers by these judges alone."""
        if judge_names is None:
            return self.rows
        return self.builder(judge_names).from_zoo().rows

    def own_rows(self, question_ids: Sequence[str], seed: int, judge_names: Sequence[str] | None = None) -> BuiltPairs:
        """Pairs from fresh answers of the model as it is now.

        One process samples and judges; the others read what it built.
        """
        builder = self.builder(judge_names)
        chat = RememberingChat(self.model, self.processor, "policy", "own", self.device)
        chat.remembered = {}
        built = builder.on_policy(chat, question_ids, seed) if self.rank == 0 else None
        if built is not None:
            builder.verdicts.save(self._verdicts(judge_names))
        if self.world == 1:
            return built
        pairs, counts = self.share((built.pairs, built.counts) if built else None)
        return BuiltPairs(builder.pool.rows(pairs), counts, pairs)

    def choose_alpha(
        self, theta: State, theta_ref: State, alphas: Sequence[float], name: str, guarded: bool = False
    ) -> tuple[State, dict]:
        """Extrapolate by the alpha that is best on the validation split; see :func:`recipes.alpha.search_alpha`.

        Only the first process measures; all of them end with the same model. Without guards nobody asks for the
        likelihoods of held-out pairs, and the health is measured without them.

        Returns:
            (the extrapolated state, ``{alpha, alpha_curve, validation_accuracy, health}``).
        """
        choice = measured = None
        if self.rank == 0:
            split, at = self.settings.script.validation_split, [math.nan]
            replies: dict[float, list] = {}
            scores: dict[float, PreferenceScore] = {}
            self.validated = ValidationRows()
            names = [] if self.held_out is None else held_out_ids(self.held_out)

            def move(alpha: float) -> None:
                if at[0] != alpha:
                    self.load(extrapolate(theta, theta_ref, alpha))
                    at[0] = alpha

            def preference(alpha: float) -> tuple[float, float]:
                move(alpha)
                scores[alpha] = self.held_out_score()
                self.validated.add_margins(alpha, names, scores[alpha].margins)
                return scores[alpha].accuracy, scores[alpha].margin

            def answer(alpha: float) -> float:
                move(alpha)
                results = self.evaluate(split, name)
                self.validated.add_answers(alpha, results.rows)
                replies[alpha] = self.replies
                return results.accuracy.mean

            keep = self.settings.script.judged_alphas
            ranked = preference if keep is not None and keep + 1 < len(alphas) and self.held_out is not None else None
            choice = search_alpha(alphas, ranked, answer, keep)
            move(choice.alpha)
            measured = self.measure_health(replies[choice.alpha], guarded, scores.get(choice.alpha))
        choice, measured = self.share((choice, measured))
        state = extrapolate(theta, theta_ref, choice.alpha)
        self.load(state)
        return state, {
            "alpha": choice.alpha,
            "alpha_curve": choice.curve,
            "validation_accuracy": choice.accuracy,
            "health": measured.as_dict(),
        }

    def validate(self, name: str) -> float:
        """Accuracy on validation of the model as it is now; its rows are in `validated`."""
        results = self.evaluate(self.settings.script.validation_split, name)
        self.validated = ValidationRows()
        self.validated.add_answers(0.0, results.rows)
        return results.accuracy.mean

    def base_metrics(self) -> dict:
        """What rounds are compared with, measured once: the base's ``{validation_accuracy, health}``."""
        if self._base_metrics is None:
            found = None
            if self.rank == 0:
                self.load(self.theta_base)
                accuracy = self.evaluate(self.settings.script.validation_split, "base").accuracy.mean
                found = {"validation_accuracy": accuracy, "health": self.measure_health(self.replies).as_dict()}
            self._base_metrics = self.share(found)
        return self._base_metrics

    def measure_health(
        self, replies: list, likelihoods: bool = True, score: PreferenceScore | None = None
    ) -> RoundHealth:
        """Health of the model as it is now.

        Args:
            replies: its answers to validation questions.
            likelihoods: look at held-out pairs too.
            score: of these, if it is known.
        """
        if not likelihoods:
            return health(replies, math.nan, math.nan)
        if score is None and self.held_out is not None:
            score = self.held_out_score()
        return health(replies, *((score.chosen_logp, score.margin) if score else (0.0, 0.0)))

    def held_out_score(self) -> PreferenceScore:
        """How the model as it is now ranks the held-out pairs."""
        return preference_score(self.model, self.encoder, self.held_out)

    def share(self, value):
        """The first process's value, on every process."""
        holder = [value]
        if self.world > 1:
            broadcast_object_list(holder, from_process=0)
        return holder[0]

    def schedule(self, rows, start: int, count: int):
        """The `count` pairs after the first `start` of a run; every epoch has an order of its own.

        One run of 45 steps and three rounds of 15 so see the same pairs in the same order.
        """
        size, seed = len(rows), self.settings.training.seed
        epochs = range(start // size, (start + count - 1) // size + 1)
        order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(size) for epoch in epochs])
        offset = start - epochs[0] * size
        return rows.select(order[offset : offset + count].tolist())

    def train_dpo(
        self,
        rows,
        steps: int,
        learning_rate: float,
        label: str,
        sft_weight: float = 0.0,
        checkpoints: Path | None = None,
        limits: GuardLimits | None = None,
    ) -> tuple[dict, str | None]:
        """Train the model in place by DPO, with its present weights as the reference.

        Args:
            rows: pairs in the order of training, as :meth:`schedule` gives them.
            steps: optimizer steps.
            learning_rate: constant unless the settings name another schedule.
            label: for progress lines.
            sft_weight: weight of the SFT term on chosen answers.
            checkpoints: where the trainer's own checkpoints go; training goes on at the last one there.
            limits: end at these.

        Returns:
            (training metrics averaged over the last `logging_steps` steps, why a limit ended it or None).
        """
        args = self._arguments(steps, learning_rate, checkpoints)
        args.run_name = label
        if sft_weight > 0:
            losses = list(args.loss_type)
            args.loss_weights = [*(args.loss_weights or [1.0] * len(losses)), sft_weight]
            args.loss_type = [*losses, "sft"]
        stop = StopAtLimits(limits or GuardLimits(), args.beta, self._window)
        sharded = wants_sharding(args)
        trainer = VideoDPOTrainer(
            model=copy.deepcopy(self.model.cpu()) if sharded else self.model,  # what FSDP shares out stays shared out
            args=args,
            encoder=self.encoder,
            features=self.features,
            references=self.references,
            train_dataset=rows,
            processing_class=self.processor,
            peft_config=self._lora() if self.settings.model.use_peft else None,
            callbacks=[ProgressLines(self.log, label), *([stop] if limits else [])],
            say=self._note,
        )
        finish = (lambda: self._unsharded(trainer)) if sharded else (lambda: trainer.finish(merge=False))
        metrics = self._run(trainer, lambda: self._plain_model(finish()), checkpoints)
        trainer = None
        self._free()
        return metrics, stop.reason

    def train_sft(self, rows, steps: int, learning_rate: float, label: str) -> dict:
        """Train the model in place on the chosen answers of the same rows as DPO would see, in their order."""
        args = self._arguments(steps, learning_rate, None)
        args.save_strategy = "no"
        model = self.model
        if self.settings.model.use_peft:
            from peft import get_peft_model

            torch.manual_seed(args.seed)
            model = get_peft_model(model, self._lora())
        elif args.freeze_vision:
            freeze_vision(model)
        trainer = Trainer(
            model=model,
            args=args,
            data_collator=VideoSFTCollator(self.encoder, args.max_length),
            train_dataset=rows,
            callbacks=[ProgressLines(self.log, label)],
        )
        merged = (lambda: model.merge_and_unload()) if self.settings.model.use_peft else (lambda: model)
        return self._run(trainer, merged, None)

    def _arguments(self, steps: int, learning_rate: float, checkpoints: Path | None):
        args = copy.copy(self.settings.training)
        args.max_steps, args.learning_rate = steps, learning_rate
        # What the Trainer averages between two logs is not in its checkpoints; what it has logged is.
        args.logging_strategy, args.logging_steps = IntervalStrategy.STEPS, 1
        if checkpoints is None:
            args.save_strategy = "no"
        else:
            args.output_dir = str(checkpoints)
        return args

    def _unsharded(self, trainer: VideoDPOTrainer):
        """What a trainer has made of a model that was shared out, on every process, in the model that was not."""
        state = gathered_state(trainer.model)
        trainer.finish(merge=False)
        model = self.model
        if self.settings.model.use_peft:
            from peft import get_peft_model

            model = get_peft_model(model, self._lora())
        model.load_state_dict(state)
        return model.to(self.device)

    def _plain_model(self, model):
        """The model without the adapter it was trained with, whose product is in its weights now."""
        if not self.settings.model.use_peft:
            return model
        self.adapter = RoundAdapter.of(model)
        return model.merge_and_unload()

    @staticmethod
    def _free() -> None:
        """Give an optimizer's memory back: a trainer is part of reference cycles and would stay for a while."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _note(self, line: str) -> None:
        """An announcement of the trainer, once for all rounds."""
        line = line.removeprefix("note: ")
        if line not in self._noted:
            self._noted.add(line)
            self.log(f"note: {line}")

    def _lora(self):
        from trl import get_peft_config

        config = copy.copy(self.settings.model)
        if config.lora_target_modules is None:
            config.lora_target_modules = text_linear_names(self.model)
        return get_peft_config(config)

    def _run(self, trainer: Trainer, finish: Callable, checkpoints: Path | None) -> dict:
        trainer.remove_callback(PrinterCallback)
        last = self.share(last_step(checkpoints) if self.rank == 0 else None)
        if last is not None:
            self.log(f"going on at {last}")
        trainer.train(resume_from_checkpoint=last)
        self.model = finish()
        self.model.requires_grad_(True)
        self.model.eval()
        history = step_logs(trainer.state.log_history, "loss")
        last = history[-self._window :]
        metrics = {key: float(np.mean([e[key] for e in last])) for key in KEPT_METRICS if all(key in e for e in last)}
        loss = float(np.mean([entry["loss"] for entry in history]))
        if not np.isfinite(loss):
            raise Diverged(f"the training loss is {loss}: lower learning_rate ({trainer.args.learning_rate:g})")
        return {**metrics, "train_loss": loss}


def _revision(model) -> str | None:
    return None if model.model_revision == "main" else model.model_revision
