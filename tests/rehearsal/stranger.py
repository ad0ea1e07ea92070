"""What a stranger types: ``python stranger.py STEP KEYWORDS`` prints what was found as one line of JSON at the end.

Only the libraries that a stranger has are imported; nothing of the tests.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from typing import Any


def digest(rows: Iterable[dict[str, Any]]) -> str:
    """16 hex digits over rows in their order, every column and the videos' bytes."""
    total = hashlib.sha256()
    for row in rows:
        if row.get("video") is not None:
            row = {**row, "video": hashlib.sha256(row["video"]["bytes"] or b"").hexdigest()}
        total.update(json.dumps(row, sort_keys=True).encode())
    return total.hexdigest()[:16]


def dataset(repo: str, configs: list[str], revision: str | None = None) -> dict[str, Any]:
    """Every config: ``{config: {split: [rows, digest]}}``."""
    from datasets import Video, load_dataset

    found: dict[str, Any] = {}
    for config in configs:
        for split, rows in load_dataset(repo, config, revision=revision).items():
            if "video" in rows.column_names:
                rows = rows.cast_column("video", Video(decode=False))
            found.setdefault(config, {})[split] = [len(rows), digest(rows)]
    return found


def streaming(repo: str, count: int) -> list[list]:
    """The first question ids and the sizes of their videos, without a download of the whole."""
    from datasets import Video, load_dataset

    rows = load_dataset(repo, split="train", streaming=True).cast_column("video", Video(decode=False))
    return [[row["question_id"], len(row["video"]["bytes"] or b"")] for row in rows.take(count)]


def model(repo: str, revisions: dict[str, str]) -> dict[str, Any]:
    """Weights at each revision, compared with those of a folder.

    Args:
        repo: its id.
        revisions: folder that holds the same by revision.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    found: dict[str, Any] = {}
    for revision, folder in revisions.items():
        there = AutoModelForImageTextToText.from_pretrained(repo, revision=revision)
        here = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
        weights = there.state_dict()
        equal = weights.keys() == here.keys() and all(torch.equal(weights[name], here[name]) for name in here)
        processor = AutoProcessor.from_pretrained(repo, revision=revision)
        sums = hashlib.sha256(b"".join(weights[name].float().numpy().tobytes() for name in sorted(weights)))
        found[revision] = {
            "class": type(there).__name__,
            "processor": type(processor).__name__,
            "parameters": sum(p.numel() for p in there.parameters()),
            "equal": equal,
            "digest": sums.hexdigest()[:16],
        }
    return found


def adapter(repo: str, folder: str, base: str) -> dict[str, Any]:
    """The adapter of ``main`` on the base that it names, compared with an adapter's folder on a base's."""
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForImageTextToText

    config = PeftConfig.from_pretrained(repo, subfolder="adapter")
    named = {"revision": config.revision}
    under = AutoModelForImageTextToText.from_pretrained(config.base_model_name_or_path, **named)
    there = PeftModel.from_pretrained(under, repo, subfolder="adapter").state_dict()
    here = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), folder).state_dict()
    under = AutoModelForImageTextToText.from_pretrained(config.base_model_name_or_path, **named)
    merged = PeftModel.from_pretrained(under, repo, subfolder="adapter").merge_and_unload().state_dict()
    whole = AutoModelForImageTextToText.from_pretrained(repo).state_dict()
    return {
        "merged": max(float((merged[name].float() - whole[name].float()).abs().max()) for name in whole),
        "base": config.base_model_name_or_path + (f" at {config.revision}" if config.revision else ""),
        "weights": sum("lora_" in name for name in there),
        "equal": there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in here),
    }


def evaluator(repo: str, folder: str, data: str, limit: int) -> dict[str, Any]:
    """Verdicts of the loaded evaluator and of the folder on right and wrong answers."""
    from dataclasses import asdict

    from datasets import Video, load_dataset

    from eval.evaluator import VQAEvaluator

    rows = load_dataset(data, "benchmark", split="test").cast_column("video", Video(decode=False))
    rows = rows.select(range(min(limit, len(rows)))).to_list()
    asked = [
        {
            "video": row["video"]["bytes"],
            "question": row["question"],
            "answer": rows[(place + place % 2) % len(rows)]["answers"][0],  # every other one is of another question
            "references": row["answers"],
        }
        for place, row in enumerate(rows)
    ]
    there, here = VQAEvaluator.from_pretrained(repo), VQAEvaluator.from_pretrained(folder)
    said, expected = there.batch(asked), here.batch(asked)
    return {
        "asked": len(asked),
        "equal": [asdict(a) for a in said] == [asdict(b) for b in expected],
        "fingerprint": there.fingerprint,
        "same_fingerprint": there.fingerprint == here.fingerprint,
        "right": sum(verdict.correct is True for verdict in said),
        "without": sum(verdict.correct is None for verdict in said),
    }


def trl(model: str, frames: str, output: str) -> dict[str, Any]:
    """One step of stock TRL on an export as frames."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    rows = datasets.load_dataset(frames, split="train")
    settings = DPOConfig(
        output_dir=output,
        max_steps=1,
        per_device_train_batch_size=2,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to=[],
        model_init_kwargs={"dtype": "float32"},
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(model, args=settings, train_dataset=rows)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"rows": len(rows), "loss": logged["loss"], "grad_norm": logged["grad_norm"]}


if __name__ == "__main__":
    steps = (dataset, streaming, model, adapter, evaluator, trl)
    chosen = {step.__name__: step for step in steps}[sys.argv[1]]
    print(json.dumps(chosen(**json.loads(sys.argv[2]))))
