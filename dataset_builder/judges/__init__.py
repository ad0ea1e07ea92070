"""Judges: functions that score an answer to a question about a video, each in a range it declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataset_builder.judges.base import (
    Criterion,
    Judge,
    JudgeItem,
    Score,
    aggregate,
    disagreement,
    error_scores,
    judge_values,
    make_scores,
    settings_hash,
)
from dataset_builder.judges.pairwise import PairJudge, PairVerdict, make_pair_judge
from dataset_builder.judges.parsing import CHOICE_SCHEMA, VERDICT_SCHEMA, parse_choice, parse_verdict
from dataset_builder.judges.reference import ReferenceJudge
from dataset_builder.judges.visual import VERIFIER_PROMPT, VisualJudge
from dataset_builder.judges.vlm import VLMJudge
from dataset_builder.settings import JudgeConfig, ReferenceJudgeConfig, VisualJudgeConfig, parse_judge

if TYPE_CHECKING:
    from dataset_builder.models import CallCache

__all__ = [
    "CHOICE_SCHEMA",
    "VERDICT_SCHEMA",
    "VERIFIER_PROMPT",
    "Criterion",
    "Judge",
    "JudgeItem",
    "PairJudge",
    "PairVerdict",
    "ReferenceJudge",
    "Score",
    "VLMJudge",
    "VisualJudge",
    "aggregate",
    "disagreement",
    "error_scores",
    "judge_values",
    "make_judge",
    "make_pair_judge",
    "make_scores",
    "parse_choice",
    "parse_verdict",
    "settings_hash",
]


def make_judge(spec: Mapping[str, Any] | JudgeConfig, device: str = "auto", cache: CallCache | None = None) -> Judge:
    """Make a judge from an entry of a configuration's ``judges``.

    Args:
        spec: ``{"kind": "reference" | "visual" | "vlm", ...}``; the keys are the fields of the dataclasses in
            :mod:`dataset_builder.settings.judges`.
        device: where a judge with a model of its own runs.
        cache: of the calls to endpoints.

    Raises:
        KitError: unknown kind or key, wrong value, or a model that cannot be loaded.
    """
    config = parse_judge(dict(spec)) if isinstance(spec, Mapping) else spec
    if isinstance(config, ReferenceJudgeConfig):
        return ReferenceJudge(name=config.name, weight=config.weight)
    from dataset_builder.models import load_model, open_model

    if isinstance(config, VisualJudgeConfig):
        model = load_model(config.model, revision=config.revision, device=device)
        return VisualJudge(model, num_frames=config.num_frames, name=config.name, weight=config.weight)
    return VLMJudge(
        open_model(config, cache, device),
        name=config.name,
        weight=config.weight,
        num_frames=config.num_frames,
        use_references=config.use_references,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        max_retries=config.max_retries,
    )
