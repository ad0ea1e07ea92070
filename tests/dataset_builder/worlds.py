"""A small toy world with untrained tiny checkpoints: enough to run every stage of a build for real, in seconds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from dataset_builder.toy import generate_toy
from dataset_builder.toy_models import ARCHS, save_tiny

MEMBERS = (ARCHS[0], ARCHS[3])  # two families: a Qwen and another


def make_world(folder: Path, clips: dict[str, int] | None = None) -> Path:
    """Write toy clips, two zoo members, a verifier and ``build.yaml`` into a folder; returns the YAML's path.

    The members are untrained, so nothing would ever make them stop: a third of the vocabulary is declared to end an
    answer.
    """
    clips = clips or {"train": 8, "validation": 3, "test": 3}
    generate_toy(folder / "toy", seed=1, clips=clips, types=("colour", "count"))
    for seed, arch in enumerate(MEMBERS):
        make_member(folder / "zoo" / arch, arch, seed)
    save_tiny(ARCHS[0], folder / "verifier", seed=9)
    config = {
        "sources": [
            {
                "kind": "folder",
                "videos": str(folder / "toy" / "videos"),
                "questions": str(folder / "toy" / "questions.jsonl"),
                "license": "cc0-1.0",
                "redistribute": True,
            }
        ],
        "zoo": [
            {"name": arch, "model": str(folder / "zoo" / arch), "samples": 2, "decoding": {"max_new_tokens": 12}}
            for arch in MEMBERS
        ],
        "judges": [{"kind": "reference"}, {"kind": "visual", "model": str(folder / "verifier"), "name": "verifier"}],
        "pairs": {"min_margin": 0.00001},
        "block_size": 4,
    }
    return write_config(folder / "build.yaml", config)


def make_member(folder: Path, arch: str, seed: int) -> Path:
    """An untrained checkpoint whose answers end by themselves."""
    save_tiny(arch, folder, seed=seed)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    end = settings["eos_token_id"]
    settings["eos_token_id"] = sorted({*(end if isinstance(end, list) else [end]), *range(0, 500, 3)})
    file.write_text(json.dumps(settings))
    return folder


def write_config(path: Path, config: dict) -> Path:
    """Write a build's YAML file."""
    path.write_text(yaml.safe_dump(config))
    return path


def changed(path: Path, to: Path, **changes) -> Path:
    """A copy of a YAML file with other top-level values (dicts are merged one level deep).

    ``source`` changes the only source.
    """
    config = yaml.safe_load(path.read_text())
    if "source" in changes:
        config["sources"] = [{**config["sources"][0], **changes.pop("source")}]
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and key in config else value
    return write_config(to, config)


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path inside."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command(*words: object) -> list[str]:
    """The command line of the dataset builder."""
    return [sys.executable, "-m", "dataset_builder", *map(str, words)]


def environment() -> dict[str, str]:
    """An environment for child processes: one thread, nothing asked of the Hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_command(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the dataset builder as a person would."""
    return subprocess.run(command(*words), capture_output=True, text=True, env=environment(), cwd=cwd, check=False)
