"""What there is to label: the answers of one results file, or the answers of two side by side, video by video."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from dataset_builder.errors import KitError
from eval.gold.rows import response_hash

if TYPE_CHECKING:
    from eval.results import Results


@dataclass(frozen=True)
class Item:
    """One thing to label.

    Attributes:
        question_id: the question.
        video_id: its video.
        question: text.
        references: reference answers, not shown unless asked for.
        responses: the answer, or both answers.
        models: who gave them; never shown.
    """

    question_id: str
    video_id: str
    question: str
    references: tuple[str, ...]
    responses: tuple[str, ...]
    models: tuple[str, ...] = field(repr=False)

    @property
    def is_pair(self) -> bool:
        """Whether two answers are to be compared."""
        return len(self.responses) == 2

    @property
    def is_settled(self) -> bool:
        """Whether two answers are equal: a tie that nobody has to be asked about."""
        return self.is_pair and self.responses[0] == self.responses[1]

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """Hash of each answer."""
        return tuple(response_hash(response) for response in self.responses)

    @cached_property
    def key(self) -> tuple:
        """The same as :attr:`eval.gold.rows.GoldLabel.item` of its labels."""
        return (self.question_id, *sorted(self.hashes))

    def order(self, annotator: str) -> tuple[int, ...]:
        """Which answer stands left for this annotator: a coin that falls the same way each time they come back."""
        if not self.is_pair:
            return (0,)
        coin = hashlib.sha256(f"{annotator}:{self.question_id}:{':'.join(self.key[1:])}".encode()).digest()[0] & 1
        return (1, 0) if coin else (0, 1)


def items_of(results: Results, videos: Iterable[str]) -> list[Item]:
    """Every answer about these videos, in the order of the videos; rows without an answer are left out."""

    def item(row: dict) -> Item | None:
        if not isinstance(row["response"], str):
            return None
        return _item(row, (row["response"],), (results.model or results.name,))

    return _by_video(results, videos, item)


def paired_items_of(a: Results, b: Results, videos: Iterable[str]) -> list[Item]:
    """Every question about these videos that both have answered, in the order of the videos.

    Raises:
        KitError: if one question id stands for different questions.
    """
    others = {row["question_id"]: row for row in b.rows}

    def item(row: dict) -> Item | None:
        other = others.get(row["question_id"])
        if other is None:
            return None
        for key in ("video_id", "question"):
            if row[key] != other[key]:
                raise KitError(
                    f"'{a.name}' and '{b.name}' disagree about field '{key}' of question {row['question_id']}: "
                    "they were not measured on the same benchmark"
                )
        if not (isinstance(row["response"], str) and isinstance(other["response"], str)):
            return None
        return _item(row, (row["response"], other["response"]), (a.model or a.name, b.model or b.name))

    return _by_video(a, videos, item)


def common_videos(a: Results, b: Results) -> list[str]:
    """Videos with a question that both hold.

    Raises:
        KitError: if there is none.
    """
    asked = {row["question_id"] for row in b.rows}
    videos = [row["video_id"] for row in a.rows if row["question_id"] in asked]
    if not videos:
        raise KitError(f"'{a.name}' and '{b.name}' share no question")
    return videos


def _item(row: dict, responses: tuple[str, ...], models: tuple[str, ...]) -> Item:
    return Item(
        question_id=str(row["question_id"]),
        video_id=str(row["video_id"]),
        question=row["question"],
        references=tuple(row["answers"] or ()),
        responses=responses,
        models=models,
    )


def _by_video(results: Results, videos: Iterable[str], make: Callable[[dict], Item | None]) -> list[Item]:
    rows: dict[str, list[Item]] = defaultdict(list)
    for row in results.rows:
        if (item := make(row)) is not None:
            rows[item.video_id].append(item)
    return [item for video_id in videos for item in rows[video_id]]
