"""Settings of an evaluation through LightEval, which has no arguments for them: environment variables and one YAML."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

DATA_VARIABLE = "MMAIP_V_DATA"  # dataset folder or Hub id that the tasks read
SETTINGS_VARIABLE = "MMAIP_V_EVAL"  # YAML file with the fields of EvalSettings
DEFAULT_DATASET = "mmaip-v"
DEFAULT_JUDGE: dict = {"kind": "reference"}  # the tasks in an evaluator's repo put that evaluator here


@dataclass
class EvalSettings:
    """What the YAML named by ``MMAIP_V_EVAL`` may hold; without it the defaults apply.

    Attributes:
        num_frames: frames a model sees of each video.
        blind: show the model the question without the video: a baseline. The judge still sees it.
        max_new_tokens: longest answer, in tokens.
        batch_size: questions per batch of the native-video model.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …; of the native-video model and of a local judge.
        dtype: ``auto``, ``float32``, ``bfloat16`` …
        data: folder, question file or Hub id by task, for tasks that read something else than ``MMAIP_V_DATA``.
        subset: question types and question ids to take; empty takes all.
        limit: take the first so many of these.
        media: ``media.json`` of a build, for datasets that hold no video.
        judge: specification of the judge, as in a build's YAML.
        max_unjudged: share of answers without a verdict above which the exit code is not 0.
        trained_on: dataset that the model was trained on: a figure whose judge shares a model with a judge that chose
            its pairs is labelled self-judged.
        cache: folder for what is kept between runs; ``mmaip-v`` in the Hugging Face cache by default.
    """

    num_frames: int = 8
    blind: bool = False
    max_new_tokens: int = 16
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "auto"
    data: dict[str, str] = field(default_factory=dict)
    subset: list[str] = field(default_factory=list)
    limit: int | None = None
    media: str | None = None
    judge: dict = field(default_factory=lambda: dict(DEFAULT_JUDGE))
    max_unjudged: float = 0.05
    trained_on: str | None = None
    cache: str | None = None

    def __post_init__(self):
        if min(self.num_frames, self.max_new_tokens, self.batch_size) < 1:
            raise ValueError("num_frames, max_new_tokens and batch_size must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: must be at least 1, not {self.limit}; leave it out to take all")
        if not 0 <= self.max_unjudged <= 1:
            raise ValueError(f"max_unjudged: is a share from 0 to 1, not {self.max_unjudged}")


def dataset_name() -> str:
    """The dataset folder or Hub id to evaluate on, for what is no task."""
    return os.environ.get(DATA_VARIABLE) or DEFAULT_DATASET


def task_data(task: str, default: str | None) -> tuple[str, bool]:
    """What a task reads.

    Returns:
        Folder, file or Hub id ("" if nothing says), and whether it was named for this task alone.
    """
    named = load_settings().data.get(task)
    return (named, True) if named else (os.environ.get(DATA_VARIABLE) or default or "", False)


def load_settings() -> EvalSettings:
    """The settings of this process.

    Raises:
        KitError: if the file is missing, or holds an unknown key or a wrong value; the judge's are checked too, before
            anything is generated that it could not judge.
    """
    path = os.environ.get(SETTINGS_VARIABLE)
    return _read(path) if path else EvalSettings()


def cache_folder() -> Path:
    """Where verdicts, replies of endpoints and facts about videos are kept between runs."""
    named = load_settings().cache
    if named:
        return Path(named).expanduser()
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "mmaip-v"


@cache
def _read(path: str) -> EvalSettings:
    from dataset_builder.errors import KitError
    from dataset_builder.settings import load_yaml, near, parse_judge
    from eval.benchmarks import BENCHMARKS

    settings = load_yaml(Path(path), EvalSettings)
    parse_judge(dict(settings.judge), f"{path}: judge")
    for task in settings.data:
        if task not in BENCHMARKS:
            hint = near(task, BENCHMARKS) or f"; tasks are {', '.join(BENCHMARKS)}"
            raise KitError(f"{path}: data: there is no task {task!r}{hint}")
    return settings
