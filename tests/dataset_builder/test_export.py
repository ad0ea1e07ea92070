"""Exports, read back by plain readers of each shape, and one real step of stock TRL vision DPO."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.export import SHAPES, export
from dataset_builder.export import pairs as pairs_module
from dataset_builder.export.jsonl import ROWS, _line
from dataset_builder.export.pairs import Pair
from dataset_builder.loading import split_files
from dataset_builder.media import file_sha256, sample_frames
from dataset_builder.schema import FEATURES, assistant_message, user_message
from dataset_builder.table import QuestionTable
from tests.dataset_builder.clips import moving_square, write_clip
from tests.dataset_builder.worlds import tree


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def text(messages: list[dict]) -> str:
    (part,) = [part for message in messages for part in message["content"] if part["type"] == "text"]
    return part["text"]


def source_rows(dataset: Path, split: str = "train") -> list[dict]:
    """The dataset's own rows, read without the code under test."""
    rows = [
        row for path in sorted((dataset / "preferences").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()
    ]
    for row in rows:
        row["texts"] = (text(row["prompt"]), text(row["chosen"]), text(row["rejected"]))
    return rows


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Plain readers: what each trainer takes out of a row, as (question, chosen, rejected, path of the one video).


def read_ms_swift(folder: Path, split: str) -> list[tuple]:
    rows = []
    for row in read_jsonl(folder / f"{split}.jsonl"):
        assert set(row) == {"messages", "rejected_response", "videos"}
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        tags = sum(message["content"].count("<video>") for message in row["messages"])
        assert tags + row["rejected_response"].count("<video>") == len(row["videos"]) == 1
        assert row["rejected_response"] and row["rejected_response"] != assistant["content"]
        assert os.path.isabs(row["videos"][0])
        question = user["content"].removeprefix("<video>")
        rows.append((question, assistant["content"], row["rejected_response"], Path(row["videos"][0])))
    return rows


def read_llama_factory(folder: Path, split: str) -> list[tuple]:
    ((_, entry),) = json.loads((folder / "dataset_info.json").read_text()).items()
    assert entry["formatting"] == "sharegpt" and entry["ranking"] is True and entry["file_name"] == f"{split}.jsonl"
    columns, rows = entry["columns"], []
    for row in read_jsonl(folder / entry["file_name"]):
        (human,) = row[columns["messages"]]
        chosen, rejected, videos = (row[columns[name]] for name in ("chosen", "rejected", "videos"))
        assert (human["from"], chosen["from"], rejected["from"]) == ("human", "gpt", "gpt")
        assert sum(turn["value"].count("<video>") for turn in (human, chosen, rejected)) == len(videos) == 1
        rows.append((human["value"].removeprefix("<video>"), chosen["value"], rejected["value"], folder / videos[0]))
    return rows


def read_hound(folder: Path, split: str) -> list[tuple]:
    rows = read_jsonl(folder / f"{split}.jsonl")
    assert all(set(row) == {"id", "video", "prompt", "chosen", "rejected"} for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert all("".join((row["prompt"], row["chosen"], row["rejected"])).count("<video>") == 1 for row in rows)
    return [
        (row["prompt"].removeprefix("<video>\n"), row["chosen"], row["rejected"], folder / row["video"]) for row in rows
    ]


READERS = {"ms_swift": read_ms_swift, "llama_factory": read_llama_factory, "hound": read_hound}


def check_files(rows: list[tuple], expected: list[dict]) -> None:
    assert [row[:3] for row in rows] == [row["texts"] for row in expected]
    for (*_, path), row in zip(rows, expected):
        assert path.is_file() and file_sha256(path)[:16] == row["video_id"] == path.stem and path.suffix == ".mp4"


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("shape", list(READERS))
def test_a_plain_reader_finds_every_pair_again(built, tmp_path, shape, split):
    report = export(built.output, shape, tmp_path / "out", split=split, progress=False)
    expected = source_rows(built.output, split)
    check_files(READERS[shape](tmp_path / "out", split), expected)
    assert report.rows == len(expected) > 0 and not report.left_out
    assert report.videos == len({row["video_id"] for row in expected}) == len(list((tmp_path / "out/videos").iterdir()))


def test_frames_as_images_hold_the_sampled_frames(built, tmp_path):
    report = export(built.output, "images", tmp_path / "out", num_frames=3, image_format="png", progress=False)
    rows, expected = datasets.load_dataset(str(tmp_path / "out"), split="train"), source_rows(built.output)
    assert rows.features["images"] == datasets.List(datasets.Image())
    assert len(rows) == report.rows == len(expected)
    for row, source in zip(rows, expected):
        frames = sample_frames(source["video"]["bytes"], 3).array
        assert len(row["images"]) == len(frames)
        assert all(np.array_equal(np.asarray(image), frame) for image, frame in zip(row["images"], frames))
        (message,) = row["prompt"]
        assert [part["type"] for part in message["content"]] == ["image"] * len(frames) + ["text"]
        assert (text(row["prompt"]), text(row["chosen"]), text(row["rejected"])) == source["texts"]
        assert (row["question_id"], row["video_id"]) == (source["question_id"], source["video_id"])


def test_stock_trl_vision_dpo_takes_a_step_on_the_images(built, tmp_path):
    import torch
    from trl import DPOConfig, DPOTrainer

    from dataset_builder.toy_models import save_tiny

    export(built.output, "images", tmp_path / "out", num_frames=4, progress=False)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train")
    checkpoint = str(save_tiny("qwen2_5_vl", tmp_path / "tiny", seed=3))
    settings_ = DPOConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to=[],
        model_init_kwargs={"dtype": "float32"},
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(checkpoint, args=settings_, train_dataset=rows)
    model = trainer.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = next(iter(trainer.get_train_dataloader()))
    visual = (batch["input_ids"] == model.config.image_token_id).sum().item()
    assert visual == 2 * 2 * 4  # pairs x answers x frames, a token each: no frame is lost
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert trainer.state.global_step == 1 and np.isfinite(logged["loss"]) and logged["grad_norm"] > 0
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture
def bare(built, tmp_path):
    """The dataset without its videos, and the media.json that belongs to it."""
    folder = tmp_path / "bare"
    shutil.copytree(built.output, folder)
    for files in split_files(folder, "preferences").values():
        for path in files:
            table = pq.read_table(path)
            position = table.schema.get_field_index("video")
            pq.write_table(
                table.set_column(
                    position, table.schema.field(position), pa.nulls(len(table), table.schema.types[position])
                ),
                path,
            )
    media = {row["sha256"]: row["path"] for row in QuestionTable(built.work / "questions.arrow")}
    (tmp_path / "media.json").write_text(json.dumps(media))
    return folder, media


def test_rows_without_video_are_counted_and_never_silent(built, bare, tmp_path):
    folder, media = bare
    expected = source_rows(built.output)
    with pytest.raises(KitError, match="attach your own copies") as caught:
        export(folder, "hound", tmp_path / "none", progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "none").exists()
    missing = expected[0]["video_id"]
    some = {digest: path for digest, path in media.items() if digest[:16] != missing}
    report = export(folder, "hound", tmp_path / "some", media=some, progress=False)
    without = sum(row["video_id"] == missing for row in expected)
    assert report.left_out == {"no_video": without} and report.rows == len(expected) - without
    (line,) = report.lines()
    assert line.startswith(f"left out: {without} of train") and line in str(report)
    check_files(read_hound(tmp_path / "some", "train"), [row for row in expected if row["video_id"] != missing])


@pytest.mark.parametrize("shape", SHAPES)
def test_videos_from_media_give_the_same_export(built, bare, tmp_path, shape):
    export(built.output, shape, tmp_path / "out", progress=False)
    embedded = tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    export(bare[0], shape, tmp_path / "out", media=tmp_path / "media.json", progress=False)
    attached = tree(tmp_path / "out")
    del embedded["export.json"], attached["export.json"]
    assert attached == embedded


def test_a_copy_that_has_changed_is_not_used(built, bare, tmp_path):
    folder, media = bare
    row = source_rows(built.output)[0]
    digest = next(key for key in media if key[:16] == row["video_id"])
    changed = tmp_path / "changed.mp4"
    changed.write_bytes(Path(media[digest]).read_bytes() + b"\0")
    report = export(folder, "ms_swift", tmp_path / "out", media=media | {digest: str(changed)}, progress=False)
    assert set(report.left_out) == {"wrong_copy"}
    assert all(path.stem != row["video_id"] for *_, path in read_ms_swift(tmp_path / "out", "train"))


def handmade(folder: Path, rows: list[tuple], video: bytes, video_id: str = "clip") -> Path:
    """A dataset of (question, chosen, rejected) on one video."""
    common = {
        **{"video_id": video_id, "source": "own", "license": "cc0-1.0", "answer": None, "model_chosen": "a"},
        **{"model_rejected": "b", "score_chosen": None, "score_rejected": None, "margin": None},
        "video": {"bytes": video, "path": "clip.mp4"},
    }
    full = [
        {
            **common,
            **{"question_id": f"q{i}", "response_id_chosen": "c", "response_id_rejected": "r", "question": question},
            "prompt": [user_message(question)],
            "chosen": [assistant_message(chosen)],
            "rejected": [assistant_message(rejected)],
        }
        for i, (question, chosen, rejected) in enumerate(rows)
    ]
    (folder / "preferences").mkdir(parents=True)
    table = pa.Table.from_pylist(full, FEATURES["preferences"].arrow_schema)
    pq.write_table(table, folder / "preferences" / "train-00000-of-00001.parquet")
    return folder


def test_rows_a_trainer_would_drop_or_misread_are_left_out_with_their_reason(built, tmp_path):
    rows = [
        ("What?", "Dots.", "Lines."),
        ("What does <video> mean?", "A tag.", "Nothing."),
        ("What?", "See <image>.", "Lines."),
        ("What?", "Dots.", " "),
        ("What?", "Dots.", "Dots."),
        ("What?", "Dots.<|im_end|>", "Lines."),
    ]
    video = source_rows(built.output)[0]["video"]["bytes"]
    dataset = handmade(tmp_path / "made", rows, video)
    for shape, tags in (("ms_swift", 2), ("llama_factory", 2), ("hound", 2), ("images", 0)):
        report = export(dataset, shape, tmp_path / shape, progress=False)
        expected = {"empty_answer": 1, "same_answers": 1, "special_token": 1} | ({"tag_in_text": tags} if tags else {})
        assert report.left_out == expected and report.rows == len(rows) - sum(expected.values())
        assert len(report.lines()) == len(expected)
    assert read_hound(tmp_path / "hound", "train")[0][:3] == rows[0]
    broken = handmade(tmp_path / "broken", rows[:1], video[: len(video) // 2])
    for shape in SHAPES:  # ms-swift would train on another row in its place
        with pytest.raises(KitError, match="cannot be decoded"):
            export(broken, shape, tmp_path / "no", progress=False)


def test_clips_that_a_trainer_cannot_read_or_shows_wrongly_are_told(tmp_path):
    rows = [("What?", "Dots.", "Lines."), ("Where?", "Here.", "There.")]
    clips = {
        "single": write_clip(tmp_path / "single.mp4", moving_square(1)),
        "matroska": write_clip(tmp_path / "matroska.mkv"),
        "turned": write_clip(tmp_path / "turned.mp4", rotation=90),
        "plain": write_clip(tmp_path / "plain.mp4"),
    }
    told = {}
    for name, path in clips.items():
        dataset = handmade(tmp_path / name, rows, path.read_bytes())
        for shape in ("ms_swift", "llama_factory", "hound"):
            try:
                report = export(dataset, shape, tmp_path / f"{name}-{shape}", progress=False)
            except KitError as error:
                told[name, shape] = str(error)
                continue
            assert report.rows == 2 and len(report.lines()) == len(report.notes)
            assert export(dataset, shape, tmp_path / f"{name}-{shape}", progress=False) == report
            if report.notes:
                told[name, shape] = report.lines()[0]
    assert set(told) == {("single", "ms_swift"), ("matroska", "llama_factory"), ("turned", "llama_factory")}
    assert "left out: 2 of train: their video has one frame only" in told["single", "ms_swift"]
    assert told["matroska", "llama_factory"].startswith("note: 1 of 1 videos are in a file that does not say")
    assert told["turned", "llama_factory"].startswith("note: 1 of 1 videos are stored turned")


def test_a_video_id_cannot_write_outside_the_export(built, tmp_path):
    video = source_rows(built.output)[0]["video"]["bytes"]
    dataset = handmade(tmp_path / "hostile", [("What?", "Dots.", "Lines.")], video, "../../outside")
    with pytest.raises(KitError, match="cannot be the name of a file"):
        export(dataset, "hound", tmp_path / "a" / "b", progress=False)
    assert not list(tmp_path.rglob("outside*"))


def test_small_shards_hold_the_same_rows_in_the_same_order(built, tmp_path, monkeypatch):
    from dataset_builder.export import run

    export(built.output, "images", tmp_path / "one", progress=False)
    wide = run.write_images
    monkeypatch.setattr(run, "write_images", lambda rows, folder, split, _: wide(rows, folder, split, 1))
    monkeypatch.setattr("dataset_builder.export.images._GROUP_ROWS", 2)
    export(built.output, "images", tmp_path / "many", progress=False)
    assert len(list((tmp_path / "many" / "data").iterdir())) > 1
    one, many = (datasets.load_dataset(str(tmp_path / name), split="train").to_list() for name in ("one", "many"))
    assert one == many


def test_the_same_command_again_writes_nothing_and_another_does_not_replace(built, tmp_path):
    first = export(built.output, "hound", tmp_path / "out", progress=False)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert export(built.output, "hound", tmp_path / "out", progress=False) == first
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    with pytest.raises(KitError, match="--overwrite"):
        export(built.output, "ms_swift", tmp_path / "out", progress=False)
    assert export(built.output, "ms_swift", tmp_path / "out", progress=False, overwrite=True).shape == "ms_swift"
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(KitError, match="not an export of this kit"):
            export(built.output, "hound", tmp_path / "mine", progress=False, overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": "llava"}, "is not one of ms_swift"),
        ({"split": "test"}, "has no split 'test'"),
        ({"image_format": "gif"}, "is not one of jpeg, png"),
        ({"num_frames": 0}, "must be 1 or more"),
        ({"dataset": "nowhere"}, "no such dataset folder"),
        ({"media": "nowhere.json"}, r"is not a media\.json"),
    ],
)
def test_wrong_words_are_one_line(built, tmp_path, arguments, message):
    words = {"dataset": built.output, "shape": "hound", "output": tmp_path / "out", "progress": False} | arguments
    with pytest.raises(KitError, match=message) as caught:
        export(**words)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@settings(max_examples=60, deadline=None)
@given(question=st.text(), chosen=st.text(), rejected=st.text())
def test_any_text_survives_every_shape_or_is_left_out(question, chosen, rejected):
    reason = pairs_module._unusable(question, chosen, rejected, tags=True)
    if reason is not None:
        return
    pair = Pair("id", "q", "v", question, None, chosen, rejected, b"", ".mp4")
    for shape, make in ROWS.items():
        line = _line(make(pair, "videos/v.mp4", Path("/out")))
        (only,) = line.splitlines()  # one line for every reader
        row = json.loads(only)
        assert json.dumps(row).count("<video>") == 1
        if shape == "ms_swift":
            assert row["messages"][0]["content"] == "<video>" + question and row["rejected_response"] == rejected
        elif shape == "hound":
            assert (row["prompt"], row["chosen"]) == ("<video>\n" + question, chosen)
        else:
            assert row["conversations"][0]["value"] == "<video>" + question and row["chosen"]["value"] == chosen
