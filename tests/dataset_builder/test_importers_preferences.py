"""Importers of preference rows: every shape gives the same pairs, and every wrong row is one row error."""

from __future__ import annotations

from collections import Counter

import pyarrow.parquet as pq
import pytest

from dataset_builder.media import file_sha256
from dataset_builder.schema import FEATURES, assistant_message, user_message
from dataset_builder.settings import (
    PreferenceSource,
)
from tests.dataset_builder.importing import talk, write_dataset

FLAT = {"id": "7", "video": "webvid/10003718", "prompt": "<video>\nWhat?", "chosen": "Good.", "rejected": "Bad."}
MIRROR = {
    "id": "8",
    "video": "a.mp4",
    "conversations": talk("<video>\nWhat?"),
    "chosen": {"from": "gpt", "value": "Good."},
    "rejected": {"from": "gpt", "value": "Bad."},
    "answer": "A square.",
}
SWIFT = {
    "messages": [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "Good."}],
    "rejected_response": "Bad.",
    "videos": ["a.mp4"],
}
FACTORY = {k: v for k, v in MIRROR.items() if k not in ("video", "id", "answer")} | {"videos": ["a.mp4"]}
PLAIN = {"prompt": "What?", "chosen": "Good.", "rejected": "Bad.", "videos": ["a.mp4"]}
CHAT = {
    "prompt": [user_message("What?")],
    "chosen": [assistant_message("Good.")],
    "rejected": [assistant_message("Bad.")],
    "video": "a.mp4",
    "score_chosen": 0.9,
    "score_rejected": 0.25,
    "model_chosen": "one",
}
IMPLICIT = {
    "chosen": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Good."}],
    "rejected": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Bad."}],
    "video": "a.mp4",
}
SHAPES = {
    "flat": ("hound", FLAT),
    "mirror": ("hound", MIRROR),
    "swift": ("ms_swift", SWIFT),
    "factory": ("llama_factory", FACTORY),
    "plain": ("trl", PLAIN),
    "chat": ("trl", CHAT),
    "implicit": ("trl", IMPLICIT),
}


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_preference_rows_of_every_shape(reader, shape, ending):
    name, row = SHAPES[shape]
    for said in ("auto", name):
        (pair,) = reader.pairs([row], f"rows.{ending}", shape=said)
        (question,) = reader.questions
        assert reader.rejected == []
        assert (question["question"], pair["chosen"], pair["rejected"]) == ("What?", "Good.", "Bad.")
        assert pair["question_id"] == question["question_id"] and question["answer"] == row.get("answer")
        assert (pair["score_chosen"], pair["model_chosen"], pair["model_rejected"]) == (
            row.get("score_chosen"),
            row.get("model_chosen"),
            None,
        )
        assert question["question_id"] == row.get("id", question["question_id"])


def test_shapes_may_be_mixed_and_pairs_share_questions(reader):
    more = {**PLAIN, "chosen": "Better."}
    pairs = reader.pairs(
        [SWIFT, FLAT, more, PLAIN, MIRROR, {**MIRROR, "rejected": "Worse."}, {**FLAT, "prompt": "Who?"}]
    )
    ids = [q["question_id"] for q in reader.questions]
    assert len(ids) == 2 and [p["question_id"] for p in pairs] == sorted(
        (p["question_id"] for p in pairs), key=ids.index
    )
    assert Counter(p["question_id"] for p in pairs) == {"7": 1, next(i for i in ids if i != "7"): 3}
    assert [(p["chosen"], p["rejected"]) for p in pairs if p["question_id"] != "7"] == [
        ("Good.", "Bad."),
        ("Better.", "Bad."),
        ("Good.", "Worse."),
    ]
    assert reader.kinds == [(4, None, "duplicate_row"), (5, None, "duplicate_row"), (7, "id", "duplicate_id")]


