"""Columns of the four configs of the dataset, and how one conversational message is spelled in them.

A content part has the keys ``type`` and ``text`` only. A ``video`` key that is null in every text part would make a
text part look like a video to some chat templates; the video part therefore carries ``text: null`` and takes its
frames from the row's ``video`` column.
"""

from __future__ import annotations

from datasets import Features, List, Value, Video

SPLITS = ("train", "validation", "test")
DEFAULT_CONFIG = "preferences"

# Which splits each config may have. Splits without rows are left out of the folder and of its card.
CONFIG_SPLITS: dict[str, tuple[str, ...]] = {
    "preferences": ("train", "validation"),
    "benchmark": ("validation", "test"),
    "responses": SPLITS,
    "questions": SPLITS,
}

_STRING = Value("string")
_FLOAT = Value("float64")
MESSAGES = List({"role": _STRING, "content": List({"type": _STRING, "text": _STRING})})

SCORES = List(
    {
        "judge": _STRING,
        "judge_revision": _STRING,
        "settings_hash": _STRING,
        "criterion": _STRING,
        "score": _FLOAT,
        "low": _FLOAT,
        "high": _FLOAT,
        "rationale": _STRING,
        "error": _STRING,
    }
)

FEATURES: dict[str, Features] = {
    "preferences": Features(
        {
            "question_id": _STRING,
            "response_id_chosen": _STRING,
            "response_id_rejected": _STRING,
            "video_id": _STRING,
            "source": _STRING,
            "license": _STRING,
            "video": Video(),
            "question": _STRING,
            "answer": _STRING,
            "prompt": MESSAGES,
            "chosen": MESSAGES,
            "rejected": MESSAGES,
            "model_chosen": _STRING,
            "model_rejected": _STRING,
            "score_chosen": _FLOAT,
            "score_rejected": _FLOAT,
            "margin": _FLOAT,
        }
    ),
    "benchmark": Features(
        {
            "question_id": _STRING,
            "video_id": _STRING,
            "source": _STRING,
            "license": _STRING,
            "video": Video(),
            "question": _STRING,
            "answers": List(_STRING),
            "question_type": _STRING,
        }
    ),
    "responses": Features(
        {
            "response_id": _STRING,
            "question_id": _STRING,
            "video_id": _STRING,
            "question": _STRING,
            "answer": _STRING,
            "model": _STRING,
            "model_revision": _STRING,
            "sampling": _STRING,
            "response": _STRING,
            "finish_reason": _STRING,
            "prompt_tokens": Value("int32"),
            "completion_tokens": Value("int32"),
            "flags": List(_STRING),
            "scores": SCORES,
            "score": _FLOAT,
            "disagreement": _FLOAT,
        }
    ),
    "questions": Features(
        {
            "question_id": _STRING,
            "video_id": _STRING,
            "source": _STRING,
            "source_id": _STRING,
            "start": _FLOAT,
            "end": _FLOAT,
            "license": _STRING,
            "sha256": _STRING,
            "phash": _STRING,
            "duration": _FLOAT,
            "question": _STRING,
            "answer": _STRING,
            "answers": List(_STRING),
            "question_type": _STRING,
            "origin": _STRING,
        }
    ),
}


def user_message(question: str) -> dict:
    """The user turn of a prompt: a video part, then the question as a text part."""
    return {"role": "user", "content": [{"type": "video", "text": None}, {"type": "text", "text": question}]}


def assistant_message(text: str) -> dict:
    """The assistant turn of a completion: one text part."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}
