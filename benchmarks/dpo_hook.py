"""Watches a training run of any tool that ends in transformers' Trainer: step times, peak memory, video tokens, clips.

    python dpo_hook.py OUT.json MODULE ARGUMENTS…      runs `python -m MODULE ARGUMENTS…` under the watch

Needs nothing but what the tool itself needs, so that it also runs in a peer's environment.
"""

from __future__ import annotations

import functools
import json
import runpy
import sys
import time
from pathlib import Path

VISION = (  # where the class of Qwen2.5-VL's vision tower is in the releases of transformers that the tools use
    ("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel"),
)


def status_bytes(field: str) -> int:
    """A memory figure of this process from /proc, such as ``VmRSS`` or ``VmHWM``, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


class Watch:
    """What was seen of one run.

    Attributes:
        ends: clock at the end of every optimizer step.
        cpu: seconds that the process has computed for until then, all threads added up.
        before: resident bytes when training began; the peak is counted from there.
        peak: highest resident bytes while training.
        tokens: video tokens of every sequence of every batch, as it went into the training step.
        trainable: parameters that are trained.
        clips: clips that went through the vision tower, per training step.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.cpu: list[float] = []
        self.tokens: list[int] = []
        self.clips: list[int] = []
        self.losses: list[float] = []
        self.before = self.peak = self.trainable = 0
        self._seen = 0

    def as_dict(self) -> dict:
        """Everything as JSON."""
        return {
            "seconds": [late - early for early, late in zip(self.ends, self.ends[1:], strict=False)],
            "cpu_seconds": [late - early for early, late in zip(self.cpu, self.cpu[1:], strict=False)],
            "before": self.before,
            "peak": self.peak,
            "trainable": self.trainable,
            "tokens": sorted(set(self.tokens)),
            "sequences": len(self.tokens) // max(1, len(self.ends)),
            "clips": self.clips,
            "losses": self.losses,
        }

    def install(self) -> Watch:
        """Watch every Trainer made from now on in this process."""
        import importlib

        import transformers

        watch = self

        class Clock(transformers.TrainerCallback):
            def on_train_begin(self, args, state, control, **kwargs):
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
                watch.before = status_bytes("VmRSS")
                watch.trainable = sum(p.numel() for p in kwargs["model"].parameters() if p.requires_grad)

            def on_step_end(self, args, state, control, **kwargs):
                watch.ends.append(time.perf_counter())
                watch.cpu.append(time.process_time())
                watch.clips.append(watch._seen)
                watch._seen = 0

            def on_train_end(self, args, state, control, **kwargs):
                watch.peak = status_bytes("VmHWM")

        make, step = transformers.Trainer.__init__, transformers.Trainer.training_step

        @functools.wraps(make)
        def init(self, *args, **kwargs):
            make(self, *args, **kwargs)
            self.add_callback(Clock())

        @functools.wraps(step)
        def training_step(self, model, inputs, *args, **kwargs):
            config = self.accelerator.unwrap_model(model).config
            watch.tokens += count_tokens(inputs, config.video_token_id)
            watch._seen = 0
            loss = step(self, model, inputs, *args, **kwargs)
            watch.losses.append(float(loss))
            return loss

        transformers.Trainer.__init__, transformers.Trainer.training_step = init, training_step
        for module, name in VISION:
            tower = getattr(importlib.import_module(module), name)
            tower.forward = self._counted(tower.forward)
        return self

    def _counted(self, forward):
        @functools.wraps(forward)
        def call(module, hidden_states, grid_thw, *args, **kwargs):
            self._seen += len(grid_thw)
            return forward(module, hidden_states, grid_thw, *args, **kwargs)

        return call


def count_tokens(inputs: dict, video_token_id: int) -> list[int]:
    """Video tokens of every sequence in a batch that has any, whatever the tool calls its token ids."""
    found = []
    for name, value in inputs.items():
        token_ids = name.endswith("ids") and "type" not in name and "position" not in name
        if token_ids and getattr(value, "ndim", 0) == 2:
            found += [n for n in (value == video_token_id).sum(1).tolist() if n]
    return found


def main() -> None:
    """Run a module under the watch and write what was seen."""
    target, module, sys.argv = Path(sys.argv[1]), sys.argv[2], sys.argv[2:]
    watch = Watch().install()
    try:
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        target.write_text(json.dumps(watch.as_dict()))


if __name__ == "__main__":
    main()
