"""Judges: functions that score an answer to a question about a video, each in a range it declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataset_builder.config import JudgeConfig, ReferenceJudgeConfig, VisualJudgeConfig, parse_judge
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
from dataset_builder.judges.reference import ReferenceJudge
from dataset_builder.judges.visual import VERIFIER_PROMPT, VisualJudge

__all__ = [
    "VERIFIER_PROMPT",
    "Criterion",
    "Judge",
    "JudgeItem",
    "ReferenceJudge",
    "Score",
    "VisualJudge",
    "aggregate",
    "disagreement",
    "error_scores",
    "judge_values",
    "make_judge",
    "make_scores",
    "settings_hash",
]


def make_judge(spec: Mapping[str, Any] | JudgeConfig, device: str = "auto") -> Judge:
    """Make a judge from an entry of a configuration's ``judges``.

    Args:
        spec: ``{"kind": "reference", ...}`` or ``{"kind": "visual", "model": PATH, ...}``; the keys are the fields of
            ``ReferenceJudgeConfig`` and ``VisualJudgeConfig`` in :mod:`dataset_builder.config`.
        device: where a judge with a model runs.

    Raises:
        KitError: unknown kind or key, wrong value, or a model that cannot be loaded.
    """
    config = parse_judge(dict(spec)) if isinstance(spec, Mapping) else spec
    if isinstance(config, ReferenceJudgeConfig):
        return ReferenceJudge(name=config.name, weight=config.weight)
    assert isinstance(config, VisualJudgeConfig)
    from dataset_builder.models import load_model

    model = load_model(config.model, revision=config.revision, device=device)
    return VisualJudge(model, num_frames=config.num_frames, name=config.name, weight=config.weight)
