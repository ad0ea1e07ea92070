"""A dataset as training reads it: its pairs, its held-out pairs, and a fingerprint of both."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.loading import load_config


def load_preferences(dataset: str, split: str):
    """The `preferences` config with undecoded videos.

    Raises:
        KitError: when there is no such dataset, config or split, or it is empty.
    """
    rows = load_config(dataset, "preferences", split, ("prompt", "chosen", "rejected", "video"))
    if not len(rows):
        raise KitError(f"{dataset}: split '{split}' of 'preferences' has no pairs to train on")
    return rows


def load_held_out(dataset: str, split: str):
    """Held-out pairs, or None when the dataset has none for this split."""
    try:
        rows = load_config(dataset, "preferences", split, ("prompt", "chosen", "rejected", "video"))
    except KitError:
        return None
    return rows if len(rows) else None


def held_out_ids(rows) -> list[str]:
    """What held-out pairs are called: their questions, else their numbers from 1."""
    return list(rows["question_id"]) if "question_id" in rows.column_names else [str(n + 1) for n in range(len(rows))]


def dataset_fingerprint(dataset: str, rows) -> str:
    """16 hex digits over the content of a dataset folder's Parquet files; for a Hub dataset, datasets' own."""
    folder = Path(dataset)
    if not folder.is_dir():
        return str(rows._fingerprint)
    digest = hashlib.sha256()
    for config in ("preferences", "benchmark"):
        for path in sorted((folder / config).glob("*.parquet")):
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{config}/{path.name}\0{content}\n".encode())
    return digest.hexdigest()[:16]
