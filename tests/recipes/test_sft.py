"""The SFT recipe: labels, packing, what its data may look like, and the command itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dataset_builder.errors import KitError, RowError
from dataset_builder.models import ChatRequest, LocalChatModel
from dataset_builder.toy import ANSWERS, QUESTIONS, generate_toy
from dataset_builder.toy_models import ARCHS, make_tiny
from recipes.arms.run import to_argv
from recipes.rounds import load_state
from recipes.sft_data import IGNORE, Clip, SFTCollator, Turn, read_clips
from recipes.video.encoding import ClipEncoder

CLONE = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet", "recipes/sft.py"]
PLAIN = [sys.executable, "-m", "recipes.sft"]
KINDS = ("colour", "count", "shape")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Eight clips with three questions each; two clips are of the validation split."""
    folder = tmp_path_factory.mktemp("sft") / "world"
    generate_toy(folder, 3, {"train": 6, "validation": 2}, KINDS)
    return folder


@pytest.fixture(scope="module")
def clips(world) -> list[Clip]:
    return read_clips(world / "questions.jsonl", world / "videos")


def labelled(batch: dict, row: int) -> list[list[int]]:
    """The runs of labels in one row: one list of token ids per answer."""
    runs, inside = [], False
    for token, label in zip(batch["input_ids"][row].tolist(), batch["labels"][row].tolist(), strict=True):
        if label != IGNORE:
            assert label == token
            runs = runs if inside else [*runs, []]
            runs[-1].append(label)
        inside = label != IGNORE
    return runs


@pytest.mark.parametrize("arch", ARCHS)
def test_labels_are_the_answers_and_their_end_tokens(arch, clips):
    _, processor = make_tiny(arch)
    tokenizer, picked = processor.tokenizer, clips[:3]
    batch = SFTCollator(ClipEncoder(processor), seed=1)(picked)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert len(batch["input_ids"]) == 3, "one sequence per clip"
    for row, clip in enumerate(picked):
        known = {turn.question: turn.answer for turn in clip.turns}
        text = tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()])
        asked = sorted(known, key=text.index)
        said = [tokenizer.decode(ids) for ids in labelled(batch, row)]
        assert said == [known[question] + tokenizer.eos_token for question in asked]
        assert (batch["labels"][row][~batch["attention_mask"][row].bool()] == IGNORE).all()


@pytest.mark.parametrize("arch", ARCHS)
def test_the_first_question_costs_the_same_packed_and_alone(arch, clips):
    model, processor = make_tiny(arch, seed=4)
    picked, losses = clips[:2], {}
    encoder = ClipEncoder(processor)
    for pack in (True, False):
        batch = SFTCollator(encoder, seed=5, pack=pack)(picked)
        assert len(batch["input_ids"]) == (2 if pack else 6)
        labels = batch.pop("labels")
        with torch.no_grad():
            logps = model(**batch).logits[:, :-1].double().log_softmax(-1)
        for clip, row in enumerate((0, 1) if pack else (0, 3)):  # the same order: the seed is the same
            places = (labels[row, 1:] != IGNORE).nonzero().flatten().tolist()
            first = [
                place for place in places if place - places[0] < len(labelled({**batch, "labels": labels}, row)[0])
            ]
            losses.setdefault(clip, []).append([logps[row, at, labels[row, at + 1]].item() for at in first])
    for packed, alone in losses.values():
        assert packed == pytest.approx(alone, abs=2e-5) and len(packed) >= 2


@pytest.mark.parametrize("arch", ARCHS)
def test_the_prompt_is_what_the_chat_interface_asks(arch, clips):
    model, processor = make_tiny(arch)
    encoder, clip = ClipEncoder(processor), clips[0]
    batch = SFTCollator(encoder, pack=False)([Clip(clip.video, clip.turns[:1])])
    request = ChatRequest(clip.turns[0].question, encoder.frames(clip.video))
    alone = LocalChatModel(model, processor, arch, "test").prepare([request])
    length = alone["input_ids"].shape[1]
    assert batch["input_ids"][:, :length].tolist() == alone["input_ids"].tolist()
    assert (batch["labels"][:, :length] == IGNORE).all() and (batch["labels"][:, length:] != IGNORE).all()
    for name in set(alone) - {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}:
        assert torch.equal(batch[name], alone[name]), name


