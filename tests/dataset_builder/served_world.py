"""A small world whose zoo and judge are behind endpoints."""

from __future__ import annotations

from pathlib import Path

from dataset_builder.toy import generate_toy
from tests.dataset_builder.worlds import write_config

MEMBERS = ("alpha", "beta")
SAMPLES = 2


def make_served_world(folder: Path, url: str, clips: dict[str, int] | None = None, **endpoint) -> Path:
    """Write toy clips and a ``build.yaml`` with two endpoint members, a reference judge and a served judge."""
    questions = folder / "toy" / "questions.jsonl"
    if not questions.exists():
        counts = clips or {"train": 8, "validation": 3, "test": 3}
        generate_toy(folder / "toy", seed=1, clips=counts, types=("colour", "count"))
    return write_served_config(folder / "build.yaml", folder / "toy", url, **endpoint)


def write_served_config(path: Path, toy: Path, url: str, **endpoint) -> Path:
    """A ``build.yaml`` over the toy world in a folder."""
    served = {"base_url": url, "concurrency": 8, "max_retries": 3, "backoff": 0.01, "max_backoff": 0.05, **endpoint}
    config = {
        "sources": [
            {
                "kind": "folder",
                "videos": str(toy / "videos"),
                "questions": str(toy / "questions.jsonl"),
                "license": "cc0-1.0",
                "redistribute": True,
            }
        ],
        "zoo": [
            {
                "name": name,
                "model": name,
                "endpoint": served,
                "samples": SAMPLES,
                "decoding": {"num_frames": 2, "max_new_tokens": 16},
            }
            for name in MEMBERS
        ],
        "judges": [
            {"kind": "reference"},
            {"kind": "vlm", "name": "critic", "model": "critic", "endpoint": served, "num_frames": 2},
        ],
        "pairs": {"min_margin": 0.01},
        "block_size": 4,
    }
    return write_config(path, config)
