"""What `recipes/iter_w2s.py` can be told: three dataclasses for TRL's parser, and the checks on them.

Torch, transformers and TRL are imported by :func:`parse` only, after :func:`precheck` has seen that the base checkpoint
and the dataset exist: a wrong path should not take seven seconds to say so.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError, run_cli
from recipes.arms.specs import DEFAULT_ARMS

# Training arguments that change what is printed or where things go, but not the weights.
INCIDENTAL = (
    *("output_dir", "logging_", "report_to", "run_name", "disable_tqdm", "log_", "dataloader_", "hub_", "push_to_hub"),
    *("eval_", "do_", "save_", "ddp_", "use_cpu", "project", "trackio", "load_best", "metric_for", "greater_is"),
    *("include_", "per_device_eval", "resume_from", "precompute_ref", "local_rank", "label_names", "batch_eval"),
    *("feature_cache", "reference_cache", "self_check", "media"),
)


@dataclass
class IterW2SArguments:
    """Rounds of video DPO with extrapolation. Everything else is TRL's `DPOConfig` and `ModelConfig`.

    Attributes:
        dataset_name: dataset folder made by `python -m dataset_builder build`, or NAMESPACE/NAME on the Hub.
        dataset_train_split: split of `preferences` to train on.
        validation_split: split of `benchmark` on which alpha and the learning rate are chosen.
        test_split: split of `benchmark` the arms are reported on.
        rounds: rounds; each trains `max_steps` optimizer steps from where the last one ended.
        alphas: extrapolation steps to choose from in each round; must contain 0.
        judged_alphas: how many of them, besides 0, are judged by answers on validation; held-out preferences, which
            cost no generation, leave out the rest. None judges all.
        stop_early: end when neither a round nor its extrapolation is better on validation than what is there.
        sft_weight: weight of the SFT term on chosen answers, against likelihood displacement; 0 leaves it out.
        pairs: `fixed` trains on the dataset's pairs; `on_policy` rebuilds them before each round with fresh answers of
            the model as it is then.
        judges: who judges fresh answers, as in a build's YAML (JSON strings on a command line).
        judge_names: only these judges count, for fixed pairs too; None counts all.
        own_samples: fresh answers per question.
        own_temperature: at which they are sampled.
        error_below: an answer whose aggregate is below this is an error; questions without one are dropped.
        slices: every round gets questions of its own.
        max_malformed: share of empty or unfinished answers above which a round is not kept.
        max_repeated: share of answers that repeat themselves, likewise.
        max_chosen_drop: nats that chosen answers may lose against the base, likewise.
        max_margin: reward margin, likewise.
        max_length_ratio: answers may be so many times longer or shorter than the base's.
        max_new_tokens: longest answer in evaluation.
        validation_limit: use the first so many validation questions only.
        save_dtype: type of the saved weights; rounds hand over fp32 whatever it is.
        arms: train and evaluate the controls too.
        arm_names: which (see `recipes/arms/specs.py`); base is always one of them.
        learning_rates: candidates of the learning-rate search that every arm gets (with --arms).
        workers: one-thread processes that share the arms' runs (with --arms).
        draws: random sign flips of the paired tests (with --arms).
        overwrite: replace rounds of another configuration.
    """

    dataset_name: str | None = field(default=None, metadata={"help": "Dataset folder, or NAMESPACE/NAME on the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of `preferences` to train on."})
    validation_split: str = field(default="validation", metadata={"help": "Split of `benchmark` to choose alpha on."})
    test_split: str = field(default="test", metadata={"help": "Split of `benchmark` the arms are reported on."})
    rounds: int = field(default=3, metadata={"help": "Rounds of max_steps optimizer steps each."})
    alphas: list[float] = field(
        default_factory=lambda: [0.0, 0.25, 0.5, 1.0], metadata={"help": "Extrapolation steps to choose from."}
    )
    judged_alphas: int | None = field(default=2, metadata={"help": "How many of them are judged by answers."})
    stop_early: bool = field(default=True, metadata={"help": "End when no round and no alpha helps."})
    sft_weight: float = field(default=0.0, metadata={"help": "Weight of the SFT term on chosen answers."})
    pairs: str = field(default="fixed", metadata={"help": "fixed, or on_policy: rebuilt before each round."})
    judges: list[str] | None = field(default=None, metadata={"help": "Judges of fresh answers, as in a build."})
    judge_names: list[str] | None = field(default=None, metadata={"help": "Only these judges count."})
    own_samples: int = field(default=4, metadata={"help": "Fresh answers per question."})
    own_temperature: float = field(default=1.0, metadata={"help": "At which they are sampled."})
    error_below: float = field(default=0.5, metadata={"help": "Below this aggregate an answer is an error."})
    slices: bool = field(default=False, metadata={"help": "Every round gets questions of its own."})
    max_malformed: float = field(default=0.1, metadata={"help": "Limit of empty or unfinished answers."})
    max_repeated: float = field(default=0.1, metadata={"help": "Limit of answers that repeat themselves."})
    max_chosen_drop: float = field(default=10.0, metadata={"help": "Nats chosen answers may lose."})
    max_margin: float = field(default=50.0, metadata={"help": "Limit of the reward margin."})
    max_length_ratio: float = field(default=3.0, metadata={"help": "Limit of the change in answer length."})
    max_new_tokens: int = field(default=16, metadata={"help": "Longest answer in evaluation."})
    validation_limit: int | None = field(default=None, metadata={"help": "Use so many validation questions only."})
    save_dtype: str = field(default="float32", metadata={"help": "Type of the saved weights: float32 or bfloat16."})
    arms: bool = field(default=False, metadata={"help": "Train and evaluate the controls too."})
    arm_names: list[str] = field(default_factory=lambda: list(DEFAULT_ARMS), metadata={"help": "Which controls."})
    learning_rates: list[float] | None = field(default=None, metadata={"help": "Learning rates every arm may choose."})
    workers: int = field(default=1, metadata={"help": "One-thread processes that share the arms' runs."})
    draws: int = field(default=100_000, metadata={"help": "Sign flips of the paired tests."})
    overwrite: bool = field(default=False, metadata={"help": "Replace rounds of another configuration."})

    def __post_init__(self):
        self.alphas = sorted({_number("alphas", a) for a in self.alphas}, key=abs)
        if self.learning_rates is not None:
            self.learning_rates = sorted({_number("learning_rates", r) for r in self.learning_rates})
        if 0.0 not in self.alphas:
            raise KitError(f"alphas {self.alphas} must contain 0: no extrapolation has to be one of the choices")
        if self.rounds < 1 or self.workers < 1 or self.own_samples < 1 or self.draws < 1:
            raise KitError("rounds, workers, own_samples and draws must be at least 1")
        if self.pairs not in ("fixed", "on_policy"):
            raise KitError(f"pairs is {self.pairs!r}; choose fixed or on_policy")
        self.judges = [_judge(number, spec) for number, spec in enumerate(self.judges or [], 1)]
        if self.pairs == "on_policy" and not self.judges:
            raise KitError("pairs: on_policy needs `judges:`, as in a build's YAML, to judge fresh answers")
        if not self.own_temperature > 0:
            raise KitError("own_temperature must be above 0: greedy answers would all be the same")
        if self.sft_weight < 0:
            raise KitError(f"sft_weight is {self.sft_weight}, it must not be negative")
        if self.save_dtype not in ("float32", "bfloat16", "float16"):
            raise KitError(f"save_dtype is {self.save_dtype!r}; choose float32, bfloat16 or float16")


@dataclass
class Settings:
    """One parsed command.

    Attributes:
        script: :class:`IterW2SArguments`.
        training: TRL's `DPOConfig` with the kit's defaults.
        model: TRL's `ModelConfig`.
        argv: the words it was parsed from; workers parse the same.
    """

    script: IterW2SArguments
    training: Any
    model: Any
    argv: list[str]

    def identity(self) -> dict[str, Any]:
        """Everything that decides the trained weights, as JSON values, except dataset and base (known by content)."""
        names = ("rounds", "alphas", "judged_alphas", "stop_early", "sft_weight", "max_new_tokens", "validation_limit")
        names += ("pairs", "judges", "judge_names", "own_samples", "own_temperature", "error_below", "slices")
        names += ("save_dtype", "dataset_train_split", "validation_split")
        names += tuple(name for name in vars(self.script) if name.startswith("max_"))
        script = {name: getattr(self.script, name) for name in names}
        return {**identity_of(self.training, self.model), **script}

    def limits(self):
        """The guards' limits, as `recipes.guards.GuardLimits`."""
        from recipes.guards import GuardLimits

        script = self.script
        return GuardLimits(
            malformed=script.max_malformed,
            repeated=script.max_repeated,
            chosen_logp_drop=script.max_chosen_drop,
            margin=script.max_margin,
            length_ratio=script.max_length_ratio,
        )


