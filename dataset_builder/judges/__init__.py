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
from dataset_builder.judges.legacy import HoundJudge, VideoChatGPTJudge
from dataset_builder.judges.legacy_parsing import parse_hound, parse_video_chatgpt
from dataset_builder.judges.pairwise import PairJudge, PairVerdict, make_pair_judge, pair_summary
from dataset_builder.judges.parsing import (
    CHOICE_SCHEMA,
    VERDICT_SCHEMA,
    VQA_SCHEMA,
    parse_choice,
    parse_verdict,
    parse_vqa,
)
from dataset_builder.judges.reference import ReferenceJudge
from dataset_builder.judges.visual import VERIFIER_PROMPT, VisualJudge
from dataset_builder.judges.vlm import VLMJudge
from dataset_builder.judges.vqa import VQAJudge
from dataset_builder.settings import (
    HoundJudgeConfig,
    JudgeConfig,
    ReferenceJudgeConfig,
    VideoChatGPTJudgeConfig,
    VisualJudgeConfig,
    VQAJudgeConfig,
    parse_judge,
)

if TYPE_CHECKING:
    from dataset_builder.models import CallCache

__all__ = [
    "CHOICE_SCHEMA",
    "VERDICT_SCHEMA",
    "VERIFIER_PROMPT",
    "VQA_SCHEMA",
    "Criterion",
    "HoundJudge",
    "Judge",
    "JudgeItem",
    "PairJudge",
    "PairVerdict",
    "ReferenceJudge",
    "Score",
    "VLMJudge",
    "VQAJudge",
    "VideoChatGPTJudge",
    "VisualJudge",
    "aggregate",
    "disagreement",
    "error_scores",
    "judge_values",
    "make_judge",
    "make_pair_judge",
    "make_scores",
    "pair_summary",
    "parse_choice",
    "parse_hound",
    "parse_verdict",
    "parse_video_chatgpt",
    "parse_vqa",
    "settings_hash",
    "without_frames",
]


def make_judge(spec: Mapping[str, Any] | JudgeConfig, device: str = "auto", cache: CallCache | None = None) -> Judge:
    """Make a judge from an entry of a configuration's ``judges``.

    Args:
        spec: ``{"kind": "reference" | "visual" | "vlm" | "vqa" | "video_chatgpt" | "hound", ...}``; the keys are the
            fields of the dataclasses in :mod:`dataset_builder.settings.judges`.
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
        return VisualJudge(model, config.num_frames, config.name, config.weight, config.use_references)
    common = {
        "name": config.name,
        "weight": config.weight,
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "max_retries": config.max_retries,
    }
    model = open_model(config, cache, device)
    if isinstance(config, VideoChatGPTJudgeConfig | HoundJudgeConfig):
        return (HoundJudge if isinstance(config, HoundJudgeConfig) else VideoChatGPTJudge)(model, **common)
    common |= {"num_frames": config.num_frames, "use_references": config.use_references}
    if isinstance(config, VQAJudgeConfig):
        return VQAJudge(model, probability=config.probability, **common)
    return VLMJudge(model, **common)


def without_frames(judge: Judge) -> Judge | None:
    """The same judge on the same model, shown no frames: a baseline; None if it looks at none or cannot do without."""
    if not judge.needs_frames:
        return None
    if isinstance(judge, VisualJudge):
        return VisualJudge(judge.model, 0, judge.name, judge.weight, judge.use_references)
    if isinstance(judge, VQAJudge):
        return VQAJudge(
            judge.model,
            name=judge.name,
            weight=judge.weight,
            num_frames=0,
            use_references=judge.use_references,
            max_new_tokens=judge.asker.decoding.max_new_tokens,
            temperature=judge.asker.decoding.temperature,
            max_retries=judge.asker.max_retries,
            probability=judge.probability,
        )
    return None
