"""What an evaluator is given and what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError
from dataset_builder.settings import near

if TYPE_CHECKING:
    from dataset_builder.media import Frames

NEEDED = ("video", "question", "answer")


@dataclass(frozen=True)
class Verdict:
    """What the evaluator says of one answer.

    Attributes:
        correct: whether the answer is right; None if the judge could not say (see ``error``), which is not a wrong one.
        probability: of a right answer, 0 to 1, where the judge gives more than yes and no.
        score: aggregate over the judge's criteria, 0 to 1.
        scores: raw value by criterion, on the judge's own scales.
        reason: the judge's, where it gives one; or why an answer is wrong that needs no judge.
        error: one line on why there is no verdict.
    """

    correct: bool | None
    probability: float | None = None
    score: float | None = None
    scores: Mapping[str, float] | None = None
    reason: str | None = None
    error: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Verdict:
        """From a verdict as it stands in results (:func:`eval.verdicts.verdict`)."""
        values = {field.name: row[field.name] for field in fields(cls)}
        return cls(**{**values, "correct": None if row["correct"] is None else bool(row["correct"])})


@dataclass(frozen=True, eq=False)
class Asked:
    """One answer to be judged, with what the judge is shown."""

    video: str | bytes | Frames | None
    question: str
    answer: str
    references: tuple[str, ...] = ()
    caption: str | None = None

    @classmethod
    def from_row(cls, row: object, number: int) -> Asked:
        """Check one row of a batch.

        Raises:
            KitError: naming the row and the field that is wrong.
        """
        if not isinstance(row, Mapping):
            raise KitError(f"row {number}: must be a mapping with video, question and answer, not {_kind(row)}")
        names = [field.name for field in fields(cls)]
        for key in row:
            if key not in names:
                hint = near(key, names) or f"; fields are {', '.join(names)}"
                raise KitError(f"row {number}: there is no field {key!r}{hint}")
        if missing := [key for key in NEEDED if key not in row]:
            raise KitError(f"row {number}: field '{missing[0]}' is missing")
        for key, blank in (("question", False), ("answer", True)):
            if not isinstance(row[key], str) or not (blank or row[key].strip()):
                raise KitError(f"row {number}: field '{key}' must be text, not {_kind(row[key]) or 'blank'}")
        if not isinstance(row.get("caption"), str | None):
            raise KitError(f"row {number}: field 'caption' must be text or None, not {_kind(row['caption'])}")
        return cls(
            _video(row["video"], number),
            row["question"],
            row["answer"],
            _references(row.get("references"), number),
            row.get("caption"),
        )

    def key(self) -> tuple:
        """By this the answers of a batch are ordered before they are judged, videos side by side."""
        return (_identity(self.video), self.question, self.answer, self.references, self.caption or "")


def _video(value: object, number: int) -> str | bytes | Frames | None:
    from dataset_builder.media import Frames

    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bytes | Frames):
        return value
    raise KitError(
        f"row {number}: field 'video' must be a path, bytes, Frames or None (for a judge that reads text only), "
        f"not {_kind(value)}"
    )


def _references(value: object, number: int) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise KitError(f"row {number}: field 'references' must be texts or None, not {_kind(value)}")


def _identity(video: str | bytes | Frames | None) -> str:
    if video is None or isinstance(video, str):
        return video or ""
    return hashlib.sha256(video).hexdigest() if isinstance(video, bytes) else video.digest


def _kind(value: object) -> str:
    """The type of a wrong value; nothing for a text, which is wrong by being blank."""
    return "" if isinstance(value, str) else type(value).__name__
