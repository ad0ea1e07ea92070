"""The toy world: the same seed gives the same files, and what is asked can be read off the decoded pixels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from dataset_builder.media import file_sha256, probe
from dataset_builder.toy import ANSWERS, COLOURS, FPS, FRAMES, NUMBERS, QUESTIONS, SIZE, TYPES, generate_toy
from tests.dataset_builder.clips import decode_all
from tests.dataset_builder.worlds import tree

SMALL = {"pretrain": 3, "train": 5, "validation": 3, "test": 3}
LARGE = {"pretrain": 60, "train": 100, "validation": 40, "test": 100}
BRIGHT = 60  # above any background's grey level, below any shape's brightest channel


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """300 clips."""
    folder = tmp_path_factory.mktemp("toy")
    generate_toy(folder, seed=3, clips=LARGE)
    return folder


@pytest.fixture(scope="module")
def truth(world) -> dict[str, dict]:
    return json.loads((world / "truth.json").read_text())["clips"]


@pytest.fixture(scope="module")
def rows(world) -> list[dict]:
    return [json.loads(line) for line in (world / "questions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pixels(world) -> dict[str, np.ndarray]:
    """int [8, 32, 32, 3] of every third clip, decoded from its file."""
    paths = sorted((world / "videos").iterdir())[::3]
    return {path.stem: np.stack(decode_all(path)).astype(int) for path in paths}


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        generate_toy(tmp_path / name, seed=seed, clips=SMALL)
    a, b, c = (tree(tmp_path / name) for name in "abc")
    assert a == b
    assert len(a) == sum(SMALL.values()) + 2
    assert list(a) == list(c) and not set(a.values()) & set(c.values())


def test_no_two_clips_are_the_same_file_or_show_the_same_scene(world, truth):
    hashes = Counter(file_sha256(path) for path in (world / "videos").iterdir())
    assert len(hashes) == sum(LARGE.values()) == 300
    scenes = {
        json.dumps({key: value for key, value in clip.items() if key not in ("split", "answers")}, sort_keys=True)
        for clip in truth.values()
    }
    assert len(scenes) == 300


def test_no_two_clips_decode_to_the_same_pictures(pixels):
    assert len({hashlib.sha256(video.tobytes()).digest() for video in pixels.values()}) == len(pixels) == 100


def test_splits_are_disjoint_and_pretraining_clips_are_never_asked_about(truth, rows):
    videos: dict[str, set[str]] = {}
    for row in rows:
        videos.setdefault(row["split"], set()).add(row["video"])
    assert {split: len(names) for split, names in videos.items()} == {k: n for k, n in LARGE.items() if k != "pretrain"}
    assert sum(map(len, videos.values())) == len(set.union(*videos.values()))
    assert Counter(clip["split"] for clip in truth.values()) == LARGE
    assert all(truth[row["video"].removesuffix(".mp4")]["split"] == row["split"] for row in rows)


def test_questions_agree_with_the_truth_and_every_answer_is_a_valid_one(world, truth, rows):
    assert len({row["id"] for row in rows}) == len(rows) == 240 * len(TYPES)
    for row in rows:
        kind = row["question_type"]
        assert row["answer"] == truth[row["video"].removesuffix(".mp4")]["answers"][kind]
        assert row["answer"] in ANSWERS[kind] and row["question"] == QUESTIONS[kind]
        assert (world / "videos" / row["video"]).is_file()
    for kind in TYPES:  # each answer is about equally likely: nobody is right by always saying the same
        counts = Counter(row["answer"] for row in rows if row["question_type"] == kind)
        assert set(counts) == set(ANSWERS[kind])
        assert max(counts.values()) < 1.6 * 240 / len(ANSWERS[kind])


def test_fewer_types_and_fewer_questions_a_clip(tmp_path):
    said = []
    questions = generate_toy(
        tmp_path,
        clips={"train": 6},
        types=("colour", "count", "order"),
        questions_per_clip=2,
        progress=lambda done, total: said.append((done, total)),
    )
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    assert set(Counter(row["video"] for row in asked).values()) == {2}
    assert {row["question_type"] for row in asked} == {"colour", "count", "order"}
    assert said == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize("wrong", [{"types": ("smell",)}, {"clips": {"holdout": 2}}])
def test_unknown_types_and_splits_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="unknown"):
        generate_toy(tmp_path, **wrong)


def test_clips_are_h264_files(world):
    for path in sorted((world / "videos").iterdir())[::50]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", FPS)
            assert "mp4" in container.format.name.split(",")
        info = probe(path)
        assert (info.frames, info.width, info.height, info.fps) == (FRAMES, SIZE, SIZE, FPS)
        assert info.duration == pytest.approx(FRAMES / FPS)


# ------------------------------------------------------------------------------------- answers read off the pixels


def shape_mask(frame: np.ndarray) -> np.ndarray:
    """Where the coloured shape is: bool [32, 32]. Dots, lamps and background are grey, so only it has saturation."""
    return frame.max(-1) - frame.min(-1) > BRIGHT


def read_colour(video: np.ndarray) -> str:
    mean = video[4][shape_mask(video[4])].mean(0)
    return min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())


def read_count(video: np.ndarray) -> str:
    row = video[0, 2].min(-1) > 160  # through the middle of the dots
    return NUMBERS[int(np.sum(row & ~np.roll(row, 1)))]


def read_direction(video: np.ndarray) -> str:
    (y0, x0), (y1, x1) = (np.argwhere(shape_mask(video[t])).mean(0) for t in (0, FRAMES - 1))
    if abs(x1 - x0) > abs(y1 - y0):
        return "right" if x1 > x0 else "left"
    return "down" if y1 > y0 else "up"


def read_order(video: np.ndarray) -> str:
    left, right = video[:, 27:30, 2:5].mean((1, 2, 3)), video[:, 27:30, 27:30].mean((1, 2, 3))
    return "left" if int(np.argmax(left > 160)) < int(np.argmax(right > 160)) else "right"


def read_shape(video: np.ndarray) -> str:
    where = np.argwhere(shape_mask(video[4]))
    (top, left), (bottom, right) = where.min(0), where.max(0)
    box = shape_mask(video[4])[top : bottom + 1, left : right + 1]
    if not box[len(box) // 2, box.shape[1] // 2]:
        return "ring"
    return "square" if box.mean() > 0.7 else "cross"  # 14×14 of 14×14, or two bars of 14×4


READERS = {
    "colour": read_colour,
    "count": read_count,
    "direction": read_direction,
    "order": read_order,
    "shape": read_shape,
}


@pytest.mark.parametrize("kind", TYPES)
def test_the_decoded_pixels_show_the_answer(pixels, truth, kind):
    wrong = {
        name: (found, truth[name]["answers"][kind])
        for name, video in pixels.items()
        if (found := READERS[kind](video)) != truth[name]["answers"][kind]
    }
    assert wrong == {}
