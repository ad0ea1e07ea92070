"""Every shape in which people have preference rows gives the same batch; what cannot be used is one line."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_builder.errors import KitError, RowError, run_cli
from dataset_builder.media import sample_frames
from dataset_builder.toy_models import make_tiny
from recipes.dpo_data import PLACEHOLDER, Shape, _outline, load_pairs, shape_texts
from recipes.video.collate import VideoDPOCollator
from recipes.video.encoding import ClipEncoder, without_nulls


def plain(row) -> dict:
    """A row of the kit as three texts."""
    return {
        "prompt": row["prompt"][0]["content"][-1]["text"],
        **{side: row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")},
    }


def turns(row, *content) -> dict:
    """A row as messages with string contents, or with the given parts in place of the question."""
    texts = plain(row)
    said = {side: [{"role": "assistant", "content": texts[side]}] for side in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": list(content) or texts["prompt"]}], **said}


def whole(row) -> dict:
    """A row whose answers hold the whole conversation."""
    said = turns(row)
    return {side: said["prompt"] + said[side] for side in ("chosen", "rejected")}


class World:
    """Four pairs about three clips: as rows, as files, as frames."""

    def __init__(self, folder: Path, rows):
        self.folder, self.rows = folder, [rows[i] for i in range(4)]
        (folder / "clips").mkdir(parents=True)
        self.clips, self.pictures, self.rates = [], [], []
        for number, row in enumerate(self.rows):
            clip = folder / f"clips/{number}.mp4"
            clip.write_bytes(row["video"]["bytes"])
            frames = sample_frames(clip, 100)
            pictures = []
            for i, picture in enumerate(frames.array):
                pictures.append(folder / f"clips/{number}-frames/f{i}.png")
                pictures[-1].parent.mkdir(exist_ok=True)
                Image.fromarray(picture).save(pictures[-1])
            self.clips.append(f"clips/{number}.mp4")
            self.pictures.append([str(p.relative_to(folder)) for p in pictures])
            self.rates.append(frames.fps)

    def lines(self, name: str, make) -> Path:
        """A JSONL file of `make(row, number)`."""
        path = self.folder / name
        path.write_text("".join(json.dumps(make(row, i)) + "\n" for i, row in enumerate(self.rows)))
        return path

    def table(self, make, **columns) -> datasets.Dataset:
        """The same as a table, some columns with their features."""
        made = datasets.Dataset.from_list([make(row, i) for i, row in enumerate(self.rows)])
        for name, feature in columns.items():
            made = made.cast_column(name, feature)
        return made


@pytest.fixture(scope="module")
def world(rows, tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("shapes"), rows)


@pytest.fixture(scope="module")
def collate():
    return VideoDPOCollator(ClipEncoder(make_tiny("qwen2_vl")[1]))


def parquet_with_bytes(w: World) -> Path:
    rows = w.table(lambda row, i: {"video": row["video"]["bytes"], **turns(row)})
    rows.to_parquet(w.folder / "bytes.parquet")
    return w.folder / "bytes.parquet"


def saved(w: World, name: str, make, split: str | None = None, **columns) -> Path:
    rows = w.table(make, **columns)
    (rows if split is None else datasets.DatasetDict({split: rows})).save_to_disk(w.folder / name)
    return w.folder / name


def split_files(w: World) -> Path:
    w.lines("train.jsonl", lambda row, i: {"video": w.clips[i], **plain(row)})
    return w.folder


def video_folder(w: World) -> Path:
    """What `datasets` calls a video folder: clips beside a metadata.jsonl."""
    folder = w.folder / "videofolder"
    folder.mkdir()
    for clip in w.clips:
        shutil.copy(w.folder / clip, folder)
    w.lines("videofolder/metadata.jsonl", lambda row, i: {"file_name": Path(w.clips[i]).name, **plain(row)})
    return folder


PLACED, MARKED, PLAIN = "no video part", "mark the video's place", "hold plain text"
VIDEO = {"type": "video"}
SHAPES = {
    "strings": (
        lambda w: w.lines("strings.jsonl", lambda row, i: {"video": w.clips[i], **turns(row)}),
        [PLACED],
    ),
    "absolute path": (
        lambda w: w.lines("absolute.jsonl", lambda row, i: {"video": str(w.folder / w.clips[i]), **turns(row)}),
        [PLACED],
    ),
    "parts with video": (
        lambda w: w.lines(
            "parts.jsonl",
            lambda row, i: {
                "video": w.clips[i],
                **turns(row, VIDEO, {"type": "text", "text": plain(row)["prompt"]}),
            },
        ),
        [],
    ),
    "parts without video": (
        lambda w: w.lines(
            "no-part.jsonl",
            lambda row, i: {"video": w.clips[i], **turns(row, {"type": "text", "text": plain(row)["prompt"]})},
        ),
        [PLACED],
    ),
    "path in the part": (
        lambda w: w.lines(
            "in-part.jsonl",
            lambda row, i: turns(row, {**VIDEO, "video": w.clips[i]}, {"type": "text", "text": plain(row)["prompt"]}),
        ),
        [],
    ),
    "plain text": (
        lambda w: w.lines("plain.jsonl", lambda row, i: {"video": w.clips[i], **plain(row)}),
        [PLACED, PLAIN],
    ),
    "marked text": (
        lambda w: w.lines(
            "marked.jsonl",
            lambda row, i: {"video": w.clips[i], **plain(row), "prompt": f"{PLACEHOLDER}\n{plain(row)['prompt']}"},
        ),
        [MARKED, PLAIN],
    ),
    "implicit prompt": (
        lambda w: w.lines("implicit.jsonl", lambda row, i: {"video": w.clips[i], **whole(row)}),
        [PLACED],
    ),
    "prompt repeated": (
        lambda w: w.lines(
            "repeated.jsonl",
            lambda row, i: {"video": w.clips[i], "prompt": plain(row)["prompt"], **whole(row)},
        ),
        [PLACED],
    ),
    "list of one": (
        lambda w: w.lines("videos.jsonl", lambda row, i: {"videos": [w.clips[i]], **turns(row)}),
        [PLACED],
    ),
    "list of pictures": (
        lambda w: w.lines("frames.jsonl", lambda row, i: {"frames": w.pictures[i], "fps": w.rates[i], **turns(row)}),
        [PLACED],
    ),
    "parquet": (parquet_with_bytes, [PLACED]),
    "saved with Video": (
        lambda w: saved(
            w,
            "saved",
            lambda row, i: {"video": str(w.folder / w.clips[i]), **turns(row)},
            video=datasets.Video(),
        ),
        [PLACED],
    ),
    "saved with splits": (
        lambda w: saved(
            w,
            "splits",
            lambda row, i: {"videos": [row["video"]], **turns(row)},
            split="train",
            videos=datasets.List(datasets.Video()),
        ),
        [PLACED],
    ),
    "saved with Image": (
        lambda w: saved(
            w,
            "images",
            lambda row, i: {
                "frames": [str(w.folder / p) for p in w.pictures[i]],
                "fps": w.rates[i],
                "images": 8,
                **turns(row),
            },
            frames=datasets.List(datasets.Image()),
        ),
        [PLACED],
    ),
    "folder with train.jsonl": (split_files, [PLACED, PLAIN]),
    "video folder": (video_folder, [PLACED, PLAIN]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_batch(shape, world, collate):
    make, notes = SHAPES[shape]
    lines: list[str] = []
    rows, digest = load_pairs(str(make(world)), say=lines.append)
    batch, expected = collate([rows[i] for i in range(4)]), collate(world.rows)
    kept = batch.pop("clip_keys"), expected.pop("clip_keys")
    if "frames" not in rows[0]:
        assert kept[0] == kept[1], "keyed by the clip's content, wherever it stands"
    torch.testing.assert_close(batch, expected, rtol=0, atol=0)
    assert [any(note in line for line in lines) for note in notes] == [True] * len(notes) and len(lines) == len(notes)
    assert all("4 of 4" in line for line in lines)
    assert set(rows[0]) <= {"question_id", "video_id", "video", "frames", "fps", "prompt", "chosen", "rejected"}
    assert load_pairs(str(make(world)), say=lines.append)[1] == digest if shape == "strings" else len(digest) == 16


def test_frame_folder_and_its_rate(world, collate):
    """A folder of frames does not say its rate: the same pixels, at two frames a second."""
    name = world.lines("folders.jsonl", lambda row, i: {"video": str(Path(world.pictures[i][0]).parent), **turns(row)})
    rows, _ = load_pairs(str(name), say=lambda line: None)
    found, expected = collate([rows[0]]), collate([world.rows[0]])
    assert torch.equal(found["clips"][0]["pixel_values_videos"], expected["clips"][0]["pixel_values_videos"])
    encoder = collate.encoder
    assert encoder.frames(rows[0]["video"]).fps == 2.0 != world.rates[0]


def test_a_dataset_of_the_kit(dataset, rows):
    lines: list[str] = []
    found, digest = load_pairs(str(dataset), say=lines.append)
    assert lines == [] and len(found) == len(rows)
    for name in ("question_id", "video_id", "video"):
        assert found[5][name] == rows[5][name]
    for name in ("prompt", "chosen", "rejected"):
        assert found[5][name] == without_nulls(rows[5][name])
    assert load_pairs(str(dataset), say=lines.append)[1] == digest
    with pytest.raises(KitError, match="cannot load split 'test'"):
        load_pairs(str(dataset), split="test")


def test_the_digest_follows_texts_and_clips_but_not_the_folder(world, tmp_path):
    def digest(change=lambda row: row, folder=world.folder):
        path = folder / "digest.jsonl"
        lines = [change({"video": world.clips[i], **plain(row)}) for i, row in enumerate(world.rows)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return load_pairs(str(path), say=lambda line: None)[1]

    shutil.copytree(world.folder / "clips", tmp_path / "clips")
    first = digest()
    assert digest(folder=tmp_path) == first
    assert digest(lambda row: {**row, "chosen": row["chosen"] + " ."}) != first
    assert digest(lambda row: {**row, "video": world.clips[0]}) != first


def test_several_turns_keep_their_order_and_the_video_goes_to_the_first_user_turn():
    said = [("system", "Be brief."), ("user", "what moves ?"), ("assistant", "a ball"), ("user", "where to ?")]
    prompt = [{"role": role, "content": text} for role, text in said]
    shaped, part = shape_texts({"prompt": prompt, "chosen": "left", "rejected": "right"}, Counter())
    assert [m["role"] for m in shaped["prompt"]] == [role for role, _ in said] and part is None
    assert [[p["type"] for p in m["content"]] for m in shaped["prompt"]] == [
        ["text"],
        ["video", "text"],
        *[["text"]] * 2,
    ]
    middle, _ = shape_texts({"prompt": f"Look at {PLACEHOLDER}: what ?", "chosen": "a", "rejected": "b"}, Counter())
    assert [p.get("text") for p in middle["prompt"][0]["content"]] == ["Look at ", None, ": what ?"]


turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(min_size=1)})


@given(st.lists(turn, max_size=3), st.text(min_size=1), st.text(), st.text())
@settings(max_examples=100, deadline=None)
def test_an_implicit_prompt_is_the_explicit_one(more, question, chosen, rejected):
    prompt = [{"role": "user", "content": question.replace(PLACEHOLDER, "")}]
    prompt += [{**t, "content": t["content"].replace(PLACEHOLDER, "")} for t in more]
    a, b = ([{"role": "assistant", "content": text}] for text in ("+" + chosen, rejected))
    explicit = shape_texts({"prompt": prompt, "chosen": a, "rejected": b}, Counter())
    assert shape_texts({"chosen": prompt + a, "rejected": prompt + b}, Counter()) == explicit


clip = st.one_of(
    st.none(), st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=4), "path": st.none() | st.text()})
)


@given(st.lists(st.none() | st.lists(clip, max_size=3), max_size=6), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_outlines_are_read_off_the_table(values, skipped):
    kind = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    outline = _outline(pa.array(values, kind)[skipped:])
    short = [None if v is None else [c and (len(c["bytes"] or b"") or c["path"]) for c in v] for v in values]
    assert outline == short[skipped:]


GOOD = {"prompt": "what ?", "chosen": "red", "rejected": "blue"}
TWO = [{"role": "user", "content": [VIDEO, VIDEO, {"type": "text", "text": "what ?"}]}]
WRONG = {
    "no rejected": ({"rejected": None}, "field 'rejected': is missing"),
    "no prompt": ({"prompt": None}, "field 'prompt': is missing, and chosen and rejected do not begin"),
    "chosen empty": ({"chosen": "  "}, "field 'chosen': is empty"),
    "two videos in the prompt": ({"prompt": TWO}, "field 'prompt': has 2 videos; one video a row is read"),
    "two marks": ({"prompt": f"{PLACEHOLDER}{PLACEHOLDER} ?"}, "field 'prompt': has 2 videos"),
    "image": ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "field 'prompt': has a part of type"),
    "video in an answer": ({"chosen": [{"role": "assistant", "content": [VIDEO]}]}, "field 'chosen': holds a video"),
    "no role": ({"prompt": [{"content": "what ?"}]}, "field 'prompt': must be text or a list of messages"),
    "no user": ({"prompt": [{"role": "system", "content": "x"}]}, "field 'prompt': has no user turn"),
    "two videos": ({"videos": ["a.mp4", "b.mp4"]}, "field 'videos': holds 2; one video a row is read"),
    "no frames": ({"frames": []}, "field 'frames': is an empty list"),
    "no such file": ({"video": "none.mp4"}, "field 'video': there is no file .*none.mp4"),
    "no such picture": ({"frames": ["none.png"]}, "field 'frames': there is no file .*none.png"),
    "no video": ({"video": None}, "field 'video': the row has no video; .*--media"),
    "address": ({"video": "https://example.org/a.mp4"}, "field 'video': https://.* is an address"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_row_that_cannot_be_used_is_named(case, world):
    """The second of two rows is wrong; its other fields come in the shape that the wrong one asks for."""
    change, message = WRONG[case]
    field, value = next(iter(change.items()))
    column = field if field in ("videos", "frames") else "video"
    first = {"video": world.clips[0], "videos": [world.clips[0]], "frames": world.pictures[0]}[column]
    if isinstance(value, list) and field in GOOD:  # one type a column
        turn = {"role": "user" if field == "prompt" else "assistant", "content": [{"type": "text", "text": "x"}]}
        good = {**GOOD, field: [turn]}
    else:
        good = GOOD
    path = world.folder / "wrong.jsonl"
    path.write_text("".join(json.dumps({column: first, **good, **c}) + "\n" for c in ({}, change)))
    with pytest.raises(RowError, match=f"wrong.jsonl:2: {message}") as raised:
        load_pairs(str(path), say=lambda line: None)
    assert "\n" not in str(raised.value)
    assert run_cli(lambda: load_pairs(str(path), say=lambda line: None) and 0) == 2


def test_useless_pairs_are_counted(world):
    rows = [GOOD, {**GOOD, "rejected": "red"}, {**GOOD, "rejected": ""}]
    path = world.folder / "useless.jsonl"
    path.write_text("".join(json.dumps({"video": world.clips[0], **row}) + "\n" for row in rows))
    lines: list[str] = []
    load_pairs(str(path), say=lines.append)
    assert "warning: in 1 of 3 pairs chosen and rejected are the same; they teach nothing" in lines
    assert "warning: in 1 of 3 pairs rejected is empty" in lines


def test_a_dataset_that_cannot_be_used_is_one_line(world, tmp_path):
    def refused(name, content=None, **arguments):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(KitError) as raised:
            load_pairs(str(tmp_path / name) if content is not None else name, **arguments)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    clip = str(world.folder / world.clips[0])
    assert "no such dataset file or folder" in refused(str(tmp_path / "none.jsonl"))
    assert "no such dataset file or folder" in refused("none")
    assert "nobody/nothing-here: cannot load split 'train'" in refused("nobody/nothing-here")
    assert "must be .jsonl or .parquet" in refused("rows.csv", "a,b\n")
    assert "cannot load split 'train'" in refused("broken.jsonl", '{"video": \n')
    assert "column rejected is missing; there are video" in refused(
        "two.jsonl", json.dumps({"video": clip, "prompt": "a", "chosen": "b"})
    )
    images = refused("images.jsonl", json.dumps({"images": ["a.png"], **GOOD}))
    assert "column video (or videos, frames) (rename `images` to `frames`" in images
    assert "has no split 'test'" in refused("file.jsonl", json.dumps({"video": clip, **GOOD}), split="test")


def test_a_row_is_named_when_its_clip_cannot_be_decoded(world, collate):
    broken = world.folder / "broken.mp4"
    broken.write_bytes((world.folder / world.clips[0]).read_bytes()[:600])
    cut = world.folder / "cut.png"
    cut.write_bytes((world.folder / world.pictures[0][0]).read_bytes()[:60])
    path = world.folder / "undecodable.jsonl"
    path.write_text("".join(json.dumps({"video": v, **GOOD}) + "\n" for v in (world.clips[0], broken.name)))
    rows, _ = load_pairs(str(path), say=lambda line: None)
    with pytest.raises(KitError, match=r"^row 2: field video: \S+broken.mp4: "):
        collate([rows[0], rows[1]])
    path.write_text(json.dumps({"frames": [cut.name], **GOOD}) + "\n")
    rows, _ = load_pairs(str(path), say=lambda line: None)
    with pytest.raises(KitError, match=r"^row 1: field frames: a picture cannot be read"):
        collate([rows[0]])


def test_rows_are_shaped_when_they_are_read(world):
    rows, _ = load_pairs(str(world.lines("lazy.jsonl", lambda row, i: {"video": world.clips[i], **plain(row)})))
    assert isinstance(rows.format["format_kwargs"]["transform"], Shape)
    assert [row["question_id"] for row in rows.select([2, 0])] == ["3", "1"]
