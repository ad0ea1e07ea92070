"""Planted leaks are found whatever was done to the copy, and what is no leak is kept."""

from __future__ import annotations

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_builder.errors import KitError
from dataset_builder.selection.evaluation_sets import read_evaluation_set, video_hashes
from dataset_builder.selection.fates import Fates
from dataset_builder.selection.leaks import NearHashes, drop_leaks, plain_name
from dataset_builder.settings import DecontaminationConfig
from dataset_builder.table import QuestionTable, write_questions
from tests.dataset_builder.clips import write_clip


def scene(seed: int, width: int = 96, height: int = 64, frames: int = 8) -> np.ndarray:
    """uint8 [T, H, W, 3]: smooth blobs that differ from seed to seed, the same picture at any size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    picture = np.zeros((height, width))
    for _ in range(9):
        centre, size, sign = rng.random(2), rng.uniform(0.08, 0.2), rng.choice([-1, 1])
        picture += sign * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * size**2))
    grey = np.uint8(np.clip(128 + 70 * picture, 0, 255))
    return np.repeat(np.repeat(grey[None, ..., None], 3, axis=-1), frames, axis=0)


def table(folder, rows: list[dict]) -> QuestionTable:
    base = {"source": "s", "license": "CC0-1.0", "answers": [], "split": "train", "embed": False}
    write_questions([base | row for row in rows], folder / "questions.arrow", 4)
    return QuestionTable(folder / "questions.arrow")


def row(key: str, sha256: str, phash: str, question: str, source_id: str = "x.mp4") -> dict:
    hashes = {"sha256": sha256, "phash": phash, "video_id": sha256[:16]}
    return {"question_id": key, "question": question, "source_id": source_id, **hashes}


def found(table: QuestionTable, *sets: DecontaminationConfig) -> dict[str, str]:
    fates = Fates(len(table))
    drop_leaks(table, list(sets), fates)
    return {r["question_id"]: fates[n] for n, r in enumerate(table) if fates[n]}


def test_planted_leaks_precision_and_recall(tmp_path, capsys):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    for seed in range(12):
        write_clip(evaluation / f"ev{seed:02d}.mp4", scene(seed), options={"crf": "18"})
    asked = [{"question": "What does the chef put into the pan after the onions?", "video_id": "elsewhere"}]
    asked.append({"question": "What is he doing?", "video_id": "elsewhere2"})
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in asked))
    copies = tmp_path / "copies"
    copies.mkdir()
    rows, leaks = [], {}

    def plant(key: str, path, question: str, source_id: str, how: str | None) -> None:
        rows.append(row(key, *video_hashes(path), question, source_id))
        if how:
            leaks[key] = how

    for seed in range(3):
        plant(f"renamed{seed}", evaluation / f"ev{seed:02d}.mp4", "q", f"other{seed}.mp4", "sha256")
    for seed in range(3, 6):
        path = write_clip(copies / f"r{seed}.mp4", scene(seed), codec="mpeg4", options={"qscale": "8"})
        plant(f"reencoded{seed}", path, "q", path.name, "phash")
    for seed in range(6, 9):
        path = write_clip(copies / f"s{seed}.mp4", scene(seed, 160, 120), options={"crf": "30"})
        plant(f"rescaled{seed}", path, "q", path.name, "phash")
    for seed in range(9, 12):
        path = write_clip(copies / f"t{seed}.mp4", scene(seed + 500))
        plant(f"sameid{seed}", path, "q", f"train/EV{seed:02d}.webm", "video_id")
    path = write_clip(copies / "u.mp4", scene(600))
    plant("wording", path, "what does the chef put into the pan -- after the onions", "u.mp4", "question")
    for seed in range(100, 140):
        path = write_clip(copies / f"v{seed}.mp4", scene(seed))
        plant(f"clean{seed}", path, "What is he doing?", path.name, None)

    sets = [
        DecontaminationConfig("bench", videos=str(evaluation)),
        DecontaminationConfig("asked", questions=str(tmp_path / "asked.jsonl")),
    ]
    hits = found(table(tmp_path, rows), *sets)
    right = len(hits.keys() & leaks.keys())
    precision, recall = right / len(hits), right / len(leaks)
    with capsys.disabled():
        print(f"\ndecontamination: {len(leaks)} planted leaks, {len(rows) - len(leaks)} others: ", end="")
        print(f"precision {precision:.2f}, recall {recall:.2f}")
    assert {key: reason.split(":")[2] for key, reason in hits.items()} == leaks
    assert hits["wording"] == "leak:asked:question"
    assert precision == recall == 1.0


def test_short_or_common_wording_is_a_leak_only_on_the_same_video(tmp_path):
    long = "what does the chef put into the pan after the onions"
    digits = [f"{n:064x}" for n in range(1, 9)]
    rows = [row("same", digits[0], "0f" * 8, "What is he doing?", "clip7.mp4")]
    rows.append(row("other", digits[1], "0f" * 8, "What is he doing?", "clip8.mp4"))
    rows += [row(f"common{n}", digits[n], "0f" * 8, long, f"c{n}.mp4") for n in range(2, 6)]
    (tmp_path / "e.csv").write_text(f"video,question\nclip7,what is he doing\nz,{long}\n")
    config = DecontaminationConfig("e", questions=str(tmp_path / "e.csv"), match=["question"])
    assert found(table(tmp_path, rows), config) == {"same": "leak:e:question"}
    assert set(found(table(tmp_path, rows[:-1]), config)) == {"same", "common2", "common3", "common4"}


def test_a_dataset_of_the_kit_as_evaluation_set(tmp_path):
    (tmp_path / "set" / "questions").mkdir(parents=True)
    kept = {
        "video_id": ["a" * 16],
        "source_id": ["x.mp4"],
        "sha256": ["a" * 64],
        "phash": ["0f" * 8],
        "question": ["q?"],
    }
    pq.write_table(pa.table(kept), tmp_path / "set" / "questions" / "test-00000-of-00001.parquet")
    config = DecontaminationConfig("kit", dataset=str(tmp_path / "set"), match=["sha256"])
    rows = [row("a", "a" * 64, "f0" * 8, "other", "y.mp4"), row("b", "b" * 64, "f0" * 8, "other", "z.mp4")]
    assert found(table(tmp_path, rows), config) == {"a": "leak:kit:sha256"}
    with pytest.raises(KitError, match="no split 'train'"):
        found(table(tmp_path, rows), DecontaminationConfig("kit", dataset=str(tmp_path / "set"), split="train"))


@pytest.mark.parametrize("distance", [0, 3, 6, 11, 16])
def test_near_hashes_are_those_of_comparing_all(distance):
    rng = random.Random(distance)
    known = [f"{rng.getrandbits(64):016x}" for _ in range(200)]
    asked = []
    for number in range(300):
        value = int(known[number % 200], 16)
        for bit in rng.sample(range(64), rng.randint(0, distance + 4)):
            value ^= 1 << bit
        asked.append(f"{value:016x}")
    expected = [min((int(a, 16) ^ int(k, 16)).bit_count() for k in known) <= distance for a in asked]
    assert NearHashes(known, distance).match([*asked, None, "0" * 16]) == [*expected, False, False]


def test_names_of_a_video():
    assert plain_name("test/V_abc.MP4") == plain_name("v_abc") == "v_abc"
    assert plain_name("a.b.webm") == "a.b" and plain_name(None) == ""


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[1]\n", "expected an object"),
        ('{"x": 1}\n', "has none of"),
        ("nope\n", "cannot be read"),
        ('{"phash": "12"}\n', "16 hexadecimal"),
        ("", "holds no row"),
    ],
)
def test_an_unusable_evaluation_set_is_one_line(tmp_path, text, reason):
    (tmp_path / "e.jsonl").write_text(text)
    config = DecontaminationConfig("e", questions=str(tmp_path / "e.jsonl"))
    with pytest.raises(KitError, match=reason) as error:
        found(table(tmp_path, [row("a", "1" * 64, "0f" * 8, "q")]), config)
    assert "\n" not in str(error.value)
    with pytest.raises(KitError, match="no such folder"):
        read_evaluation_set(DecontaminationConfig("e", videos=str(tmp_path / "nowhere")))
