"""Strict reading of a judge's reply: a whole, plausible verdict, or none at all.

Nothing is guessed: "4/5", "four", NaN, a 7 or two different objects are no verdicts. The predecessors' judges read 4.8
as 4, matched "yes" anywhere and averaged whatever numbers a reply held.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from dataset_builder.answers import is_refusal
from dataset_builder.models.base import BadReply
from dataset_builder.text import one_line

CRITERIA = ("relevance", "accuracy", "completeness", "clarity")
LOW, HIGH = 1, 5
REASON = "reason"
_LONGEST = 20_000  # characters; a reply beyond it is no verdict, and must not cost time
_LONGEST_REASON = 1_000
_FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL | re.IGNORECASE)

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


def parse_verdict(text: str) -> Verdict:
    """Read a verdict.

    Args:
        text: a reply: one JSON object with the four criteria and, if it likes, a reason; it may stand in a code fence
            or have words around it, as long as it is the only object.

    Raises:
        Refusal: the judge refuses.
        BadReply: anything else that is no verdict; one line.
    """
    found = _object(text)
    _check_keys(found, CRITERIA)
    return Verdict(tuple(_score(name, found[name]) for name in CRITERIA), _reason(found))


def parse_choice(text: str) -> Choice:
    """Read a verdict on two answers: ``{"better": "A" | "B" | "tie", "reason": …}``.

    Raises:
        Refusal, BadReply: as for :func:`parse_verdict`.
    """
    found = _object(text)
    _check_keys(found, ("better",))
    better = found["better"]
    if better not in ("A", "B", "tie"):
        raise BadReply(f"better: must be 'A', 'B' or 'tie', not {_shown(better)}")
    return Choice(better, _reason(found))


def _object(text: str) -> dict[str, Any]:
    if not text.strip():
        raise BadReply("the reply is empty")
    if len(text) > _LONGEST:
        raise BadReply(f"the reply has {len(text)} characters; no verdict is that long")
    fenced = _FENCE.match(text)
    body = fenced.group(1) if fenced else text
    start = body.find("{")
    if start < 0:
        if is_refusal(text):
            raise Refusal(f"the judge refuses: {_shown(text)}")
        raise BadReply(f"holds no JSON object: {_shown(text)}")
    try:
        found, end = _DECODER.raw_decode(body, start)
    except (json.JSONDecodeError, _Doubled, RecursionError, ValueError) as error:
        raise BadReply(f"is not valid JSON ({one_line(str(error).splitlines()[0])})") from None
    if "{" in body[end:]:
        raise BadReply("holds more than one object")
    return found


class _Doubled(Exception):
    """A key stands twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Doubled(f"the key {_shown(key)} stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _check_keys(found: dict[str, Any], needed: tuple[str, ...]) -> None:
    for name in needed:
        if name not in found:
            raise BadReply(f"{name}: is missing")
    for name in found:
        if name not in needed and name != REASON:
            raise BadReply(f"{_shown(name)}: is not a known key")


def _score(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadReply(f"{name}: must be a number from {LOW} to {HIGH}, not {_shown(value)}")
    if not LOW <= value <= HIGH or value != int(value):  # also refuses 1e400, which JSON reads as infinity
        raise BadReply(f"{name}: must be a whole number from {LOW} to {HIGH}, not {_shown(value)}")
    return float(value)


def _reason(found: dict[str, Any]) -> str:
    reason = found.get(REASON, "")
    if not isinstance(reason, str):
        raise BadReply(f"{REASON}: must be text, not {_shown(reason)}")
    # Half a surrogate pair can be spelled in JSON and stored nowhere.
    return reason.encode("utf-8", "replace").decode()[:_LONGEST_REASON].strip()


def _shown(value: Any) -> str:
    text = one_line(repr(value))
    return text if len(text) <= 80 else text[:77] + "…"
