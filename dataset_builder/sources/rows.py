"""One raw row under the kit's names: which fields it may have, what they must hold, and the ids that follow."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

from dataset_builder.errors import RowError
from dataset_builder.settings import SPLITS, SplitConfig, near
from dataset_builder.text import one_line

FIELDS = ("video", "question", "answer", "answers", "license", "id", "question_type", "split", "source")
PAIR_FIELDS = ("chosen", "rejected", "model_chosen", "model_rejected", "score_chosen", "score_rejected")
_KINDS = {
    "question": "missing_question",
    "video": "missing_video",
    "chosen": "missing_chosen",
    "rejected": "missing_rejected",
}
Wrong = Callable[[str | None, str, str], RowError]


def split_of(sha256: str, shares: SplitConfig) -> str:
    """The split of a video, decided by its bytes alone: the same in every build, whatever else is in the folder."""
    # Hashed again: the file's own hash also orders and names things, and must not be correlated with the split.
    point = int(hashlib.sha256(f"split {sha256}".encode()).hexdigest()[:13], 16) / 16**13  # [0, 1), exact in a float
    if point < shares.test:
        return "test"
    return "validation" if point < shares.test + shares.validation else "train"


def question_id(sha256: str, start: float | None, end: float | None, question: str) -> str:
    """Id of a question that brings none: the same video part and text give the same id on every machine."""
    text = json.dumps([sha256, start, end, question], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def clean_row(row: dict[str, Any], file: str, number: int, pairs: bool = False) -> dict[str, Any]:
    """Check a row's fields and strip their texts.

    Args:
        row: as a reader gives it. ``video`` is a name, or ``{"bytes", "path"}``.
        file: for messages.
        number: of the row, from 1.
        pairs: whether it must hold ``chosen`` and ``rejected`` too.

    Returns:
        ``video``, ``question``, ``answers`` (the best first) and those of the optional fields that it has.

    Raises:
        RowError: a field is missing, of another kind, misspelt or empty.
    """

    def wrong(field: str | None, reason: str, kind: str) -> RowError:
        return RowError(file, number, field, reason, kind)

    _check_names(row, wrong)
    clean: dict[str, Any] = {"origin": row.get("origin", "given")}
    for name in (*FIELDS, *(PAIR_FIELDS if pairs else ())):
        value = row.get(name)
        if value is None or name == "answers":
            continue
        if name.startswith("score_"):
            clean[name] = _score(name, value, wrong)
        elif name == "video" and isinstance(value, dict):
            clean[name] = _embedded(value, wrong)
        else:
            if name in ("answer", "id", "question_type"):
                value = _number_as_text(value)  # {"answer": 3} means the text "3"
            clean[name] = _text(name, value, wrong)
    for name in ("video", "question", *(("chosen", "rejected") if pairs else ())):
        if name not in clean:
            raise wrong(name, "is missing", _KINDS[name])
    if clean.get("split", "train") not in SPLITS:
        hint = near(clean["split"], SPLITS, cutoff=0.3)
        raise wrong("split", f"{clean['split']!r} is not one of {', '.join(SPLITS)}{hint}", "unknown_split")
    if pairs and clean["chosen"] == clean["rejected"]:
        raise wrong("rejected", "says the same as 'chosen': nothing is preferred", "identical_pair")
    clean["answers"] = _answers(row.get("answers"), clean.pop("answer", None), wrong)
    return clean


def _check_names(row: dict, wrong: Wrong) -> None:
    for name in row:
        # Other fields are a person's own and left alone, but a misspelt one must not be lost in silence.
        if name in FIELDS or name in PAIR_FIELDS:
            continue
        hint = near(name, [known for known in FIELDS if known not in row], cutoff=0.8) if len(name) > 3 else ""
        if hint:
            raise wrong(one_line(name), f"is not a known field{hint}", "unknown_field")
        if name in ("start", "end") and row[name] is not None:
            raise wrong(name, "parts of a video are not read: cut the clip into a file of its own", "unsupported_field")


def _number_as_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _text(name: str, value: Any, wrong: Wrong, entry: str = "") -> str:
    kind = _KINDS.get(name, "invalid")
    if not isinstance(value, str):
        raise wrong(name, f"{entry}must be text, not {type(value).__name__}", kind)
    if not value.strip():
        raise wrong(name, f"{entry}is empty", kind)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and no file can hold
        raise wrong(name, f"{entry}holds a character that is not valid Unicode", kind) from None
    return value.strip()


def _embedded(value: dict, wrong: Wrong) -> dict[str, Any]:
    """A video of a `Video` column, not decoded."""
    data, path = value.get("bytes"), value.get("path")
    if data is None and path is None:
        raise wrong("video", "holds no video (a dataset of ids: attach the videos to it first)", "missing_video")
    if not isinstance(data, bytes | None) or not isinstance(path, str | None):
        raise wrong("video", "must be the name of a file, or a video's bytes", "missing_video")
    return {"bytes": data, "path": path}


def _score(name: str, value: Any, wrong: Wrong) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise wrong(name, "must be a number", "invalid")
    return float(value)


def _answers(value: Any, answer: str | None, wrong: Wrong) -> list[str]:
    """The answers with ``answer`` in front, each once."""
    if value is None:
        value = []
    if not isinstance(value, list):
        raise wrong("answers", "must be a list of texts", "invalid")
    texts = [] if answer is None else [answer]
    for entry in value:
        texts.append(_text("answers", _number_as_text(entry), wrong, "an entry "))
    return list(dict.fromkeys(texts))