def test_weights_are_chances(clips):
    _, processor = make_tiny("qwen2_vl")
    turns = [
        Turn(QUESTIONS[kind], ANSWERS[kind][0], weight) for kind, weight in zip(KINDS, (1.0, 0.3, 0.0), strict=True)
    ]
    collator = SFTCollator(ClipEncoder(processor), seed=2)
    batch = collator([Clip(clips[0].video, turns)] * 400)
    said = [processor.tokenizer.decode(ids[:-1]) for row in range(400) for ids in labelled(batch, row)]
    counts = [said.count(turn.answer) for turn in turns]
    assert counts[0] == 400 and counts[2] == 0
    assert 80 <= counts[1] <= 160  # 120 ± 9; four standard deviations
    never = SFTCollator(ClipEncoder(processor))([Clip(clips[0].video, [Turn("what ?", "red", 0.0)])])
    assert len(labelled(never, 0)) == 1, "a clip is never shown without a question"


def test_rows_are_grouped_by_clip_and_split(world):
    rows = [json.loads(line) for line in (world / "questions.jsonl").read_text().splitlines()]
    everything = read_clips(world / "questions.jsonl", world / "videos")
    assert [clip.video.name for clip in everything] == list(dict.fromkeys(row["video"] for row in rows))
    said = [(clip.video.name, turn.question, turn.answer, turn.weight) for clip in everything for turn in clip.turns]
    assert said == [(row["video"], row["question"], row["answer"], 1.0) for row in rows]
    assert len(read_clips(world / "questions.jsonl", world / "videos", ["validation"])) == 2
    assert read_clips(world / "questions.jsonl", world / "videos", ["test"]) == []


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ("{not json", None, "is not JSON"),
        ("caf\udce9", None, "is not UTF-8 text"),
        ('["a", "list"]', "video", "is missing or not text"),
        ('{"video": "train-00000.mp4", "answer": "red"}', "question", "is missing or not text"),
        ('{"video": "train-00000.mp4", "question": "what ?", "answer": 3}', "answer", "is missing or not text"),
        ('{"video": "none.mp4", "question": "what ?", "answer": "red"}', "video", "there is no file"),
        (
            '{"video": "train-00000.mp4", "question": "what ?", "answer": "red", "weight": "often"}',
            "weight",
            "must be a number from 0 to 1",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(world, tmp_path, line, field, reason):
    good = json.dumps({"video": "train-00000.mp4", "question": "what ?", "answer": "red"})
    (tmp_path / "rows.jsonl").write_bytes(f"{good}\n\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(RowError, match=reason) as caught:
        read_clips(tmp_path / "rows.jsonl", world / "videos")
    assert (caught.value.row, caught.value.field) == (3, field)
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:3")


def fields(world: Path, output: Path, **changes) -> dict:
    given = {"config": "recipes/configs/sft.yaml", "questions": world / "questions.jsonl", "videos": world / "videos"}
    given |= {"output_dir": output, "max_steps": 4, "per_device_train_batch_size": 3, "learning_rate": 2e-3}
    given |= {"gradient_accumulation_steps": 1, "warmup_steps": 0, "use_cpu": True, "freeze_vision": False}
    return {**given, **changes}


def start(command: list[str], values: dict) -> subprocess.CompletedProcess:
    words = [*command, *to_argv(values)]
    return subprocess.run(words, cwd=CLONE, env=os.environ, capture_output=True, text=True, timeout=240)


def test_command_trains_from_config_and_then_from_that_checkpoint(world, tmp_path):
    first = start(LAUNCH, fields(world, tmp_path / "one", tiny_arch="qwen3_vl", splits=["train"], seed=3))
    assert first.returncode == 0, first.stderr
    assert "18 questions about 6 clips, world size 1" in first.stdout
    assert "Traceback" not in first.stderr and "{'loss'" not in first.stdout
    second = start(PLAIN, fields(world, tmp_path / "two", model_name_or_path=tmp_path / "one", freeze_vision=True))
    assert second.returncode == 0, second.stderr
    assert second.stderr == "" and "24 questions about 8 clips" in second.stdout

    from transformers import AutoModelForImageTextToText, AutoProcessor

    untrained = dict(make_tiny("qwen3_vl", 3)[0].state_dict())
    one, two = load_state(tmp_path / "one"), load_state(tmp_path / "two")
    assert {name for name in one if not torch.equal(one[name], untrained[name])} & {n for n in one if "visual" in n}
    changed = {name for name in one if not torch.equal(one[name], two[name])}
    assert changed and not [name for name in changed if "visual" in name], "the vision tower was frozen"
    for name in ("one", "two"):
        folder = tmp_path / name
        assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".pth")]
        model = AutoModelForImageTextToText.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
        assert processor.chat_template and type(model).__name__ == "Qwen3VLForConditionalGeneration"
        request = ChatRequest(QUESTIONS["colour"], None)
        assert LocalChatModel(model, processor, name, "test").prepare([request])["input_ids"].shape[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"], "nothing half-made is left"


def test_a_saved_bfloat16_checkpoint_is_trained_in_fp32(world, tmp_path):
    from recipes.sft import main

    model, processor = make_tiny("qwen2_vl")
    model.bfloat16().save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    given = fields(world, tmp_path / "out", model_name_or_path=tmp_path / "start", max_steps=1, learning_rate=1e-6)
    main(to_argv(given))
    before, after = load_state(tmp_path / "start"), load_state(tmp_path / "out")
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert 0 < moved.abs().max() < 1e-5, "a step this small would vanish in bfloat16"
    assert (moved != 0).float().mean() > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": "none.jsonl"}, "--questions none.jsonl: there is no such file"),
        ({"videos": None}, "--videos is needed"),
        ({"videos": "setup.cfg"}, "--videos setup.cfg: there is no such folder"),
        ({"tiny_arch": None}, "give either --model_name_or_path or --tiny_arch"),
        ({"tiny_arch": "qwen9"}, "--tiny_arch qwen9: choose one of qwen2_vl"),
        ({"splits": ["none"]}, r"no row to train on \(splits: none\)"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"learning_rate": "fast"}, "learning_rate.*'fast'"),
        ({"config": "none.yaml"}, "none.yaml: cannot be read"),
        ({"tiny_arch": None, "model_name_or_path": "./none"}, "there is no checkpoint folder here"),
    ],
)
def test_what_is_wrong_is_said(world, tmp_path, change, message):
    from recipes.sft import main

    given = {**fields(world, tmp_path / "out", tiny_arch="qwen2_vl"), **change}
    with pytest.raises(KitError, match=message):
        main(to_argv(given))
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_one_line_and_exit_code_2(world, tmp_path):
    done = start(PLAIN, fields(world, tmp_path / "out", tiny_arch="qwen2_vl", questions="none.jsonl"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: --questions none.jsonl: there is no such file\n"


def test_unknown_key_in_the_yaml(world, tmp_path):
    from recipes.sft import main

    (tmp_path / "bad.yaml").write_text("learning_rte: 1.0e-5\n")
    with pytest.raises(KitError, match="learning_rte"):
        main(to_argv(fields(world, tmp_path / "out", config=tmp_path / "bad.yaml", tiny_arch="qwen2_vl")))


class Stopped(Exception):
    """Stands for whatever ends a process."""


def stop_after(monkeypatch, step: int) -> None:
    from recipes.progress import ProgressLines

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Stopped

    monkeypatch.setattr(ProgressLines, "on_step_begin", on_step_begin, raising=False)


@pytest.mark.parametrize("step", [3, 5])  # within an epoch and right after one: six clips, four steps an epoch
def test_a_stopped_run_goes_on_and_ends_with_the_same_weights(world, tmp_path, monkeypatch, capsys, step):
    """Chances and orders are drawn with every batch, ahead of training; a stop must not be seen in them."""
    from recipes.sft import main

    rows = [json.loads(line) for line in (world / "questions.jsonl").read_text().splitlines()]
    rows = [{**row, "weight": 0.5} for row in rows if row["split"] == "train"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"questions": tmp_path / "rows.jsonl", "max_steps": 7, "per_device_train_batch_size": 1}
    given |= {"gradient_accumulation_steps": 2, "save_steps": 1, "tiny_arch": "qwen2_vl"}
    main(to_argv(fields(world, tmp_path / "whole", **given)))
    loss = re.search(r"^loss \d\.\d+;", capsys.readouterr().out, re.MULTILINE)[0]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, step)
        main(to_argv(fields(world, tmp_path / "stopped", **given)))
    assert not (tmp_path / "stopped").exists() and (tmp_path / ".stopped-work" / f"checkpoint-{step}").is_dir()
    with pytest.raises(KitError, match=r"\.stopped-work holds checkpoints of another configuration \(learning_rate"):
        main(to_argv(fields(world, tmp_path / "stopped", **{**given, "learning_rate": 1e-3})))
    capsys.readouterr()
    main(to_argv(fields(world, tmp_path / "stopped", **given)))
    said = capsys.readouterr().out
    assert f"going on at {tmp_path}/.stopped-work/checkpoint-{step}" in said and f"\n{loss}" in said, "all steps' loss"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "stopped", "whole"], (
        "checkpoints are gone"
    )