def identity_of(training, model) -> dict[str, Any]:
    """What of TRL's arguments decides the trained weights, as JSON values."""
    fields = {k: v for k, v in training.to_dict().items() if not k.startswith(INCIDENTAL)}
    lora = {k: v for k, v in vars(model).items() if k.startswith(("lora_", "use_", "dtype"))}
    return {**fields, **(lora if model.use_peft else {"use_peft": False})}


def difference(old: dict, new: dict) -> str:
    """What changed between two identities, in a few words."""
    new = json.loads(json.dumps(new, default=str))
    changed = [f"{k} {old.get(k)} → {new.get(k)}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return ", ".join(changed[:4]) + (" …" if len(changed) > 4 else "") if old and changed else "no record of it"


def parse(argv: list[str]) -> Settings:
    """Parse a command line with an optional `--config FILE.yaml` whose values it overrides.

    Raises:
        KitError: for a missing file, an unknown key in the YAML or a value out of range.
    """
    precheck(argv)
    # TRL still sets names that transformers has renamed; nothing a person who types this command could change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import yaml
    from trl import ModelConfig, TrlParser

    from recipes.round_config import IterW2SConfig

    parser = TrlParser((IterW2SArguments, IterW2SConfig, ModelConfig), description=IterW2SArguments.__doc__)
    parser.error = refuse
    try:
        script, training, model = parser.parse_args_and_config(argv)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise KitError(f"configuration: {str(error).strip().splitlines()[0]}") from error
    _check(script, training, model)
    return Settings(script, training, model, list(argv))


def refuse(message: str) -> None:
    """What a parser calls in place of printing several pages of usage.

    Raises:
        KitError: always.
    """
    raise KitError(f"{message} (--help lists everything)")


def precheck(argv: list[str]) -> None:
    """Check files without importing anything heavy; values that only TRL's parser can read are left to it.

    Raises:
        KitError: naming the configuration, base checkpoint or dataset that is missing.
    """
    if any(word in ("-h", "--help") for word in argv):
        return
    values: dict[str, Any] = {}
    if (config := option(argv, "config")) is not None:
        values.update(read_yaml(config))
    for name in ("model_name_or_path", "dataset_name", "media"):
        value = option(argv, name) or values.get(name)
        if value is None and name != "media":
            raise KitError(f"--{name} is needed (or `{name}:` in the YAML)")
        if value is None or Path(value).exists():
            continue
        if name != "media" and _hub_id(str(value)):
            continue
        hint = "run make demo first" if name != "media" else "it stands in the work folder of the build"
        raise KitError(f"{value} is missing: {hint} (--{name})")


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        KitError: when the file is missing, broken, or something else.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        line = getattr(error, "problem_mark", None)
        raise KitError(f"{path}:{line.line + 1 if line else 1}: not valid YAML") from None
    if not isinstance(content, dict):
        raise KitError(f"{path}: expected `name: value` lines")
    return content


def _check(script: IterW2SArguments, training, model) -> None:
    if training.max_steps < 1:
        raise KitError("--max_steps is needed: the optimizer steps of one round")
    if model.dtype not in (None, "float32"):
        raise KitError(f"dtype is {model.dtype}: extrapolation needs fp32 masters; use --bf16 true for mixed precision")
    if model.use_peft and model.use_dora:
        raise KitError("use_dora: a DoRA adapter cannot be extrapolated; use plain LoRA")
    if model.load_in_4bit or model.load_in_8bit:
        raise KitError("quantized bases have no fp32 masters to extrapolate from; load them in full")
    if (not training.precompute_ref_log_probs and not model.use_peft) or training.sync_ref_model:
        # TRL would load the reference from the checkpoint the run began with: wrong from the second round on.
        raise KitError("precompute_ref_log_probs must stay true and sync_ref_model false: each round has its reference")


def option(argv: list[str], name: str) -> str | None:
    """The value that follows `--name` on a command line, before anything is parsed."""
    for i, word in enumerate(argv):
        if word == f"--{name}" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"--{name}="):
            return word.split("=", 1)[1]
    return None


