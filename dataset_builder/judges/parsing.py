"""Strict reading of a judge's reply: a whole, plausible verdict, or none at all.

Nothing is guessed: "4/5", "four", NaN, a 7 or two different objects are no verdicts. The predecessors' judges read 4.8
as 4, matched "yes" anywhere and averaged whatever numbers a reply held.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataset_builder.answers import is_refusal
from dataset_builder.models.base import BadReply
from dataset_builder.text import one_line

CRITERIA = ("relevance", "accuracy", "completeness", "clarity")
LOW, HIGH = 1, 5
VQA_LOW, VQA_HIGH = 0, 5
REASON = "reason"
_LONGEST = 20_000  # characters; a reply beyond it is no verdict, and must not cost time
_LONGEST_REASON = 1_000
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL | re.IGNORECASE)
_CORRECT = re.compile(r'"correct"\s*:\s*"')

VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        # An enum: some servers that hold replies to a schema know no minimum and maximum.
        **{name: {"type": "integer", "enum": list(range(LOW, HIGH + 1))} for name in CRITERIA},
        REASON: {"type": "string"},
    },
    "required": [*CRITERIA, REASON],
    "additionalProperties": False,
}
CHOICE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["A", "B", "tie"]}, REASON: {"type": "string"}},
    "required": ["better", REASON],
    "additionalProperties": False,
}
VQA_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "correct": {"type": "string", "enum": ["yes", "no"]},
        "score": {"type": "integer", "enum": list(range(VQA_LOW, VQA_HIGH + 1))},
        REASON: {"type": "string"},
    },
    "required": ["correct", "score", REASON],
    "additionalProperties": False,
}


class Refusal(BadReply):
    """The judge says that it will not judge."""


@dataclass(frozen=True)
class Verdict:
    """Scores from 1 to 5 in the order of :data:`CRITERIA`, and the judge's reason."""

    scores: tuple[float, ...]
    reason: str


@dataclass(frozen=True)
class Choice:
    """Which of two answers is better (``A``, ``B`` or ``tie``), and the judge's reason."""

    better: str
    reason: str


@dataclass(frozen=True)
class VQAVerdict:
    """Whether an answer is right, how good it is from 0 to 5, and the judge's reason."""

    correct: bool
    score: float
    reason: str


def parse_verdict(text: str) -> Verdict:
    """Read a verdict.

    Args:
        text: a reply: one JSON object with the four criteria and, if it likes, a reason; it may stand in a code fence
            or have words around it, as long as it is the only object.

    Raises:
        Refusal: the judge refuses.
        BadReply: anything else that is no verdict; one line.
    """
    found = one_object(text)
    check_keys(found, CRITERIA)
    return Verdict(tuple(_whole_score(name, found[name]) for name in CRITERIA), reason_of(found))


def parse_choice(text: str) -> Choice:
    """Read a verdict on two answers: ``{"better": "A" | "B" | "tie", "reason": …}``.

    Raises:
        Refusal, BadReply: as for :func:`parse_verdict`.
    """
    found = one_object(text)
    check_keys(found, ("better",))
    better = found["better"]
    if better not in ("A", "B", "tie"):
        raise BadReply(f"better: must be 'A', 'B' or 'tie', not {shown(better)}")
    return Choice(better, reason_of(found))


def parse_vqa(text: str) -> VQAVerdict:
    """Read a verdict of right or wrong: ``{"correct": "yes" | "no", "score": 0-5, "reason": …}``.

    A fraction is read as it stands: 4.8 is 4.8.

    Raises:
        Refusal, BadReply: as for :func:`parse_verdict`.
    """
    found = one_object(text)
    check_keys(found, ("correct", "score"))
    correct = yes_or_no("correct", found["correct"])
    return VQAVerdict(correct, number_of("score", found["score"], VQA_LOW, VQA_HIGH), reason_of(found))


def correct_place(text: str) -> int | None:
    """Where in a reply the word behind ``"correct": "`` begins; None when there is not exactly one such place."""
    places = [found.end() for found in _CORRECT.finditer(text)]
    return places[0] if len(places) == 1 else None


def one_object(text: str, read: Callable[[str, int], tuple[dict[str, Any], int]] | None = None) -> dict[str, Any]:
    """The one object of a reply.

    Args:
        text: a reply.
        read: ``read(body, start) -> (object, end)``, raising :class:`BadReply`; reads JSON by default.

    Raises:
        Refusal: there is none, and the judge refuses.
        BadReply: there is none, there is more than one, or it is damaged.
    """
    if not text.strip():
        raise BadReply("the reply is empty")
    if len(text) > _LONGEST:
        raise BadReply(f"the reply has {len(text)} characters; no verdict is that long")
    fenced = _FENCE.match(text)
    body = fenced.group(1) if fenced else text
    start = body.find("{")
    if start < 0:
        if is_refusal(text):
            raise Refusal(f"the judge refuses: {shown(text)}")
        raise BadReply(f"holds no JSON object: {shown(text)}")
    found, end = (read or read_json)(body, start)
    if "{" in body[end:]:
        raise BadReply("holds more than one object")
    return found


def read_json(body: str, start: int) -> tuple[dict[str, Any], int]:
    """The JSON object that begins at a place of a text, and where it ends.

    Raises:
        BadReply: it is damaged, holds a key twice, or a number that is none.
    """
    try:
        return _DECODER.raw_decode(body, start)
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        raise BadReply(f"is not valid JSON ({one_line(str(error).splitlines()[0])})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadReply(f"the key {shown(key)} stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def check_keys(found: dict[str, Any], needed: tuple[str, ...]) -> None:
    """An object holds these keys and no others but a reason.

    Raises:
        BadReply: one is missing or unknown.
    """
    for name in needed:
        if name not in found:
            raise BadReply(f"{name}: is missing")
    for name in found:
        if name not in needed and name != REASON:
            raise BadReply(f"{shown(name)}: is not a known key")


def number_of(name: str, value: Any, low: float, high: float) -> float:
    """A value that is a number from low to high.

    Raises:
        BadReply: it is none.
    """
    # The range also refuses 1e400, which JSON reads as infinity.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise BadReply(f"{name}: must be a number from {low} to {high}, not {shown(value)}")
    return float(value)


def _whole_score(name: str, value: Any) -> float:
    number = number_of(name, value, LOW, HIGH)
    if number != int(number):
        raise BadReply(f"{name}: must be a whole number from {LOW} to {HIGH}, not {shown(value)}")
    return number


def yes_or_no(name: str, value: Any) -> bool:
    """A value that is the word yes or no, in capitals or not, and nothing besides.

    Raises:
        BadReply: it is none.
    """
    if isinstance(value, str) and value.isascii() and value.lower() in ("yes", "no"):
        return value.lower() == "yes"
    raise BadReply(f"{name}: must be 'yes' or 'no', not {shown(value)}")


def reason_of(found: dict[str, Any]) -> str:
    """The reason in an object, or an empty one.

    Raises:
        BadReply: it is no text.
    """
    reason = found.get(REASON, "")
    if not isinstance(reason, str):
        raise BadReply(f"{REASON}: must be text, not {shown(reason)}")
    # Half a surrogate pair can be spelled in JSON and stored nowhere.
    return reason.encode("utf-8", "replace").decode()[:_LONGEST_REASON].strip()


def shown(value: Any) -> str:
    """A value in at most 80 characters of one line, for a message."""
    text = one_line(repr(value))
    return text if len(text) <= 80 else text[:77] + "…"
