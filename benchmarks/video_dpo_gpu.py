"""Video DPO of a 7B-shaped model on one GPU: tokens a second, peak memory, and how far from the floating-point floor.

    python -m benchmarks.video_dpo_gpu [--prompts 2048 4096 8192] [--pairs 1] [--steps 5]

Qwen2.5-VL-7B's configuration with random weights in bf16, LoRA of rank 8, gradient checkpointing; stock TRL with the
minimal video collator (`benchmarks.dpo_cases`) against ours. The clock is around the forward and backward pass of a
step, the device synchronised; decoding and collation are left out on both sides, since loader workers do them beside
the device. Tokens are those of the plain layout (every answer with its prompt), the same number for both. Every variant
is a process of its own; peak memory is the allocator's, from the end of the warm-up step on.

The floor of a step is its floating-point work (`benchmarks.dpo_flops`) at the rate that a large matrix product reaches
on the same device. Without a GPU nothing is measured and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.common import write_results
from benchmarks.dpo_cases import QWEN_VOCABULARY, Length
from benchmarks.dpo_flops import STOCK_PASSES, TextShape, Work, step_flops, vision_flops
from benchmarks.dpo_run import RANK, WARM_UP, Bench, Spec, launch

VARIANTS = ("stock", "online_reference", "cached")
GIB = 2**30
# Qwen2.5-VL-7B-Instruct: text model and vision tower.
TEXT_7B = {
    "vocab_size": 152_064,
    "hidden_size": 3_584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
VISION_7B = {
    "depth": 32,
    "hidden_size": 1_280,
    "intermediate_size": 3_420,
    "num_heads": 16,
    "out_hidden_size": 3_584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def length_of(prompt: int) -> Length:
    """Clips of 336×420 px (180 tokens per two frames) and a question that together fill a prompt of so many tokens."""
    pairs = max(1, (prompt - 60) // 180)
    return Length(str(prompt), 2 * pairs, 336, 420, max(8, prompt - 180 * pairs - 24))


class DeviceBench(Bench):
    """As on the CPU, with a model of released size on the GPU; ``sizes={"tiny": True}`` keeps to a CPU and small."""

    def __init__(self, spec: Spec):
        self.tiny = spec.sizes.get("tiny", False)
        length = Length(spec.length, 4, 56, 56, 20) if self.tiny else length_of(int(spec.length))
        super().__init__(spec, length)

    def model(self):
        """Random weights, made on the device."""
        if self.tiny:
            return super().model()
        import torch
        import transformers as tf

        from recipes.video_dpo import freeze_vision

        token = self.processor.tokenizer.convert_tokens_to_ids
        ids = {"image_token_id": token("<|image_pad|>"), "video_token_id": token("<|video_pad|>")}
        ends = {"vision_start_token_id": token("<|vision_start|>"), "vision_end_token_id": token("<|vision_end|>")}
        config = tf.Qwen2_5_VLConfig(text_config=TEXT_7B, vision_config=VISION_7B, **ids, **ends)
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = tf.Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        freeze_vision(model)
        return model

    def arguments(self) -> dict:
        """Bf16 and the GPU, unless tiny."""
        changed = {} if self.tiny else {"use_cpu": False, "bf16": True}
        return {**super().arguments(), **changed}


def run(spec: Spec) -> dict:
    """Train one variant for a few steps in this process; returns seconds, memory and sizes."""
    import torch

    bench = DeviceBench(spec)
    trainer = bench.stock() if spec.variant == "stock" else bench.ours(cached=spec.variant == "cached")
    gpu = torch.cuda.is_available() and not bench.tiny
    seconds: list[float] = []
    sizes: list[tuple[int, int]] = []
    step = trainer.training_step

    def timed(model, inputs, *args, **kwargs):
        if gpu:
            torch.cuda.synchronize()
            if len(seconds) == WARM_UP:
                torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        loss = step(model, inputs, *args, **kwargs)
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        answers = int(inputs["completion_mask"].sum())
        held = inputs.get("prompt_mask")  # shared prompts stand apart, once a pair
        prompts = int(inputs["attention_mask"].sum()) - answers if held is None else 2 * int(held.sum())
        sizes.append((prompts, answers))
        return loss

    trainer.training_step = timed
    trainer.train()
    rows = 2 * spec.pairs
    prompt, answer = (statistics.mean(size[i] for size in sizes[WARM_UP:]) / rows for i in (0, 1))
    config = trainer.model.config
    clip = vision_flops(config.vision_config, bench.length.frames, bench.length.height, bench.length.width)
    passes = {"stock": STOCK_PASSES[True], "online_reference": 1, "cached": 0}[spec.variant]
    work = Work(
        pairs=spec.pairs,
        prompt=round(prompt),
        answer=round(answer),
        shared=spec.variant != "stock",
        reference=spec.variant != "cached",
        vision_passes=passes,
    )
    return {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "tokens": rows * (prompt + answer),
        "peak": torch.cuda.max_memory_allocated() if gpu else 0,
        "flops": step_flops(TextShape.of(config, RANK), work, clip),
        "rate": matmul_rate(gpu),
        "device": torch.cuda.get_device_name() if gpu else "CPU",
    }


def matmul_rate(gpu: bool) -> float:
    """Floating-point operations a second of a large bf16 matrix product on this device (a small fp32 one on a CPU)."""
    import torch

    size = 8_192 if gpu else 256
    one = torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=torch.bfloat16 if gpu else torch.float32)
    best = float("inf")
    for _ in range(10):
        if gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        one @ one
        if gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def table(prompt: int, seen: dict[str, dict]) -> list[dict]:
    """Rows of the results for one prompt length."""
    stock, rows = seen["stock"], []
    rate = max(one["rate"] for one in seen.values())

    def row(case: str, ours: float, peer: float, unit: str, more: bool) -> None:
        ratio = (ours / peer if more else peer / ours) if ours and peer else 0.0
        rows.append({"case": f"prompt {prompt}, {case}", "ours": ours, "peer": peer, "ratio": ratio, "unit": unit})

    for variant in VARIANTS[1:]:
        ours = seen[variant]
        speed, other = (one["tokens"] / one["seconds"] for one in (ours, stock))
        row(variant, speed, other, "tokens/s", True)
        row(f"{variant}, peak memory", ours["peak"] / GIB, stock["peak"] / GIB, "GiB", False)
        allowed = stock["flops"] / ours["flops"]
        row(f"{variant}, speed-up against what FLOPs allow", speed / other, allowed, "times stock", True)
        row(f"{variant}, against its FLOP floor", ours["seconds"], ours["flops"] / rate, "s/step", False)
    row("stock TRL, against its FLOP floor", stock["seconds"], stock["flops"] / rate, "s/step", False)
    return rows


def main() -> None:
    """Measure and write the results; say so and do nothing where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[2_048, 4_096, 8_192])
    parser.add_argument("--pairs", type=int, default=1, help="pairs a step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a run")
    parser.add_argument("--smoke", type=Path, metavar="OUT.json", help=argparse.SUPPRESS)  # tiny, on the CPU
    parser.add_argument("worker", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        source, target = options.worker
        Path(target).write_text(json.dumps(run(Spec(**json.loads(Path(source).read_text())))))
        return

    import torch

    tiny = options.smoke is not None
    if not tiny and not torch.cuda.is_available():
        print("video_dpo_gpu needs a GPU that PyTorch can use (CUDA); nothing was measured and nothing was written")
        return
    vocabulary, sizes = (1_024, {"tiny": True}) if tiny else (QWEN_VOCABULARY, {})
    rows, seen = [], {}
    for prompt in options.prompts:
        with tempfile.TemporaryDirectory() as folder:
            for variant in VARIANTS:
                spec = Spec(variant, "lora_checkpointing", str(prompt), folder, options.steps, vocabulary)
                spec = replace(spec, sizes=sizes, pairs=options.pairs)
                seen[variant] = launch(spec, "benchmarks.video_dpo_gpu")
                speed = seen[variant]["tokens"] / seen[variant]["seconds"]
                print(f"prompt {prompt}: {variant:<17} {speed:,.0f} tokens/s", flush=True)
        rows += table(prompt, seen)
    if tiny:
        options.smoke.write_text(json.dumps({"rows": rows}))
        return
    path = write_results("video_dpo_gpu", rows)
    content = json.loads(path.read_text())
    content["machine"] = seen["stock"]["device"]
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
