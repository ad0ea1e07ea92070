"""Ready-made preference rows as answers: two of them a pair, without scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from dataset_builder.answers import flags_of
from dataset_builder.assemble import RESPONSE_SCHEMA, RESPONSES, Facts, beside, read_parquet, write_rows
from dataset_builder.table import QuestionTable

IMPORTED = "imported"  # the model of an answer whose row names none


def imported_id(question_id: str, text: str) -> str:
    """Response id of an imported answer."""
    return hashlib.sha256(f"{question_id}\0{IMPORTED}\0{text}".encode()).hexdigest()[:16]


def write_imported_responses(work: Path) -> Facts:
    """Write ``assembled/responses.parquet`` from ``imported.parquet``; every different answer stands there once."""
    facts = Facts()

    def rows() -> Iterator[dict]:
        for question, pairs in beside(QuestionTable(work / "questions.arrow"), read_parquet(work / "imported.parquet")):
            seen = set()
            for pair in pairs:
                for side in ("chosen", "rejected"):
                    row = _row(question, pair, side)
                    if row["response_id"] not in seen:
                        seen.add(row["response_id"])
                        facts.answers += 1
                        facts.flags.update(row["flags"])
                        yield row

    write_rows(rows(), work / RESPONSES, RESPONSE_SCHEMA)
    return facts


def _row(question: dict, pair: dict, side: str) -> dict:
    text = pair[side]
    return {
        **{key: question[key] for key in ("question_id", "video_id", "question", "answer")},
        "response_id": imported_id(question["question_id"], text),
        "model": pair[f"model_{side}"] or IMPORTED,
        "model_revision": IMPORTED,
        "sampling": "{}",
        "response": text,
        "finish_reason": "stop",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "flags": flags_of(text, "stop"),
        "scores": [],
        "score": pair[f"score_{side}"],
        "disagreement": None,
    }
