"""Tiny models of every family, pairs that differ in all that may differ, and one way to train on them and look in."""

from __future__ import annotations

import copy
import functools
import gc
import random
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from dataset_builder.media import sample_frames
from dataset_builder.models.local import video_inputs
from dataset_builder.schema import assistant_message, user_message
from dataset_builder.toy import QUESTIONS, SIZE, draw_scene, render, write_mp4
from dataset_builder.toy_models import ARCHS, make_tiny
from recipes.video.vision import PROJECTORS, vision_modules

FAMILIES = (*ARCHS, "llava_next_video", "smolvlm")
MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@functools.cache
def _pristine(arch: str, seed: int):
    """(model, processor) that no trainer has touched."""
    if arch in ARCHS:
        model, processor = make_tiny(arch, seed)
    else:
        from dataset_builder.models import load_model
        from tests.dataset_builder.tiny_families import save_family

        with tempfile.TemporaryDirectory() as folder:
            loaded = load_model(save_family(arch, Path(folder), seed), device="cpu", dtype="float32")
        model, processor = loaded.model, loaded.processor
    if arch in MROPE:  # grids larger than one token, or M-RoPE's axes would not differ
        clip = 8 if arch == "qwen3_vl" else 1
        size = processor.video_processor.size
        processor.video_processor.size = type(size)(shortest_edge=SIZE**2, longest_edge=6 * SIZE**2 * clip)
    return model, processor


def fresh(arch: str, seed: int = 3):
    """A model of its own, and the family's processor."""
    model, processor = _pristine(arch, seed)
    return copy.deepcopy(model), processor


