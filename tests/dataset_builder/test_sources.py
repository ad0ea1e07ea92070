"""Sources: rows that can be used are used, every other row is one clear line with file and row."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builder.errors import KitError, RowError
from dataset_builder.media import file_sha256, probe
from dataset_builder.settings import FolderSource, SplitConfig
from dataset_builder.sources import find_set, question_id, read_sources, split_of
from dataset_builder.table import QUESTION_SCHEMA, QuestionTable
from tests.dataset_builder.clips import break_clip, moving_square, real_clips, write_clip

COLUMNS = QUESTION_SCHEMA.names[:15]


def read_back(work: Path, source, split: SplitConfig | None = None, **options) -> tuple[list[dict], list[RowError]]:
    """Rows of the question table and the rows left out, after reading a source."""
    report = read_sources([source], split or SplitConfig(), work, 64, **options)
    rejected = [RowError(**json.loads(line)) for line in (work / "rejected.jsonl").read_text().splitlines()]
    assert dict(Counter(error.kind for error in rejected)) == report.rejected
    assert str(report.first_error) == (str(rejected[0]) if rejected else "None")
    questions = list(QuestionTable(work / "questions.arrow")) if report.questions else []
    assert len(questions) == report.questions == sum(report.splits.values())
    media = json.loads((work / "media.json").read_text())
    assert set(media) == {question["sha256"] for question in questions} and len(media) == report.videos
    return questions, rejected


class Folder:
    """A videos folder with two good clips, and a JSONL file beside it."""

    def __init__(self, root: Path):
        self.videos, self.file, self.work = root / "videos", root / "q.jsonl", root / "work"
        (self.videos / "sub").mkdir(parents=True)
        write_clip(self.videos / "a.mp4", moving_square(seed=1))
        write_clip(self.videos / "sub" / "b.mp4", moving_square(seed=2))

    def source(self, **more) -> FolderSource:
        return FolderSource("folder", str(self.videos), str(self.file), **more)

    def read(self, *rows, split: SplitConfig | None = None, **source) -> tuple[list[SimpleNamespace], list[RowError]]:
        """Write rows (dicts become JSON, bytes and text stay) and read them back in their order, numbered."""
        lines = [row if isinstance(row, bytes) else _json(row).encode() for row in rows]
        self.file.write_bytes(b"\n".join(lines))
        questions, rejected = read_back(self.work, self.source(**source), split)
        numbers: dict[tuple, int] = {}
        for number, line in enumerate(lines, start=1):
            try:
                found = json.loads(line.decode("utf-8-sig"))
                numbers.setdefault((found["video"], found["question"].strip()), number)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
        found = [SimpleNamespace(**q, row=numbers[q["source_id"], q["question"]]) for q in questions]
        return sorted(found, key=lambda question: question.row), rejected


def _json(row) -> str:
    return row if isinstance(row, str) else json.dumps(row)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def row(video: str = "a.mp4", question: str = "what ?", **more) -> dict:
    return {"video": video, "question": question, **more}


def only_error(result: tuple[list, list[RowError]]) -> RowError:
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
    columns = {name: getattr(question, name) for name in COLUMNS}
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
    assert question.embed is False
    assert json.loads((folder.work / "media.json").read_text()) == {sha256: str(path)}


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


def test_every_video_is_read_once_and_not_again_in_the_next_run(folder, monkeypatch):
    from dataset_builder.sources import videos

    opened, hashed = [], []
    real, real_hash = videos.inspect_video, videos.file_sha256
    monkeypatch.setattr(videos, "inspect_video", lambda path, *n, **k: (opened.append(path), real(path, *n, **k))[1])
    monkeypatch.setattr(videos, "file_sha256", lambda path: (hashed.append(path), real_hash(path))[1])
    rows = [row(question=f"{i} ?") for i in range(5)] + [row("sub/b.mp4", f"{i} ?") for i in range(5)]
    first = folder.read(*rows)
    assert len(opened) == len(hashed) == 2
    assert folder.read(*rows) == first and len(first[0]) == 10
    assert len(opened) == len(hashed) == 2
    write_clip(folder.videos / "a.mp4", moving_square(seed=5))
    changed, _ = folder.read(*rows)
    assert len(opened) == 3 and changed[0].sha256 == file_sha256(folder.videos / "a.mp4") != first[0][0].sha256
    (folder.work / "sources" / "facts.sqlite").write_bytes(b"damaged" * 1000)
    assert folder.read(*rows)[0] == changed and len(opened) == 5


def test_what_cannot_be_read_at_all(folder, tmp_path):
    with pytest.raises(KitError, match="is empty"):
        folder.read("", "  ")
    for source, says in (
        (
            FolderSource("folder", str(folder.videos), "none.jsonl"),
            r"sources\[0\].questions: none.jsonl: there is no such",
        ),
        (FolderSource("folder", "nowhere", str(folder.file)), r"sources\[0\].videos: nowhere: there is no such folder"),
    ):
        with pytest.raises(KitError, match=says):
            read_sources([source], SplitConfig(), folder.work, 4)


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
    source = FolderSource("folder", str(tmp_path), str(file))
    questions, rejected = read_back(tmp_path / "work", source, progress=True)
    assert rejected == [] and len({q["video_id"] for q in questions}) == len({q["phash"] for q in questions}) == 3
    assert {q["source_id"]: round(q["duration"], 2) for q in questions} == {
        "bikes.mp4": 10.0,
        "carphone_pristine.mp4": 4.0,
        "bigbuckbunny.mp4": 5.28,
    }


def test_limit_counts_usable_rows_in_their_order(folder):
    rows = [row("none.mp4"), row("sub/b.mp4", "1 ?"), row("sub/b.mp4", "1 ?"), row(question="2 ?"), row(question="3 ?")]
    folder.file.write_text("\n".join(map(json.dumps, rows)))
    questions, rejected = read_back(folder.work, folder.source(), limit=2)
    assert {q["question"] for q in questions} == {"1 ?", "2 ?"}
    assert [error.kind for error in rejected] == ["missing_video", "duplicate_row"]
    assert not [p for p in folder.work.rglob("*") if p.name.endswith(".tmp")]


def test_several_sources_share_ids_and_splits(folder, tmp_path):
    other = tmp_path / "other.jsonl"
    folder.file.write_text(json.dumps(row(id="mine", split="test")))
    lines = [row(id="mine"), row(question="new ?", id="mine"), row(question="late ?", split="train")]
    other.write_text("\n".join(map(json.dumps, [*lines, row(question="fine ?")])))
    second = FolderSource("folder", str(folder.videos), str(other))
    report = read_sources([folder.source(), second], SplitConfig(0, 0), folder.work, 4)
    rejected = [json.loads(line) for line in (folder.work / "rejected.jsonl").read_text().splitlines()]
    assert [(r["row"], r["kind"]) for r in rejected] == [
        (1, "duplicate_row"),
        (2, "duplicate_id"),
        (3, "split_conflict"),
    ]
    assert all(r["file"] == str(other) and f"row 1 of {folder.file}" in r["reason"] for r in rejected)
    assert report.splits == {"test": 2} and report.videos == 1


@pytest.mark.parametrize(
    ("source", "license", "redistribute", "expected"),
    [
        ("own", None, None, ("unknown", False)),
        ("own", None, True, ("unknown", False)),
        ("own", "cc0-1.0", None, ("cc0-1.0", False)),
        ("own", "cc0-1.0", True, ("cc0-1.0", True)),
        ("own", "Unknown", True, ("Unknown", False)),
        ("msr vtt", None, None, ("youtube-terms-of-service", False)),
        ("WebVid-10M", "cc0-1.0", None, ("cc0-1.0", False)),
    ],
)
def test_licence_and_embedding(folder, source, license, redistribute, expected):
    (question,), _ = folder.read(row(), source=source, license=license, redistribute=redistribute)
    assert (question.license, question.embed) == expected


@pytest.mark.parametrize("name", ["WebVid", "VIDAL", "ActivityNet", "MSVD", "MSR-VTT", "TGIF", "SSv2"])
def test_well_known_sets_are_not_redistributed(folder, name):
    known = find_set(name.upper())
    assert known.name == name and known.license != "unknown" and known.terms.startswith("http")
    with pytest.raises(KitError, match=f"redistribute: true is refused for {name}") as error:
        folder.read(row(), source=name.lower(), license="mit", redistribute=True)
    assert "\n" not in str(error.value)
    questions, rejected = folder.read(row(), row("sub/b.mp4", source=name), license="mit", redistribute=True)
    assert [q.row for q in questions] == [1] and [e.kind for e in rejected] == ["not_redistributable"]


def test_a_video_is_embedded_only_if_all_its_rows_allow_it(folder):
    questions, _ = folder.read(
        row(), row(question="2 ?", license="unknown"), row("sub/b.mp4"), license="mit", redistribute=True
    )
    assert [q.embed for q in questions] == [False, False, True]