def test_the_kits_own_preferences_come_in_again(reader, tmp_path):
    row = {name: None for name in FEATURES["preferences"]} | {
        "question_id": "q1",
        "video": {"bytes": (reader.videos / "a.mp4").read_bytes(), "path": None},
        "question": "What?",
        "license": "cc0-1.0",
        "source": "own",
        "score_chosen": 1.0,
        "model_rejected": "two",
        **{name: CHAT[name] for name in ("prompt", "chosen", "rejected")},
    }
    folder = tmp_path / "set" / "preferences"
    rows = [row, {**row, "question_id": "q2", "video": None}]
    write_dataset(rows, FEATURES["preferences"], folder / "train-00000-of-00001.parquet")
    for place in (tmp_path / "set", folder / "train-00000-of-00001.parquet"):
        (question,) = reader.read(PreferenceSource("preferences", str(place)))
        (pair,) = pq.read_table(reader.work / "imported.parquet").to_pylist()
        assert (question["question_id"], question["license"], question["source"]) == ("q1", "cc0-1.0", "own")
        assert question["sha256"] == file_sha256(reader.videos / "a.mp4") and question["question"] == "What?"
        assert (pair["chosen"], pair["score_chosen"], pair["model_rejected"]) == ("Good.", 1.0, "two")
        assert reader.kinds == [(2, "video", "missing_video")]


def without(row: dict, *names: str, **other) -> dict:
    return {name: value for name, value in row.items() if name not in names} | other


WRONG_PAIRS = [
    ("auto", {"video": "a.mp4", "question": "?"}, None, "unknown_shape"),
    ("auto", without(FLAT, "rejected"), "rejected", "missing_rejected"),
    ("auto", without(FLAT, "chosen"), "chosen", "missing_chosen"),
    ("auto", without(FLAT, "prompt"), "prompt", "missing_question"),
    ("auto", without(FLAT, "video"), "video", "missing_video"),
    ("auto", {**FLAT, "video": "none"}, "video", "missing_video"),
    ("auto", {**FLAT, "video": "../x"}, "video", "outside_folder"),
    ("auto", {**FLAT, "prompt": "<video>"}, "question", "missing_question"),
    ("auto", {**FLAT, "rejected": " "}, "rejected", "missing_rejected"),
    ("auto", {**FLAT, "rejected": "Good."}, "rejected", "identical_pair"),
    ("auto", {**FLAT, "rejected": 3}, "rejected", "missing_rejected"),
    ("auto", {**MIRROR, "chosen": {"from": "gpt"}}, "chosen", "bad_conversation"),
    ("auto", {**MIRROR, "conversations": talk("?", "x", "?")}, "conversations", "bad_conversation"),
    ("auto", {**MIRROR, "conversations": 5}, "conversations", "bad_conversation"),
    ("auto", without(SWIFT, "rejected_response"), "rejected_response", "missing_rejected"),
    ("auto", {**SWIFT, "rejected_response": 5}, "rejected_response", "missing_rejected"),
    ("auto", {**SWIFT, "messages": SWIFT["messages"][:1]}, "messages", "missing_chosen"),
    ("auto", {**SWIFT, "videos": []}, "videos", "missing_video"),
    ("auto", {**SWIFT, "videos": ["a.mp4", "a.mp4"]}, "videos", "missing_video"),
    ("auto", without(SWIFT, "videos"), "videos", "missing_video"),
    ("auto", without(FACTORY, "rejected"), "rejected", "missing_rejected"),
    ("auto", {**CHAT, "score_chosen": "high"}, "score_chosen", "invalid"),
    ("auto", {**CHAT, "chosen": []}, "chosen", "bad_conversation"),
    ("auto", {**IMPLICIT, "rejected": CHAT["rejected"]}, "prompt", "missing_question"),
    ("hound", SWIFT, "prompt", "missing_question"),
    ("ms_swift", FLAT, "messages", "missing_question"),
    ("llama_factory", FLAT, "conversations", "missing_question"),
    ("trl", SWIFT, "chosen", "missing_chosen"),
    ("auto", [1], None, "bad_json"),
]


@pytest.mark.parametrize(("shape", "bad", "field", "error"), WRONG_PAIRS)
def test_a_wrong_preference_row_is_one_error(reader, shape, bad, field, error):
    good = {"auto": PLAIN, "hound": MIRROR, "ms_swift": SWIFT, "llama_factory": FACTORY, "trl": CHAT}[shape]
    pairs = reader.pairs([bad, good], "rows.json", shape=shape)
    assert len(pairs) == len(reader.questions) == 1
    assert reader.kinds == [(1, field, error)]
