"""One answer of one zoo member: its id, its flags, its row."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from dataset_builder.models.base import served_name
from dataset_builder.stages import canonical_json
from dataset_builder.text import normalise

# Openings by which a model says that it will not or cannot answer. Only the start counts: "I cannot see a dog, it is a
# cat" inside a longer answer is an answer.
_SORRY = (
    r"(?:(?:i\s*['’]?\s*a?m\s+(?:so\s+|very\s+)?(?:sorry|afraid)|i\s+apologi[sz]e|my\s+apologies|sorry|"
    r"unfortunately)\b)"
)
_CANNOT = (
    r"(?:can\s*not|can\s*['’]?t|could\s+not|couldn['’]?t|won['’]?t|will\s+not|"
    r"(?:am|['’]m|was)\s+(?:unable|not\s+able)\s+to)"
)
_DOING = (
    r"(?:answer|help|assist|view|watch|see|determine|tell|process|access|provide|comply|identify|describe|judge|rate|"
    r"score|evaluate)"
)
_REFUSAL = re.compile(
    rf"^\W*(?:(?:i\s*['’]?\s*a?m\s+(?:so\s+|very\s+)?(?:sorry|unable|not able)|i\s+apologi[sz]e|sorry)\b|"
    rf"as\s+an?\s+(?:ai\b|(?:large\s+)?language\s+model)|(?:{_SORRY}\W+(?:but\s+)?)?i\s*{_CANNOT}\s+{_DOING}\b|"
    r"i\s+do\s*n['’]?o?t\s+have\s+(?:the\s+ability|access)|i\s+(?:must\s+)?(?:refuse|decline)\b|"
    r"unable\s+to\s+(?:answer|determine|view|see|judge)\b)",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether a text opens by saying that its author will not or cannot answer."""
    return _REFUSAL.match(text) is not None


def flags_of(text: str, finish_reason: str) -> list[str]:
    """Flags of one answer by itself: ``empty``, ``refusal``, ``cut`` (ran into the token limit)."""
    flags = []
    if not normalise(text):
        flags.append("empty")
    if is_refusal(text):
        flags.append("refusal")
    if finish_reason == "length":
        flags.append("cut")
    return flags


def sampling_record(model: Any, member: dict, seed: int, block: int, clip: Any = None) -> str:
    """The ``sampling`` column: JSON of what an answer was drawn with (block and seed make it repeatable).

    ``frames`` is what the member asks for, ``frames_seen`` which frames of this video it saw.
    """
    decoding = member["decoding"]
    return canonical_json(
        {
            "temperature": decoding["temperature"],
            "top_p": decoding["top_p"],
            "max_new_tokens": decoding["max_new_tokens"],
            "frames": decoding["num_frames"],
            **({"fps": decoding["fps"]} if decoding.get("fps") else {}),
            "frames_seen": None if clip is None else [int(index) for index in clip.indices],
            "seed": seed,
            "block": block,
            "template_hash": model.template_hash,
        }
    )


def response_row(
    question: dict, index: int, reply: Any, model: Any, member: dict, seed: int, block: int, clip: Any = None
) -> dict:
    """A stored answer: the columns of the ``responses`` config that sampling knows, and ``error``.

    An answer that could not be made has ``finish_reason`` "error", no text and the flag ``empty``.
    """
    sampling = sampling_record(model, member, seed, block, clip)
    identity = [question["question_id"], member["name"], model.revision, sampling, str(index)]
    finish = "error" if reply.error else reply.finish_reason
    text = "" if reply.error else reply.text.strip()
    return {
        "response_id": hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16],
        "question_id": question["question_id"],
        "model": member["name"],
        "model_revision": served_name(reply.model) if reply.model else model.revision,  # an endpoint says what it is
        "sampling": sampling,
        "response": text,
        "finish_reason": finish,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "flags": flags_of(text, finish),
        "error": reply.error,
    }


def mark_duplicates(rows: list[dict]) -> None:
    """Flag, in place, every answer of one question that says the same as an earlier one."""
    seen = set()
    for row in rows:
        text = normalise(row["response"])
        if text in seen and "duplicate" not in row["flags"]:
            row["flags"] = [*row["flags"], "duplicate"]
        seen.add(text)
