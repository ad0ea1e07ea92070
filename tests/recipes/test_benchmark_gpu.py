"""Benchmarks of video DPO: the FLOP formula against PyTorch's counter, the rows, the stock side, the GPU script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.dpo_cases import LENGTHS, MAX_ANSWER, QWEN_VOCABULARY, StockVideoCollator, make_processor, make_rows
from benchmarks.dpo_flops import STOCK_PASSES, TextShape, Work, step_flops, vision_flops
from benchmarks.dpo_hook import count_tokens
from benchmarks.dpo_run import Bench, Spec, check_equal

ROOT = Path(__file__).parents[2]
TINY = {"tiny": True}


def bench(tuning: str, folder: Path) -> Bench:
    """A tiny model, and rows whose answers are all equally long (the formula knows no padding)."""
    made = Bench(Spec("check", tuning, "60", str(folder), steps=1, sizes=TINY))
    for row in made.rows:
        row["chosen"] = row["rejected"] = made.rows[0]["chosen"]
    return made


@pytest.mark.parametrize("tuning", ["lora", "lora_checkpointing"])
@pytest.mark.parametrize("layout", ["stock", "ours"])
def test_formula_counts_what_pytorch_counts(layout, tuning, tmp_path):
    made, shared, checkpointing = bench(tuning, tmp_path), layout == "ours", tuning == "lora_checkpointing"
    trainer = made.ours(cached=False) if shared else made.stock()
    trainer._unchecked = False  # the self-check is once a run, not part of a step
    trainer.model.train()
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    batch = trainer._prepare_inputs(trainer.data_collator(made.rows[:2]))
    with FlopCounterMode(display=False) as counter:
        trainer.compute_loss(trainer.model, batch).backward()
    answer = int(batch["completion_mask"].sum(1)[0])
    prompt = int((batch["prompt_mask"] if shared else batch["attention_mask"] - batch["completion_mask"]).sum(1)[0])
    vision = trainer.model.config.vision_config
    work = Work(
        pairs=2,
        prompt=prompt,
        answer=answer,
        shared=shared,
        reference=True,
        vision_passes=1 if shared else STOCK_PASSES[checkpointing],
        checkpointing=checkpointing,
        causal=False,  # PyTorch's counter takes whole rectangles
        scored=4 * answer if shared else 4 * (prompt + answer - 1),  # on a CPU TRL scores every position
    )
    clip = vision_flops(vision, made.length.frames, made.length.height, made.length.width)
    expected = step_flops(TextShape.of(trainer.model.config, 8), work, clip)
    # Without checkpointing to the last operation; recomputation stops early, after the last tensor that is needed.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.08 if checkpointing else 0)


@pytest.mark.parametrize(("frames", "height", "width"), [(2, 28, 28), (4, 140, 112), (8, 168, 308)])
def test_vision_formula(frames, height, width):
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    sizes = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 40}
    config = Qwen2_5_VLVisionConfig(**sizes, fullatt_block_indexes=[1])
    tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(config)
    grid = torch.tensor([[frames // 2, height // 14, width // 14]])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower(torch.zeros(int(grid.prod()), 3 * 2 * 14 * 14), grid_thw=grid)
    assert counter.get_total_flops() == vision_flops(config, frames, height, width)


def test_floor_of_a_7b_model():
    """What the formula says of the released sizes: stock against shared prompts, as measured elsewhere (2.0 to 3.7)."""
    text = TextShape(28, 3584, 18944, 28, 4, 128, 152064, 16)
    assert text.weights == pytest.approx(6.5e9, rel=0.01)
    for prompt in (2048, 8192):
        common = {"pairs": 1, "prompt": prompt, "answer": 64}
        stock = step_flops(text, Work(**common, shared=False, reference=True, vision_passes=8), 1e12)
        online = step_flops(text, Work(**common, shared=True, reference=True, vision_passes=1), 1e12)
        cached = step_flops(text, Work(**common, shared=True, reference=False, vision_passes=0), 1e12)
        assert 1.9 < stock / online < stock / cached < 4.5


def test_rows_are_what_they_say():
    for vocabulary, ids in ((1_024, (1_002, 1_015)), (QWEN_VOCABULARY, (151_643, 151_656))):
        length = LENGTHS["60"]
        processor = make_processor(vocabulary, length)
        tokenizer = processor.tokenizer
        assert tuple(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|video_pad|>"])) == ids
        batch = StockVideoCollator(processor, length.frames)(make_rows(length, 3, processor))
        assert count_tokens(batch, ids[1]) == [length.video_tokens] * 6
        answers = batch["completion_mask"].sum(1)
        assert answers.min() > 30 and answers.max() <= MAX_ANSWER
        ends = batch["input_ids"].gather(1, batch["attention_mask"].sum(1, keepdim=True) - 1)
        assert (ends == tokenizer.convert_tokens_to_ids("<|im_end|>")).all()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_stock_and_ours_give_one_loss(tuning, tmp_path):
    seen = check_equal(Bench(Spec("check", tuning, "60", str(tmp_path), steps=1, sizes=TINY)))
    assert abs(seen["stock"] - 0.6931) > 1e-3, "the weights were moved, so that policy and reference differ"


def test_a_wrong_position_does_not_pass_the_check(tmp_path, monkeypatch):
    """The comparison is not blind: answers one position late are told from stock."""
    from recipes.video.pairs import PairForward

    right = PairForward._positions

    def late(self, prompt_ids, *args):
        positions = right(self, prompt_ids, *args).clone()
        positions[..., prompt_ids.shape[1] :] += 5
        return positions

    monkeypatch.setattr(PairForward, "_positions", late)
    made = Bench(Spec("check", "full", "60", str(tmp_path), steps=1, sizes=TINY))
    plain = made.ours

    def unchecked(cached: bool):
        trainer = plain(cached)
        trainer._unchecked = False
        return trainer

    made.ours = unchecked
    with pytest.raises(AssertionError, match="disagree"):
        check_equal(made)


def gpu_script(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.video_dpo_gpu", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
    )


def test_without_a_gpu_it_says_so_and_writes_nothing():
    target = ROOT / "benchmarks/results/video_dpo_gpu.json"
    before = target.read_bytes() if target.exists() else None
    done = gpu_script(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and "needs a GPU" in done.stdout
    assert (target.read_bytes() if target.exists() else None) == before


@pytest.mark.slow
def test_the_gpu_script_runs_small_on_a_cpu(tmp_path):
    out = tmp_path / "rows.json"
    done = gpu_script("--smoke", str(out), "--prompts", "60", "--steps", "1", "--pairs", "2")
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert {row["unit"] for row in rows} == {"tokens/s", "GiB", "times stock", "s/step"}
    assert all(row["ours"] > 0 for row in rows if row["unit"] != "GiB")
