"""Sources: rows that can be used are used, every other row is one clear line with file and row."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builder.config import SourceConfig, SplitConfig
from dataset_builder.errors import KitError, RowError
from dataset_builder.media import file_sha256, probe
from dataset_builder.sources import COLUMNS, Question, question_id, read_source, split_of
from tests.dataset_builder.clips import break_clip, moving_square, real_clips, write_clip


class Folder:
    """A videos folder with two good clips, and a JSONL file beside it."""

    def __init__(self, root: Path):
        self.videos, self.file = root / "videos", root / "q.jsonl"
        (self.videos / "sub").mkdir(parents=True)
        write_clip(self.videos / "a.mp4", moving_square(seed=1))
        write_clip(self.videos / "sub" / "b.mp4", moving_square(seed=2))

    def read(self, *rows, split: SplitConfig | None = None, **source) -> tuple[list[Question], list[RowError]]:
        """Write rows (dicts become JSON, bytes and text stay) and read them back."""
        lines = [row if isinstance(row, bytes) else _json(row).encode() for row in rows]
        self.file.write_bytes(b"\n".join(lines))
        return read_source(SourceConfig(videos=str(self.videos), questions=str(self.file), **source), split)


def _json(row) -> str:
    return row if isinstance(row, str) else json.dumps(row)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def row(video: str = "a.mp4", question: str = "what ?", **more) -> dict:
    return {"video": video, "question": question, **more}


def only_error(result: tuple[list[Question], list[RowError]]) -> RowError:
    _, rejected = result
    assert len(rejected) == 1, [str(error) for error in rejected]
    assert "\n" not in str(rejected[0])
    return rejected[0]


def test_a_row_becomes_the_columns_of_the_dataset(folder):
    (question,), rejected = folder.read(
        row("sub/b.mp4", " how many ? ", answer="2", answers=["two", "2"]), license="mit"
    )
    path = folder.videos / "sub" / "b.mp4"
    sha256 = file_sha256(path)
    assert rejected == []
    columns = question.columns()
    assert list(columns) == list(COLUMNS)
    assert columns | {"phash": ""} == {
        "question_id": question_id(sha256, None, None, "how many ?"),
        "video_id": sha256[:16],
        "source": "own",
        "source_id": "sub/b.mp4",
        "start": None,
        "end": None,
        "license": "mit",
        "sha256": sha256,
        "phash": "",
        "duration": probe(path).duration,
        "question": "how many ?",
        "answer": "2",
        "answers": ["2", "two"],
        "question_type": None,
        "origin": "given",
    }
    assert len(question.phash) == 16 and Path(question.path) == path
    assert (question.file, question.row) == (str(folder.file), 1)


def test_columns_are_those_of_the_written_dataset():
    from dataset_builder.schema import FEATURES

    assert list(FEATURES["questions"]) == list(COLUMNS)


def test_optional_fields(folder):
    questions, rejected = folder.read(
        row(id="q1", answer=3, license="cc0-1.0", source="phone", question_type="count", split="test", mood="good"),
        row(question="why ?", answers=["x"], answer=None),
        row(question="no answer ?"),
        "",
        row(question="é ?", answer="ü"),
    )
    assert rejected == []
    first = questions[0]
    assert (first.question_id, first.answers, first.license, first.source) == ("q1", ["3"], "cc0-1.0", "phone")
    assert (first.question_type, first.split, first.answer) == ("count", "test", "3")
    assert (questions[1].answer, questions[2].answer, questions[2].answers) == ("x", None, [])
    assert [q.row for q in questions] == [1, 2, 3, 5]
    assert {q.split for q in questions} == {"test"}  # one video, and one of its rows names the split


@pytest.mark.parametrize(
    ("bad", "field", "kind", "says"),
    [
        (b'{"video": "a.mp4", "question": ', None, "bad_json", "not valid JSON"),
        (b'{"video": "a.mp4", "question": "\xff"}', None, "bad_json", "not UTF-8"),
        ("[1, 2]", None, "bad_json", "must be a JSON object"),
        ("[" * 100_000, None, "bad_json", "JSON"),
        ({"video": "a.mp4"}, "question", "missing_question", "is missing"),
        (row(question="  "), "question", "missing_question", "is empty"),
        (row(question=7), "question", "missing_question", "must be text, not int"),
        ('{"video": "a.mp4", "question": "\\ud800"}', "question", "missing_question", "not valid Unicode"),
        ({"question": "what ?"}, "video", "missing_video", "is missing"),
        (row(video="none.mp4"), "video", "missing_video", "there is no such file"),
        (row(video="a\0.mp4"), "video", "missing_video", "is no name of a file"),
        (row(answers="red"), "answers", "invalid", "must be a list"),
        (row(answers=["red", ""]), "answers", "invalid", "an entry is empty"),
        (row(answer=True), "answer", "invalid", "must be text, not bool"),
        (row(split="val"), "split", "unknown_split", "did you mean 'validation'?"),
        (row(awnser="red"), "awnser", "unknown_field", "did you mean 'answer'?"),
        (row(licence="mit"), "licence", "unknown_field", "did you mean 'license'?"),
        (row(start=1.5), "start", "unsupported_field", "cut the clip"),
        (row(video="../q.jsonl"), "video", "outside_folder", "outside the videos folder"),
        (row(video="sub/../a.mp4"), "video", "outside_folder", "outside the videos folder"),
        (row(video="/etc/passwd"), "video", "outside_folder", "outside the videos folder"),
        (row(video="sub"), "video", "directory", "is a folder"),
        (row(video="new\nline.mp4"), "video", "missing_video", r"new\nline.mp4"),
        ({"video": "a.mp4", "question": "what ?", "answer\n": "red"}, r"answer\n", "unknown_field", "did you mean"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_goes_on(folder, bad, field, kind, says):
    result = folder.read(row(question="before ?"), bad, row("sub/b.mp4", "after ?"))
    error = only_error(result)
    assert (error.row, error.field, error.kind) == (2, field, kind) and says in str(error)
    assert str(error).startswith(f"{folder.file}:2: ")
    assert [q.question for q in result[0]] == ["before ?", "after ?"]


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("zero_bytes", "empty_video"),
        ("text", "unreadable_video"),
        ("truncated", "truncated_video"),
        ("truncated_behind_index", "truncated_video"),
        ("sound_only", "no_video_stream"),
        ("play_list", "unreadable_video"),
    ],
)
def test_a_broken_video_leaves_out_its_rows(folder, how, kind):
    break_clip(folder.videos, how)
    name = f"{how}.mp4"
    questions, rejected = folder.read(row(name), row(), row(name, "why ?"))
    assert [q.row for q in questions] == [2]
    assert [(e.row, e.field, e.kind) for e in rejected] == [(1, "video", kind), (3, "video", kind)]
    assert all(name in str(e) and "\n" not in str(e) for e in rejected)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(folder, tmp_path):
    write_clip(tmp_path / "secret.mp4")
    (folder.videos / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder.videos / "in.mp4").symlink_to(folder.videos / "a.mp4")
    questions, rejected = folder.read(row("out.mp4"), row("in.mp4"))
    assert [q.row for q in questions] == [2] and [e.kind for e in rejected] == ["outside_folder"]


def test_repeated_rows_and_ids(folder):
    shutil.copy(folder.videos / "a.mp4", folder.videos / "copy.mp4")
    questions, rejected = folder.read(
        row(answer="x"),
        row(answer="x"),
        row(answer="y"),
        row(id="mine", question="a ?"),
        row(id="mine", question="b ?"),
        row("copy.mp4", answer="x"),
        row(id="mine", question="a ?"),
        row("sub/b.mp4", "a ?", id="mine"),
    )
    assert [q.row for q in questions] == [1, 4]
    assert [(e.row, e.kind) for e in rejected] == [
        (2, "duplicate_row"),
        (3, "duplicate_id"),
        (5, "duplicate_id"),
        (6, "duplicate_row"),
        (7, "duplicate_row"),
        (8, "duplicate_id"),
    ]
    assert "already stands in row 1 with another answer" in str(rejected[1])
    assert "'mine' already stands in row 4 with another question" in str(rejected[2])
    assert str(rejected[5]).endswith("'mine' already stands in row 4 with another video")


def test_a_video_belongs_to_one_split(folder):
    shutil.copy(folder.videos / "a.mp4", folder.videos / "copy.mp4")
    questions, rejected = folder.read(
        row(question="1 ?"),
        row(question="2 ?", split="validation"),
        row("copy.mp4", "3 ?", split="test"),  # the same bytes under another name
        row("sub/b.mp4", "4 ?", split="test"),
        split=SplitConfig(0, 0),
    )
    assert [(q.row, q.split) for q in questions] == [(1, "validation"), (2, "validation"), (4, "test")]
    assert [(e.row, e.field, e.kind) for e in rejected] == [(3, "split", "split_conflict")]
    assert "row 2 puts the same video into 'validation'" in str(rejected[0])


@given(sha256=st.binary(min_size=32, max_size=32).map(bytes.hex), low=st.floats(0, 0.4), high=st.floats(0, 0.4))
def test_split_shares_only_move_the_border(sha256, low, high):
    assert split_of(sha256, SplitConfig(0, 0)) == "train"
    assert split_of(sha256, SplitConfig(1, 0)) == "validation"
    assert split_of(sha256, SplitConfig(0, 1)) == "test"
    if split_of(sha256, SplitConfig(low, min(low, high))) == "test":
        assert split_of(sha256, SplitConfig(low, max(low, high))) == "test"


def test_split_shares_are_met():
    found = Counter(split_of(f"{i:064x}", SplitConfig(0.2, 0.1)) for i in range(5000))
    assert abs(found["validation"] - 1000) < 120 and abs(found["test"] - 500) < 90


@given(start=st.none() | st.floats(0, 9), text=st.text(), other=st.text())
def test_ids_follow_from_content(start, text, other):
    made = question_id("ab" * 32, start, None, text)
    assert len(made) == 16 and int(made, 16) >= 0
    assert (made == question_id("ab" * 32, start, None, other)) == (text == other)
    assert made != question_id("cd" * 32, start, None, text)


def test_every_video_is_read_once_and_the_result_is_the_same_twice(folder, monkeypatch):
    from dataset_builder import sources

    opened = []
    real = sources.inspect_video
    monkeypatch.setattr(sources, "inspect_video", lambda path, n: (opened.append(path), real(path, n))[1])
    rows = [row(question=f"{i} ?") for i in range(5)] + [row("sub/b.mp4", f"{i} ?") for i in range(5)]
    first = folder.read(*rows)
    assert len(opened) == 2
    assert folder.read(*rows) == first and len(first[0]) == 10


def test_what_cannot_be_read_at_all(folder, tmp_path):
    with pytest.raises(KitError, match="is empty"):
        folder.read("", "  ")
    with pytest.raises(KitError, match=r"source.questions: .*none.jsonl: there is no such file"):
        read_source(SourceConfig(videos=str(folder.videos), questions=str(tmp_path / "none.jsonl")))
    with pytest.raises(KitError, match=r"source.videos: .*nowhere: there is no such folder"):
        read_source(SourceConfig(videos=str(tmp_path / "nowhere"), questions=str(folder.file)))


def test_windows_line_ends_and_byte_order_mark(folder):
    questions, rejected = folder.read(
        b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\r", json.dumps(row("sub/b.mp4"))
    )
    assert len(questions) == 2 and rejected == []


def test_real_clips(tmp_path):
    clips = real_clips()
    for name, path in clips.items():
        shutil.copy(path, tmp_path / name)
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row(name, "what is seen ?")) + "\n" for name in clips))
    questions, rejected = read_source(SourceConfig(videos=str(tmp_path), questions=str(file)), progress=True)
    assert rejected == [] and len({q.video_id for q in questions}) == len({q.phash for q in questions}) == 3
    assert {q.source_id: round(q.duration, 2) for q in questions} == {
        "bikes.mp4": 10.0,
        "carphone_pristine.mp4": 4.0,
        "bigbuckbunny.mp4": 5.28,
    }
