"""Which weights a name stands for: the content of a folder, or a commit of the Hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dataset_builder.errors import KitError

# What decides how a checkpoint answers. Trainer state, cards and metrics in the same folder do not.
REVISION_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "*processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
)


def checkpoint_revision(folder: str | Path) -> str:
    """Fingerprint a checkpoint folder by its content, so that retrained weights at the same path are another model.

    Returns:
        16 hex digits of the sha256 over names and bytes of weights, configs, processor and tokenizer.

    Raises:
        KitError: when the folder holds no safetensors weights.
    """
    folder = Path(folder)
    files = sorted({path for pattern in REVISION_FILES for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        hint = " (pickle weights are not read: convert them to safetensors)" if list(folder.glob("*.bin")) else ""
        raise KitError(f"{folder}: no checkpoint with *.safetensors weights here{hint}")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def model_revision(name_or_path: str, revision: str | None = None) -> str:
    """Content hash of a checkpoint folder, or the commit a Hub id stands for, without loading the model.

    Raises:
        KitError: there is no such checkpoint.
    """
    path = Path(name_or_path)
    if path.exists() or str(name_or_path).startswith(("/", "./", "../")) or str(name_or_path).count("/") != 1:
        if not path.is_dir():
            raise KitError(f"{name_or_path}: there is no checkpoint folder here")
        return checkpoint_revision(path)
    from huggingface_hub import hf_hub_download

    try:
        file = Path(hf_hub_download(str(name_or_path), "config.json", revision=revision))
    except Exception as error:  # the Hub's client raises many kinds, all of which mean the same here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KitError(f"{name_or_path}: neither a checkpoint folder nor a model on the Hub: {reason}") from None
    return file.parent.name  # …/snapshots/COMMIT/config.json