def _hub_id(value: str) -> bool:
    return value.count("/") == 1 and not value.startswith((".", "/", "~", "runs/"))


def _judge(number: int, spec: Any) -> dict[str, Any]:
    if isinstance(spec, str):
        try:
            spec = json.loads(spec)
        except ValueError:
            raise KitError(f"judges: entry {number} is not JSON; use a YAML mapping in --config") from None
    if not isinstance(spec, dict):
        raise KitError(f"judges: entry {number} is not a mapping with `kind`")
    return spec


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise KitError(f"{name}: {value!r} is not a number")
    return number


def run_recipe(main: Callable[[], int | None]) -> int:
    """Run a training command as `run_cli` does, with the surroundings every recipe needs.

    Returns:
        The exit code.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or DDP warns about a flag that only the Trainer sets
    code = run_cli(lambda: _within_memory(main))
    if "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized():
        sys.modules["torch"].distributed.destroy_process_group()
    return code


def _within_memory(main: Callable[[], int | None]) -> int | None:
    """Say what helps where torch says that memory is out."""
    try:
        return main()
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise KitError(
            f"{str(error).splitlines()[0].rstrip('. ')}: lower per_device_train_batch_size or num_frames, set "
            "gradient_checkpointing or use_peft; `python -m recipes.memory CONFIG.yaml` estimates what a run takes"
        ) from error
