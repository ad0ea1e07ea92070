"""Importers: small files of every shape come in, and every wrong variant of a row is one row error."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from datasets import Features, Value, Video

from dataset_builder.errors import KitError
from dataset_builder.media import file_sha256, pack_frame_folder, sample_frames
from dataset_builder.settings import (
    ActivityNetQASource,
    FolderSource,
    HubSource,
    PreferenceSource,
    ShareGPTSource,
    VideoChatGPTSource,
)
from dataset_builder.sources.files import read_rows
from tests.dataset_builder.importing import talk, texts, write_dataset

# --------------------------------------------------------------------------------------------------- files and folders


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_a_folder_with_any_kind_of_file_and_other_column_names(reader, ending):
    rows = [
        {"file": "a.mp4", "prompt": 'What, "exactly"?', "label": "x\ny", "question": "not this"},
        {"file": "v_abc", "prompt": "How many ü?", "label": "2", "question": "nor this"},
        {"file": "none.mp4", "prompt": "Where?", "label": "z", "question": ""},
    ]
    if ending in ("csv", "tsv"):
        import csv

        with open(reader.root / f"rows.{ending}", "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
        file, number = str(reader.root / f"rows.{ending}"), 5
    else:
        file, number = reader.file(rows, f"rows.{ending}"), 3
    columns = {"video": "file", "question": "prompt", "answer": "label"}
    questions = reader.read(FolderSource("folder", str(reader.videos), file, columns=columns))
    assert texts(questions) == [("a.mp4", 'What, "exactly"?', "x\ny"), ("v_abc.mkv", "How many ü?", "2")]
    assert reader.kinds == [(number, "video", "missing_video")]


def test_cells_of_a_csv_file(reader):
    (reader.root / "q.csv").write_bytes(
        '\ufeffvideo,question,answers,split\na.mp4,1 ?,"[""x"", 3]",\na.mp4,2 ?\na.mp4,3 ?,,\n\n'.encode()
        + b'a.mp4,\xff ?,,\na.mp4,"4 ?"x,,\na.mp4,5 ?,,val\n'
    )
    questions = reader.read(FolderSource("folder", str(reader.videos), str(reader.root / "q.csv")))
    assert sorted((q["question"], tuple(q["answers"])) for q in questions) == [("1 ?", ("x", "3")), ("3 ?", ())]
    assert reader.kinds == [
        (3, None, "bad_csv"),
        (6, "question", "missing_question"),
        (7, None, "bad_csv"),
        (8, "split", "unknown_split"),
    ]


@pytest.mark.parametrize(
    ("text", "good", "says"),
    [
        ('[{"n": 1}, {"n": 2}', 1, "breaks off"),
        ('[{"n": 1}, {"n": ', 1, "not valid JSON"),
        ('[{"n": 1} {"n": 2}]', 0, "is not followed by"),
        ('[{"n": 1}, 7, {"n": 3}]', 2, "must be a JSON object"),
        ('[{"n": 1}, {"n": nope}]', 1, "not valid JSON"),
        (" \n[ ]", 0, None),
        ('[{"n": 1},\n\n {"n": "' + "x" * 3_000_000 + '"} ]', 2, None),
        ("[" + ", ".join('{"n": 1}' for _ in range(200_000)) + "]", 200_000, None),
    ],
)
def test_a_json_list_is_read_entry_by_entry(tmp_path, text, good, says):
    file = tmp_path / "rows.json"
    file.write_text(text)
    if says is None and not good:
        with pytest.raises(KitError, match="is empty"):
            list(read_rows(str(file), "sources[0].questions"))
        return
    items = list(read_rows(str(file), "sources[0].questions"))
    errors = [item for item in items if isinstance(item, KitError)]
    assert len(items) - len(errors) == good
    assert [says in str(error) for error in errors] == ([True] if says else [])


@pytest.mark.parametrize("name", ["q.csv", "q.parquet"])
def test_a_mapped_column_that_is_not_there(reader, name):
    reader.file([{"videos": "a.mp4", "question": "1 ?"}], "q.parquet")
    (reader.root / "q.csv").write_text("videos,question\na.mp4,1 ?\n")
    source = FolderSource("folder", str(reader.videos), str(reader.root / name), columns={"video": "vidoes"})
    with pytest.raises(KitError, match=r"columns.video: there is no column 'vidoes'; did you mean 'videos'"):
        reader.read(source)


def test_a_frame_folder_is_a_video(reader, tmp_path):
    videos = tmp_path / "own"
    shutil.copytree(reader.videos, videos)
    file = reader.file([{"video": "webvid/10003718", "question": f"{i} ?"} for i in range(2)])
    source = FolderSource("folder", str(videos), file, fps=4.0, license="mit", redistribute=True)
    questions = reader.read(source)
    data = pack_frame_folder(videos / "webvid" / "10003718", 4.0)
    path = Path(questions[0]["path"])
    assert path.read_bytes() == data and path.parent == reader.work / "videos"
    assert {q["sha256"] for q in questions} == {file_sha256(path)} == {path.stem}
    assert questions[0]["source_id"] == "webvid/10003718" and questions[0]["duration"] == 3.0 and questions[0]["embed"]
    assert len(sample_frames(path, 4)) == 4
    changed = path.stat().st_mtime_ns
    assert reader.read(source) == questions and path.stat().st_mtime_ns == changed
    path.unlink()
    assert reader.read(source) == questions and path.read_bytes() == data
    # A picture that is a link out of the folder must not get into a dataset.
    secret = tmp_path / "secret.jpeg"
    (videos / "webvid" / "10003718" / "c01_0001.jpeg").rename(secret)
    (videos / "webvid" / "10003718" / "c01_0001.jpeg").symlink_to(secret)
    assert reader.read(source) == []
    assert reader.kinds == [(1, "video", "outside_folder"), (2, "video", "outside_folder")]


@pytest.mark.parametrize(
    "name", ["../rows.jsonl", "/etc/passwd", "webvid/../a.mp4", "a\0.mp4", "~/a.mp4", "..", "", "."]
)
@pytest.mark.parametrize("kind", ["folder", "sharegpt", "activitynet_qa", "video_chatgpt", "preferences"])
def test_no_name_leads_out_of_the_videos_folder(reader, name, kind):
    videos, good = str(reader.videos), "a.mp4"
    if kind == "folder":
        rows = [{"video": v, "question": "?"} for v in (name, good)]
        source = FolderSource(kind, videos, reader.file(rows))
    elif kind == "sharegpt":
        rows = [{"video": v, "conversations": talk("?", "x")} for v in (name, good)]
        source = ShareGPTSource(kind, videos, reader.file(rows))
    elif kind == "activitynet_qa":
        rows = [{"video_name": v, "question": "?", "question_id": str(i)} for i, v in enumerate((name, "abc"))]
        answers = reader.file([{"question_id": str(i), "answer": "x"} for i in range(2)], "a.json")
        source = ActivityNetQASource(kind, videos, reader.file(rows, "q.json"), answers)
    elif kind == "video_chatgpt":
        rows = [{"video_name": v, "Q": "?", "A": "x"} for v in (name, good)]
        source = VideoChatGPTSource(kind, videos, reader.file(rows, "q.json"))
    else:
        rows = [{"video": v, "prompt": "?", "chosen": "x", "rejected": "y"} for v in (name, good)]
        source = PreferenceSource(kind, reader.file(rows), videos=videos)
    assert len(reader.read(source)) == 1
    (error,) = reader.rejected
    assert (error["row"], error["field"]) == (1, "video")
    assert error["kind"] in ("outside_folder", "missing_video", "directory")


def test_names_without_their_ending(reader, tmp_path):
    videos = tmp_path / "own"
    videos.mkdir()
    for name in ("one.MP4", "two.webm", "two.mp4"):
        shutil.copy(reader.videos / "a.mp4", videos / name)
    (videos / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    file = reader.file([{"video": name, "question": "?"} for name in ("one", "two", "two.webm", "gone", "three")])
    questions = reader.read(FolderSource("folder", str(videos), file))
    assert [q["source_id"] for q in questions] == ["one.MP4"]
    assert reader.kinds[0] == (2, "video", "ambiguous_video") and "two.mp4 and two.webm" in reader.rejected[0]["reason"]
    assert [kind for *_, kind in reader.kinds[1:]] == ["duplicate_row", "missing_video", "missing_video"]


# ------------------------------------------------------------------------------------------------------- question sets


def test_sharegpt_rows(reader):
    rows = [
        {"id": "1", "video": "webvid/10003718", "conversations": talk("<video>\nWhat moves?", "A square.")},
        {"id": "2", "video": "v_abc", "conversations": talk("<image>\nWhere?", "Left.", "And then?", "Right.")},
        {"id": "3", "video": "a.mp4", "conversations": talk("<video>\nWho?", "Nobody."), "caption": "A square moves."},
    ]
    questions = reader.read(ShareGPTSource("sharegpt", str(reader.videos), reader.file(rows), license=None))
    assert {q["question_id"]: (q["source_id"], q["question"], q["answer"]) for q in questions} == {
        "1": ("webvid/10003718", "What moves?", "A square."),
        "2-1": ("v_abc.mkv", "Where?", "Left."),
        "2-2": ("v_abc.mkv", "And then?", "Right."),
        "3": ("a.mp4", "Who?", "Nobody."),
    }
    assert not reader.rejected and {(q["license"], q["embed"]) for q in questions} == {("mixed-research-only", False)}


def test_activitynet_questions_and_answers(reader):
    names = ["abc", "v_abc", "def", "v_def.avi", "gone"]
    rows = [{"video_name": n, "question": f"is it {i}", "question_id": f"q{i}"} for i, n in enumerate(names)]
    answers = [{"question_id": f"q{i}", "answer": "yes", "type": 3} for i in (0, 1, 2, 3, 4, 9)]
    file = reader.file([*rows, {"video_name": "abc", "question": "and", "question_id": "q7"}], "val_q.json")
    source = ActivityNetQASource("activitynet_qa", str(reader.videos), file, reader.file(answers, "val_a.json"))
    questions = reader.read(source)
    assert {q["question_id"]: q["source_id"] for q in questions} == {
        "q0": "v_abc.mkv",
        "q1": "v_abc.mkv",
        "q2": "v_def.mp4",
        "q3": "v_def.mp4",
    }
    assert {(q["answer"], q["question_type"], q["source"]) for q in questions} == {("yes", "3", "activitynet")}
    assert reader.kinds == [
        (5, "video", "missing_video"),
        (6, "question_id", "missing_answer"),
        (6, "question_id", "unmatched_answer"),
    ]


def test_video_chatgpt_rows(reader):
    rows = [
        {"Q": "What?", "A": "This.", "video_name": "v_abc"},
        {"Q1": "Is it?", "Q2": "Is it so?", "A": "Yes.", "video_name": "v_def"},
        {"question": "Why?", "answer": "Because.", "video_name": "a.mp4"},
    ]
    questions = reader.read(VideoChatGPTSource("video_chatgpt", str(reader.videos), reader.file(rows, "qa.json")))
    assert texts(questions) == [
        ("a.mp4", "Why?", "Because."),
        ("v_abc.mkv", "What?", "This."),
        ("v_def.mp4", "Is it so?", "Yes."),
        ("v_def.mp4", "Is it?", "Yes."),
    ]


WRONG_QUESTIONS = [
    ("sharegpt", {"video": "a.mp4"}, "conversations", "missing_question"),
    ("sharegpt", {"conversations": talk("?", "x")}, "video", "missing_video"),
    ("sharegpt", {"video": 7, "conversations": talk("?", "x")}, "video", "missing_video"),
    ("sharegpt", {"video": "none", "conversations": talk("?", "x")}, "video", "missing_video"),
    ("sharegpt", {"video": "a.mp4", "conversations": "?"}, "conversations", "bad_conversation"),
    ("sharegpt", {"video": "a.mp4", "conversations": []}, "conversations", "bad_conversation"),
    ("sharegpt", {"video": "a.mp4", "conversations": talk("?")}, "conversations", "bad_conversation"),
    ("sharegpt", {"video": "a.mp4", "conversations": talk("?", "x")[::-1]}, "conversations", "bad_conversation"),
    ("sharegpt", {"video": "a.mp4", "conversations": [["?", "x"]]}, "conversations", "bad_conversation"),
    ("sharegpt", {"video": "a.mp4", "conversations": talk("?", 5)}, "conversations", "bad_conversation"),
    ("sharegpt", {"video": "a.mp4", "conversations": talk("<video>", "x")}, "question", "missing_question"),
    ("sharegpt", {"Q": "?", "A": "x", "video_name": "a.mp4"}, "conversations", "missing_question"),
    ("video_chatgpt", {"A": "x", "video_name": "a.mp4"}, "Q", "missing_question"),
    ("video_chatgpt", {"Q": "?", "video_name": "a.mp4"}, "A", "missing_answer"),
    ("video_chatgpt", {"Q": "?", "A": "x"}, "video", "missing_video"),
    ("video_chatgpt", {"Q": ["?"], "A": "x", "video_name": "a.mp4"}, "question", "missing_question"),
    ("video_chatgpt", {"Q": "?", "A": {"x": 1}, "video_name": "a.mp4"}, "answer", "invalid"),
    ("video_chatgpt", {"video": "a.mp4", "conversations": talk("?", "x")}, "Q", "missing_question"),
    ("folder", {"video": "a.mp4", "conversations": talk("?", "x")}, "question", "missing_question"),
]


@pytest.mark.parametrize(("kind", "bad", "field", "error"), WRONG_QUESTIONS)
def test_a_wrong_question_row_is_one_error(reader, kind, bad, field, error):
    good = {
        "sharegpt": {"video": "a.mp4", "conversations": talk("good?", "x")},
        "video_chatgpt": {"Q": "good?", "A": "x", "video_name": "a.mp4"},
        "folder": {"video": "a.mp4", "question": "good?"},
    }[kind]
    cls = {"sharegpt": ShareGPTSource, "video_chatgpt": VideoChatGPTSource, "folder": FolderSource}[kind]
    questions = reader.read(cls(kind, str(reader.videos), reader.file([bad, good], "q.json")))
    assert [q["question"] for q in questions] == ["good?"]
    assert reader.kinds == [(1, field, error)]


# ------------------------------------------------------------------------------------------------------------ datasets


def with_videos(reader, path: Path) -> None:
    names = ["a.mp4", "v_def.mp4", "a.mp4"]
    said = [("1 ?", "x"), ("2 ?", None), ("3 ?", "z")]
    rows = [
        {"clip": {"bytes": (reader.videos / name).read_bytes(), "path": f"/somewhere/{name}"}, "ask": ask, "say": say}
        for name, (ask, say) in zip(names, said, strict=True)
    ]
    write_dataset(rows, Features({"clip": Video(), "ask": Value("string"), "say": Value("string")}), path)


def test_a_dataset_that_carries_its_videos(reader, tmp_path):
    with_videos(reader, tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    columns = {"video": "clip", "question": "ask", "answer": "say"}
    questions = reader.read(HubSource("hub", str(tmp_path / "set"), columns))
    assert texts(questions) == [("a.mp4", "1 ?", "x"), ("a.mp4", "3 ?", "z"), ("v_def.mp4", "2 ?", None)]
    for question in questions:
        assert Path(question["path"]) == reader.work / "videos" / f"{question['sha256']}.mp4"
        assert file_sha256(question["path"]) == question["sha256"] == file_sha256(reader.videos / question["source_id"])
    with pytest.raises(KitError, match=r"sources\[0\]: .*columns.answer: there is no column 'sai'; did you mean 'say'"):
        reader.read(HubSource("hub", str(tmp_path / "set"), {**columns, "answer": "sai"}))
    with pytest.raises(KitError, match="cannot be loaded") as error:
        reader.read(HubSource("hub", str(tmp_path / "set"), columns, split="nope"))
    assert "\n" not in str(error.value)
    with pytest.raises(KitError, match="there is no such file or folder"):
        reader.read(HubSource("hub", "./nowhere", columns))


def test_a_dataset_that_names_its_videos(reader):
    rows = [{"v": v, "q": "?", "n": 1} for v in ("a.mp4", "../rows.jsonl", "none", None)]
    source = HubSource("hub", reader.file(rows), {"video": "v", "question": "q"}, videos=str(reader.videos))
    assert [q["source_id"] for q in reader.read(source)] == ["a.mp4"]
    assert reader.kinds == [
        (2, "video", "outside_folder"),
        (3, "video", "missing_video"),
        (4, "video", "missing_video"),
    ]
    reader.read(HubSource("hub", reader.file(rows), {"video": "v", "question": "q"}))
    assert len(reader.rejected) == 4 and "no `videos` folder" in reader.rejected[0]["reason"]
