"""One training run of the video DPO benchmark in a process of its own.

    python -m benchmarks.dpo_run SPEC.json OUT.json

A spec names the ``variant``: ``stock`` (unmodified `trl.DPOTrainer`), ``online_reference`` and ``cached`` (ours),
``fill`` (ours, writing what ``cached`` reads, no training) or ``check`` (stock and ours on one batch must give one
loss).
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BATCH = 2  # pairs a step
WARM_UP = 1  # steps before the clock runs
TUNINGS = ("lora", "full", "lora_checkpointing")
RANK = 8  # of the adapters
LOSS_TOLERANCE = 1e-4
LOGP_TOLERANCE = 5e-4  # sums of some sixty values near -7 in fp32, whose last digit is 3e-5 there


@dataclass
class Spec:
    """One run.

    Attributes:
        variant: see the module.
        tuning: one of :data:`TUNINGS`.
        length: a name in `benchmarks.dpo_cases.LENGTHS`.
        folder: for output and caches; runs that share one share references and features.
        steps: timed steps, after :data:`WARM_UP`.
        vocabulary: of the model.
        checkpoint: load the model from this folder; else it is made from config.
        threads: of torch.
        sizes: for `benchmarks.dpo_cases.make_model`.
        pairs: a step.
    """

    variant: str
    tuning: str
    length: str
    folder: str
    steps: int = 4
    vocabulary: int = 1_024
    checkpoint: str | None = None
    threads: int = 2
    sizes: dict = field(default_factory=dict)
    pairs: int = BATCH

    @property
    def rows(self) -> int:
        """Rows of the data set: one batch more than is trained on, so that every timed step also collates a batch."""
        return self.pairs * (WARM_UP + self.steps + 1)


class Bench:
    """Model, rows and trainers of a spec."""

    def __init__(self, spec: Spec, length=None):
        from benchmarks.dpo_cases import LENGTHS, make_processor, make_rows

        self.spec, self.length = spec, length or LENGTHS[spec.length]
        self.processor = make_processor(spec.vocabulary, self.length)
        self.rows = make_rows(self.length, spec.rows, self.processor)

    def model(self):
        """The same weights every time, vision frozen."""
        from benchmarks.dpo_cases import make_model
        from recipes.video_dpo import freeze_vision

        if self.spec.checkpoint:
            from transformers import AutoModelForImageTextToText

            model = AutoModelForImageTextToText.from_pretrained(self.spec.checkpoint, dtype="float32")
        else:
            model = make_model(self.spec.vocabulary, self.processor, **self.spec.sizes)
        freeze_vision(model)
        return model

    def arguments(self) -> dict:
        """Fields that stock and ours are given alike: plain fp32 on the CPU, collation in the training process."""
        return {
            "per_device_train_batch_size": self.spec.pairs,
            "max_steps": WARM_UP + self.spec.steps,
            "learning_rate": 1e-5,
            "max_length": None,  # the default cuts a prompt of this length
            "gradient_checkpointing": self.spec.tuning.endswith("checkpointing"),
            "use_cpu": True,
            "bf16": False,
            "dataloader_num_workers": 0,
            "dataloader_pin_memory": False,
            "remove_unused_columns": False,
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1,
            "disable_tqdm": True,
            "seed": 0,
        }

    def parts(self) -> dict:
        """Model, reference and adapter for a trainer of either kind."""
        from recipes.video_dpo import text_linear_names

        model = self.model()
        parts = {"model": model, "processing_class": self.processor}
        if self.spec.tuning.startswith("lora"):
            from peft import LoraConfig

            targets = text_linear_names(model)
            parts["peft_config"] = LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, target_modules=targets)
        return parts

    def stock(self):
        """`trl.DPOTrainer` as it is, with the minimal video collator."""
        from trl import DPOConfig, DPOTrainer

        from benchmarks.dpo_cases import StockVideoCollator, as_dataset

        parts = self.parts()
        if self.spec.tuning == "full":
            parts["ref_model"] = self.model()
        return DPOTrainer(
            args=DPOConfig(output_dir=f"{self.spec.folder}/stock", **self.arguments()),
            data_collator=StockVideoCollator(self.processor, self.length.frames),
            train_dataset=as_dataset(self.rows, stock=True),
            **parts,
        )

    def ours(self, cached: bool):
        """Our trainer with its defaults; ``cached`` adds precomputed references and the feature cache."""
        from benchmarks.dpo_cases import as_dataset
        from recipes.video_dpo import VideoDPOConfig, VideoDPOTrainer

        caches = {"precompute_ref_log_probs": True, "feature_cache": f"{self.spec.folder}/features"} if cached else {}
        parts = self.parts()
        if self.spec.tuning == "full" and not cached:
            parts["ref_model"] = self.model()
        return VideoDPOTrainer(
            args=VideoDPOConfig(
                output_dir=f"{self.spec.folder}/ours",
                num_frames=self.length.frames,
                self_check=self.spec.variant != "fill",  # once a run, not once a row: it falls into the warm-up step
                **caches,
                **self.arguments(),
            ),
            train_dataset=as_dataset(self.rows, stock=False),
            **parts,
        )


def check_equal(bench: Bench) -> dict:
    """Stock and ours must give the same reference log-probabilities and, with moved weights, the same loss.

    The weights are moved because policy and reference are equal at first, which makes every loss log 2.

    Raises:
        AssertionError: a difference above :data:`LOSS_TOLERANCE`, or :data:`LOGP_TOLERANCE` nats a sequence.
    """
    import torch

    stock, ours = bench.stock(), bench.ours(cached=False)
    weights = {n: p for n, p in stock.model.named_parameters() if p.requires_grad}
    others = {n: p for n, p in ours.model.named_parameters() if p.requires_grad}
    assert weights.keys() == others.keys(), "stock and ours train other parameters"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in weights.items():
            noise = torch.randn(weight.shape, generator=generator)
            weight += noise * (0.02 if "lora" in name else 0.1 * weight.std(correction=0))
            others[name].copy_(weight)
    losses, references = [], []
    for trainer in (stock, ours):
        trainer.model.train()
        batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(BATCH)]))
        with torch.no_grad():
            losses.append(float(trainer.compute_loss(trainer.model, batch)))
            model = trainer.ref_model if trainer.ref_model is not None else trainer.model
            references.append(torch.cat(trainer.compute_ref_log_probs(model, batch)))
    apart = float((references[0] - references[1]).abs().max())
    seen = {"stock": losses[0], "ours": losses[1], "difference": abs(losses[0] - losses[1]), "references": apart}
    assert seen["difference"] <= LOSS_TOLERANCE, f"stock and ours disagree: {seen}"
    assert apart <= LOGP_TOLERANCE, f"reference log-probabilities disagree: {seen}"
    return seen


def run(spec: Spec) -> dict:
    """Do what a spec says; returns what was seen."""
    import torch

    torch.set_num_threads(spec.threads)
    from benchmarks.dpo_hook import Watch

    watch = Watch().install()
    bench = Bench(spec)
    if spec.variant == "check":
        return check_equal(bench)
    began = time.perf_counter()
    trainer = bench.stock() if spec.variant == "stock" else bench.ours(cached=spec.variant != "online_reference")
    made = time.perf_counter() - began
    if spec.variant == "fill":
        return {"seconds": made, "pairs": spec.rows}
    trainer.train()
    return {"made": made, **watch.as_dict()}


def launch(spec: Spec, module: str = "benchmarks.dpo_run") -> dict:
    """Run a spec in a fresh process of a module that takes SPEC.json and OUT.json; return what it saw.

    Raises:
        RuntimeError: the process failed; with the end of what it said.
    """
    import subprocess

    folder = Path(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec_file, out = folder / "spec.json", folder / "out.json"
    spec_file.write_text(json.dumps(asdict(spec)))
    out.unlink(missing_ok=True)
    words = [sys.executable, "-m", module, str(spec_file), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(spec.threads), "MKL_NUM_THREADS": str(spec.threads)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"{spec.variant}, {spec.tuning}, {spec.length}: failed\n{done.stderr[-4000:]}")
    return json.loads(out.read_text())


def main() -> None:
    """Read a spec, run it, write what was seen."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(run(spec)))


if __name__ == "__main__":
    main()