def clip_bytes(frames: int, height: int, width: int, seed: int) -> bytes:
    """A toy clip of any size (multiples of 32 px), as mp4."""
    small = render(draw_scene(random.Random(seed)))[:frames]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_mp4(path, small.repeat(height // SIZE, 1).repeat(width // SIZE, 2))
        return path.read_bytes()


@pytest.fixture(autouse=True, scope="module")
def quick_collection():
    """accelerate collects garbage after every training: let it not walk through all that is imported each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def pair(clip: bytes, question: str, chosen: str, rejected: str) -> dict:
    """A preference row."""
    return {
        "video": {"bytes": clip, "path": None},
        "prompt": [user_message(question)],
        "chosen": [assistant_message(chosen)],
        "rejected": [assistant_message(rejected)],
    }


@functools.cache
def pairs() -> Dataset:
    """Four pairs: prompts, answers and clips of different lengths; the first two about one clip."""
    wide, high, short = clip_bytes(8, 64, 96, 1), clip_bytes(8, 96, 64, 2), clip_bytes(3, 32, 32, 3)
    return Dataset.from_list(
        [
            pair(wide, QUESTIONS["colour"], "it is red and it moves to the left", "blue"),
            pair(wide, f"look at the dots . {QUESTIONS['count']} answer in one word .", "two", "there are three dots"),
            pair(high, QUESTIONS["shape"], "a ring", "a square , or is it a cross ?"),
            pair(short, f"{QUESTIONS['direction']} and why ?", "up", "down"),
        ]
    )


def adapter(model, targets=None):
    """A LoRA whose product is not zero, so that policy and reference differ from the start."""
    from peft import LoraConfig

    from recipes.video_dpo import text_linear_names

    torch.manual_seed(0)
    return LoraConfig(r=4, target_modules=targets or text_linear_names(model), init_lora_weights=False)


def make_trainer(model, processor, folder, rows=None, **fields):
    """A `VideoDPOTrainer` for one SGD step on all rows at once; `fields` may hold the trainer's own arguments too."""
    from recipes.video_dpo import VideoDPOConfig, VideoDPOTrainer

    rows = pairs() if rows is None else rows
    names = ("ref_model", "peft_config", "encoder", "features", "references", "say", "callbacks")
    own = {name: fields.pop(name) for name in names if name in fields}
    own.setdefault("say", lambda line: None)
    defaults = {
        "max_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": len(rows),
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": own.get("ref_model") is None and "peft_config" not in own,
        "bf16": False,
        "logging_steps": 1,
    }
    args = VideoDPOConfig(
        str(folder), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **{**defaults, **fields}
    )
    return VideoDPOTrainer(model, args=args, train_dataset=rows, processing_class=processor, **own)


class Watch(TrainerCallback):
    """Keeps each step's gradients, by the names of the plain model."""

    def __init__(self):
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Called by the trainer."""
        self.gradients = {plain_name(n): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        self.checkpointing = model.is_gradient_checkpointing


def plain_name(name: str) -> str:
    """A parameter's name without what PEFT puts before it."""
    return name.removeprefix("base_model.model.")


def train(trainer) -> Watch:
    """Train; returns what was seen."""
    watch = Watch()
    trainer.add_callback(watch)
    trainer.train()
    return watch


def losses(trainer) -> list[float]:
    """Logged losses, one per step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def sequence_log_probs(trainer, rows=None) -> torch.Tensor:
    """The policy's log-probabilities of chosen, then rejected answers, [2B]."""
    rows = trainer.train_dataset if rows is None else rows
    batch = trainer._prepare_inputs(trainer.data_collator([rows[i] for i in range(len(rows))]))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    skip = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
    inputs = {name: value for name, value in batch.items() if name not in skip}
    return trainer.model(**inputs, labels=labels, fused_lm_head=True, use_cache=False).log_probs.sum(1)


def plain_transformers(model, processor, rows) -> torch.Tensor:
    """Log-probabilities of chosen, then rejected answers [2B], with a graph: every sequence alone, through the model's
    and the processor's own calls."""
    found = []
    for side in ("chosen", "rejected"):
        for row in rows:
            question = row["prompt"][0]["content"][-1]["text"]
            prompt = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
            answer = {"role": "assistant", "content": row[side][0]["content"]}
            before = processor.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            text, end = processor.apply_chat_template([*prompt, answer], tokenize=False), "<|end|>"
            text = text if text.endswith(end) else text + end  # SmolVLM's template ends with a token of its own
            length = len(processor.tokenizer(text.removeprefix(before), add_special_tokens=False)["input_ids"])
            frames = sample_frames(row["video"]["bytes"], 8)
            inputs = processor(text=[text], return_tensors="pt", **video_inputs([frames]))
            logps = model(**inputs).logits[0, :-1].log_softmax(-1)
            ids = inputs["input_ids"][0, 1:]
            found.append(logps[range(len(ids) - length, len(ids)), ids[-length:]].sum())
    return torch.stack(found)


def relative_error(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of two sets of gradients: the larger of the error of all together, and of the worst tensor that is not negligible
    (below a thousandth of the whole)."""
    assert set(got) == set(expected)
    whole = sum(tensor.double().square().sum() for tensor in expected.values()).sqrt()
    errors = {name: (got[name].double() - expected[name].double()).norm() for name in expected}
    together = sum(error**2 for error in errors.values()).sqrt() / whole
    worst = max(error / max(expected[name].double().norm(), 1e-3 * whole) for name, error in errors.items())
    return float(max(together, worst))


@contextmanager
def counted(model):
    """Counts forwards: ``vision`` of towers (``vision_grad``: whose outputs want gradients), ``text`` of the last
    decoder layer's attention."""
    counts: Counter = Counter()

    def saw(module, inputs, output):
        counts["vision"] += 1
        tensors = output if isinstance(output, tuple) else output.values() if hasattr(output, "values") else (output,)
        counts["vision_grad"] += any(torch.is_tensor(t) and t.requires_grad for t in tensors)

    towers = [module for name, module in vision_modules(model).items() if not name.endswith(PROJECTORS)]
    text = next(m for n, m in model.named_modules() if n.split(".")[-1] in ("language_model", "text_model"))
    hooks = [tower.register_forward_hook(saw) for tower in towers]
    # Within the layer: transformers checkpoints a layer's forward, whose own hooks are outside. Before, not after: a
    # recomputation stops as soon as it has what the backward pass asks for.
    hooks.append(text.layers[-1].self_attn.register_forward_pre_hook(lambda *_: counts.update(["text"])))
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
