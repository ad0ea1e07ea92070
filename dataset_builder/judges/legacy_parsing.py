"""Strict reading of replies to the predecessors' prompts.

Their own readers took 4.8 for 4, a "yes" wherever it stood, the mean of whatever numbers there were, and a refusal for
the lowest score. Here a reply says one thing in one of the forms below, or it is no verdict.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from dataset_builder.answers import is_refusal
from dataset_builder.judges.parsing import (
    Refusal,
    check_keys,
    number_of,
    one_object,
    read_json,
    reason_of,
    shown,
    yes_or_no,
)
from dataset_builder.models.base import BadReply

HOUND_LOW, HOUND_HIGH = 1, 5
_LONGEST = 2_000  # characters; nobody was asked for more than a few
_FENCE = re.compile(r"\A\s*```[a-z]*\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
_BOLD = re.compile(r"(\*{1,3}|__|`)(?=\S)([^*_`\n]+?)(?<=\S)\1")
_LABEL = r"(?P<label>(?:(?:the|final|overall|total)\s+){0,2}(?:score|rating)(?:\s*[:=]\s*|\s+is\s+|\s+))"
_LINE = re.compile(rf"(?:#+\s*)?{_LABEL}?(?P<score>[0-9](?:\.[0-9]+)?)(?:\s*/\s*5|\s+out\s+of\s+5)?\.?", re.IGNORECASE)
_ODD_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\[^\\'\"abfnrtvxuU\n]")
_NUMBER = re.compile(r"\d|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Match:
    """Whether a prediction matches the reference, and how well from 0 to 5."""

    correct: bool
    score: float


def parse_video_chatgpt(text: str) -> Match:
    """Read ``{'pred': 'yes' | 'no', 'score': 0-5}``, as a Python dictionary or as JSON.

    Raises:
        Refusal: the judge refuses.
        BadReply: anything else that is no such verdict; one line.
    """
    found = one_object(text, read_dictionary)
    check_keys(found, ("pred", "score"))
    reason_of(found)
    return Match(yes_or_no("pred", found["pred"]), number_of("score", found["score"], 0, 5))


def parse_hound(text: str) -> float:
    """Read one score from 1 to 5.

    Args:
        text: a reply: ``4``, ``Score: 4``, ``**Score**: 2/5``, ``4 out of 5`` or ``{"score": 4}``. Around a line that
            says ``Score`` there may be other lines, as long as they hold no number in digits or words.

    Raises:
        Refusal: the judge refuses.
        BadReply: anything else: no score, several, a range, another scale.
    """
    if "{" in text:
        found = one_object(text, read_dictionary)
        check_keys(found, ("score",))
        reason_of(found)
        return number_of("score", found["score"], HOUND_LOW, HOUND_HIGH)
    if not text.strip():
        raise BadReply("the reply is empty")
    if len(text) > _LONGEST:
        raise BadReply(f"the reply has {len(text)} characters; no score is that long")
    if any(map(is_refusal, text.splitlines())):  # also beside a score
        raise Refusal(f"the judge refuses: {shown(text)}")
    fenced = _FENCE.match(text)
    body = fenced.group(1) if fenced else text
    lines = [line for line in (_BOLD.sub(r"\2", line.strip()) for line in body.splitlines()) if line]
    found = [(line, match) for line in lines if (match := _LINE.fullmatch(line))]
    if len(found) != 1:
        raise BadReply(f"holds {'no score' if not found else 'several scores'}: {shown(text)}")
    score, others = found[0][1], [line for line in lines if line is not found[0][0]]
    if others and (not score["label"] or any(map(_NUMBER.search, others))):
        raise BadReply(f"holds more than one score: {shown(text)}")
    return number_of("score", float(score["score"]), HOUND_LOW, HOUND_HIGH)


def read_dictionary(body: str, start: int) -> tuple[dict[str, Any], int]:
    """The flat dictionary that begins at a place of a text, in JSON's or in Python's spelling, and where it ends.

    Raises:
        BadReply: it is damaged, holds a key twice, or anything but texts and numbers.
    """
    try:
        return read_json(body, start)
    except BadReply as error:
        end = _end(body, start)
        if end is None:
            raise error
    try:
        if _ODD_ESCAPE.search(body, start, end):  # of which Python would only warn
            raise ValueError("an escape that is none")
        node = ast.parse(body[start:end], mode="eval").body
        if not isinstance(node, ast.Dict) or None in node.keys:
            raise ValueError("no dictionary")
        pairs = [(ast.literal_eval(key), ast.literal_eval(value)) for key, value in zip(node.keys, node.values)]
        found = dict(pairs)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise BadReply("is neither JSON nor a Python dictionary") from None
    if len(found) < len(pairs):
        raise BadReply("a key stands twice")
    return found, end


def _end(body: str, start: int) -> int | None:
    """Where the braces that open at a place are closed, quoted ones aside."""
    depth, quote, place = 0, None, start
    while place < len(body):
        character = body[place]
        if quote is not None:
            if character == "\\":
                place += 1
            elif character == quote:
                quote = None
        elif character in "'\"":
            quote = character
        elif character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return place + 1
        place += 1
    return None
