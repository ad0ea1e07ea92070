"""One answer of one zoo member: its id, its flags, its row."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from dataset_builder.stages import canonical_json
from dataset_builder.text import normalise

# Openings by which a model says that it will not or cannot answer. Only the start counts: "I cannot see a dog, it is a
# cat" inside a longer answer is an answer.
_REFUSAL = re.compile(
    r"^\W*(i\s*['’]?\s*a?m\s+(sorry|unable|not able)|sorry\b|as an ai\b|i\s+(can\s*not|can['’]?t|cannot)\s+"
    r"(answer|help|assist|view|watch|see|determine|tell|process|access)|i\s+do\s*n['’]?o?t\s+have\s+access|"
    r"unable to (answer|determine|view))",
    re.IGNORECASE,
)


def flags_of(text: str, finish_reason: str) -> list[str]:
    """Flags of one answer by itself: ``empty``, ``refusal``, ``cut`` (ran into the token limit)."""
    flags = []
    if not normalise(text):
        flags.append("empty")
    if _REFUSAL.match(text):
        flags.append("refusal")
    if finish_reason == "length":
        flags.append("cut")
    return flags


def sampling_record(model: Any, member: dict, seed: int, block: int) -> str:
    """The ``sampling`` column: JSON of what an answer was drawn with (block and seed make it repeatable)."""
    decoding = member["decoding"]
    return canonical_json(
        {
            "temperature": decoding["temperature"],
            "top_p": decoding["top_p"],
            "max_new_tokens": decoding["max_new_tokens"],
            "frames": decoding["num_frames"],
            "seed": seed,
            "block": block,
            "template_hash": model.template_hash,
        }
    )


def response_row(question: dict, index: int, reply: Any, model: Any, member: dict, seed: int, block: int) -> dict:
    """A stored answer: the columns of the ``responses`` config that sampling knows, and ``error``.

    An answer that could not be made has ``finish_reason`` "error", no text and the flag ``empty``.
    """
    sampling = sampling_record(model, member, seed, block)
    identity = [question["question_id"], member["name"], model.revision, sampling, str(index)]
    finish = "error" if reply.error else reply.finish_reason
    text = "" if reply.error else reply.text.strip()
    return {
        "response_id": hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16],
        "question_id": question["question_id"],
        "model": member["name"],
        "model_revision": model.revision,
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
