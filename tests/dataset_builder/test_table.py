"""The question table: sorted, cut into blocks, and never all in memory."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.assemble import beside, read_parquet, write_rows
from dataset_builder.errors import KitError
from dataset_builder.table import QUESTION_SCHEMA, QuestionTable, write_questions


def rows(count: int, seed: int = 0) -> list[dict]:
    """Questions on a few videos, in no order."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        video = f"{rng.randrange(max(1, count // 3)):064x}"
        made.append(
            {
                **dict.fromkeys(QUESTION_SCHEMA.names),
                **{"question_id": f"q{number}", "video_id": video[:16], "sha256": video, "question": "what ?"},
                **{"answers": ["a", "b"][: number % 3], "split": "train", "path": f"/videos/{number}", "embed": True},
            }
        )
    return made


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 60), block=st.integers(1, 20), seed=st.integers(0, 9))
def test_every_row_once_sorted_and_in_blocks(tmp_path_factory, count, block, seed):
    path = tmp_path_factory.mktemp("table") / "questions.arrow"
    made = rows(count, seed)
    assert write_questions(iter(made), path, block) == count
    table = QuestionTable(path)
    assert list(table) == sorted(made, key=lambda row: (row["sha256"], row["question_id"]))
    assert (len(table), table.block_size, table.block_count) == (count, block, -(-count // block))
    sizes = [len(table.block(index)) for index in range(table.block_count)]
    assert set(sizes[:-1]) <= {block} and sum(sizes) == count
    assert [file.name for file in path.parent.iterdir()] == ["questions.arrow"]


def test_the_order_of_the_input_and_the_machines_paths_do_not_matter(tmp_path):
    made = rows(50)
    write_questions(made, tmp_path / "a", 8)
    write_questions([{**row, "path": "elsewhere"} for row in reversed(made)], tmp_path / "b", 8)
    write_questions([{**row, "question": "other"} for row in made], tmp_path / "c", 8)
    keys = [QuestionTable(tmp_path / name).content_key() for name in "abc"]
    assert keys[0] == keys[1] != keys[2]


def test_limit_takes_the_first_rows(tmp_path):
    assert write_questions(iter(rows(50)), tmp_path / "a", 8, limit=5) == 5
    assert {row["question_id"] for row in QuestionTable(tmp_path / "a")} == {f"q{i}" for i in range(5)}


def test_a_damaged_table_is_one_line(tmp_path):
    with pytest.raises(KitError, match="missing or damaged"):
        QuestionTable(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"ARROW1")
    with pytest.raises(KitError, match="missing or damaged"):
        QuestionTable(tmp_path / "bad")


def test_rows_beside_questions(tmp_path: Path):
    write_questions(rows(20), tmp_path / "q", 8)
    table = QuestionTable(tmp_path / "q")
    ids = [row["question_id"] for row in table]
    answers = [{"question_id": ids[index], "n": n} for index in (2, 7, 19) for n in range(2)]
    import pyarrow as pa

    write_rows(answers, tmp_path / "r", pa.schema([("question_id", pa.string()), ("n", pa.int64())]))
    found = {q["question_id"]: [r["n"] for r in group] for q, group in beside(table, read_parquet(tmp_path / "r"))}
    assert list(found) == ids
    assert {key: value for key, value in found.items() if value} == {ids[i]: [0, 1] for i in (2, 7, 19)}
    with pytest.raises(KitError, match="not in its order"):
        list(beside(table, reversed(answers)))
