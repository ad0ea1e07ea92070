"""Settings of the selection: which pairs are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dataset_builder.settings.judges import ConfirmConfig


@dataclass(frozen=True)
class DedupConfig:
    """Near-duplicate questions (on one video) and answers (of one question).

    Attributes:
        questions: `exact` compares normalised text on the same file and time range; `near` words and word pairs
            (Jaccard; MinHash of datasketch where a video has many) on the same video, also if it is another file with
            the same perceptual hash; `meaning` sentence embeddings likewise; `none` keeps all. The question with the
            smallest id stays.
        answers: as for questions, among the candidates of one question: of several that say the same, one is compared.
        threshold: similarity (0–1) from which two texts count as the same, for `near` and `meaning`.
        model: sentence-embedding model for `meaning`: a folder or Hub id.
    """

    questions: Literal["none", "exact", "near", "meaning"] = "exact"
    answers: Literal["none", "exact", "near", "meaning"] = "exact"
    threshold: float = 0.8
    model: str | None = None

    def __post_init__(self):
        if not 0 < self.threshold <= 1:
            raise ValueError("threshold must be above 0 and at most 1")
        if "meaning" in (self.questions, self.answers) and not self.model:
            raise ValueError("model: `meaning` needs a sentence-embedding model")


@dataclass(frozen=True)
class DecontaminationConfig:
    """An evaluation set that training pairs must not touch.

    Attributes:
        name: how reports call it.
        dataset: a dataset folder of the kit, or a Hub id (its `benchmark` or `questions` config is read); or
        questions: a JSONL, CSV or Parquet file of `{"video_id" and/or "sha256" and/or "phash" and/or "question"}`.
        videos: folder with the set's videos, hashed here.
        split: of the dataset.
        match: what counts as a leak: the same video id, content hash, near perceptual hash, normalised question.
        phash_distance: most differing bits of 64 of two perceptual hashes of one video.
    """

    name: str
    dataset: str | None = None
    questions: str | None = None
    videos: str | None = None
    split: str = "test"
    match: list[Literal["video_id", "sha256", "phash", "question"]] = field(
        default_factory=lambda: ["video_id", "sha256", "phash", "question"]
    )
    phash_distance: int = 6

    def __post_init__(self):
        if not (self.dataset or self.questions or self.videos):
            raise ValueError("give a dataset, a questions file or a folder of videos")
        if not 0 <= self.phash_distance <= 32:
            raise ValueError("phash_distance is a number of bits from 0 to 32")


@dataclass(frozen=True)
class PairsConfig:
    """Which pairs are kept.

    Attributes:
        min_margin: least difference of the aggregate scores (0–1).
        select: `best_worst` gives at most one pair a question, `all` every pair of answers that passes.
        max_per_question: most pairs of one question with `all`; the widest margins first.
        min_chosen: least score (0–1) of a chosen answer.
        max_rejected: most score of a rejected answer.
        ties: when several answers share the best (or worst) score: `id` decides by response id (a hash, favouring
            nobody), `shorter` and `longer` by length, `drop` drops the question.
        balance_length: drop pairs until the chosen answer is the longer one as often as the shorter one, bin by bin of
            length, so that the distributions of both lengths match.
        max_per_video: most pairs of one video; the widest margins first.
        max_chosen_per_member, max_rejected_per_member: most share (0–1) of pairs in which one member is chosen
            (rejected).
        dedup: near-duplicate questions and answers.
        decontaminate: evaluation sets to keep out.
        confirm: a pair judge that must prefer the chosen answer in both orders.
        diversity_model: sentence-embedding model (a folder or Hub id) for the distance among a question's answers;
            null reports distinct n-grams only.
    """

    min_margin: float = 0.1
    select: Literal["best_worst", "all"] = "best_worst"
    max_per_question: int = 4
    min_chosen: float | None = None
    max_rejected: float | None = None
    ties: Literal["id", "shorter", "longer", "drop"] = "id"
    balance_length: bool = False
    max_per_video: int | None = None
    max_chosen_per_member: float | None = None
    max_rejected_per_member: float | None = None
    dedup: DedupConfig = field(default_factory=DedupConfig)
    decontaminate: list[DecontaminationConfig] = field(default_factory=list)
    confirm: ConfirmConfig | None = None
    diversity_model: str | None = None

    def __post_init__(self):
        if not 0 <= self.min_margin <= 1:
            raise ValueError("min_margin must be from 0 to 1")
        for name in ("min_chosen", "max_rejected", "max_chosen_per_member", "max_rejected_per_member"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1")
        if self.max_per_question < 1 or (self.max_per_video is not None and self.max_per_video < 1):
            raise ValueError("max_per_question and max_per_video must be at least 1")
