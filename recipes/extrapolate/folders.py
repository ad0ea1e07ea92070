"""Checkpoint folders: which files hold the weights, whether two are of one model, and what is copied beside them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from eval.results import read_json, write_text
from recipes.extrapolate.masters import find_masters, round_masters
from recipes.extrapolate.tensorfile import Entry, read_header

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MASTERS = (("model.fp32.safetensors", "model.safetensors.index.fp32.json"),)  # transformers' names for variant="fp32"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Weights of any format, pickle, and the state of a training run.
LEFT_OUT = re.compile(
    r"\.(safetensors|bin|pt|pth|pkl|pickle|ckpt|npz|npy|h5|msgpack|gguf|onnx|part|lock)$"
    r"|\.index(\.\w+)?\.json$"
    r"|^(trainer_state|training_args|metrics|extrapolation|rounds|run_log|all_results|\w+_results)\.json$"
    r"|^(README\.md|latest|zero_to_fp32\.py)$"  # a card speaks of the model it was written for
    r"|^(optimizer|scheduler|rng_state|scaler|events\.out)"
    r"|^\."
)
LEFT_OUT_FOLDERS = re.compile(r"^\.|^(checkpoint-\d+|round-\d+|global_step\d+|runs|logs|results|figures|__pycache__)$")


@dataclass
class Checkpoint:
    """A folder with safetensors weights.

    Attributes:
        folder: where.
        entries: tensors by name, in the order of their files and places.
        metadata: of the first file.
        config: content of ``config.json``.
        masters: the file that more precise copies of the weights were taken from, or None.
        replaced: entries of the ordinary files that `masters` stands in for.
    """

    folder: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]
    config: dict[str, Any]
    masters: Path | None = None
    replaced: dict[str, Entry] = field(default_factory=dict)

    def saved(self, name: str) -> Entry:
        """A tensor as the ordinary files hold it: its type is what a result is saved in by default."""
        return self.replaced.get(name, self.entries[name])


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a checkpoint's files, and take the most precise copy of its weights that is there.

    More precise copies are files of the variant ``fp32`` in the folder, or the fp32 weights that a run of rounds keeps
    beside ``round-N`` for the next round.

    Raises:
        KitError: when files are missing or damaged, the weights are pickled or quantized, or the index is wrong.
    """
    if not folder.is_dir():
        raise KitError(f"{folder}: there is no such folder; a model of the Hub has to be downloaded first")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise KitError(f"{folder / 'config.json'}: not a configuration")
    if config.get("quantization_config"):
        raise KitError(f"{folder}: quantized weights cannot be extrapolated; use the full-precision checkpoint")
    found = _read(folder, WEIGHTS, INDEX)
    if found is None:
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        pickled = [name for name in pickled if name != "training_args.bin"]
        hint = f" ({pickled[0]} is pickle, which is not read: save it as safetensors first)" if pickled else ""
        raise KitError(f"{folder}: no {WEIGHTS} and no {INDEX} here{hint}")
    checkpoint = Checkpoint(folder, *found, config)
    for weights, index in MASTERS:
        _prefer(checkpoint, _read(folder, weights, index), folder / weights)
    if (file := round_masters(folder)) is not None:
        _prefer(checkpoint, read_header(file), file)
    return checkpoint


def _read(folder: Path, weights: str, index: str) -> tuple[dict[str, Entry], dict[str, str]] | None:
    """Entries and metadata of a single file or of the files an index names; None when neither is there."""
    if (folder / weights).is_file():
        return read_header(folder / weights)
    if not (folder / index).is_file():
        return None
    content = read_json(folder / index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) and "/" not in file for file in names.values()):
        raise KitError(f"{folder / index}: field 'weight_map': must map each tensor to a file of this folder")
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for file in sorted(set(names.values())):
        held, said = read_header(folder / file)
        metadata = metadata or said
        for name in held:
            if names.get(name) != file:
                raise KitError(f"{folder / file}: holds {name}, which the index does not look for there")
        entries |= held
    if missing := sorted(names.keys() - entries.keys()):
        raise KitError(f"{folder / names[missing[0]]}: {missing[0]} is not in it, though the index says so")
    return entries, metadata


def _prefer(checkpoint: Checkpoint, found: tuple[dict[str, Entry], dict] | None, file: Path) -> None:
    """Read weights from `file` where it holds wider copies of all that are narrow."""
    if found is None or checkpoint.masters is not None:
        return
    for name, copy in find_masters(checkpoint.entries, found[0]).items():
        checkpoint.replaced[name] = checkpoint.entries[name]
        checkpoint.entries[name] = copy
        checkpoint.masters = file


def check_same_model(weak: Checkpoint, strong: Checkpoint) -> None:
    """Compare two configurations and vocabularies.

    Raises:
        KitError: when they are not of one architecture, or their tokenizers give a token another id.
    """
    for key in ("model_type", "tie_word_embeddings"):
        ours, theirs = (checkpoint.config.get(key) for checkpoint in (weak, strong))
        if ours != theirs and None not in (ours, theirs):
            raise KitError(f"config.json: {key} is {ours} in {weak.folder} and {theirs} in {strong.folder}")
    files = [checkpoint.folder / "tokenizer.json" for checkpoint in (weak, strong)]
    if not all(file.is_file() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return
    ours, theirs = (_vocabulary(file) for file in files)
    for token in sorted(ours.keys() | theirs.keys()):
        if ours.get(token) != theirs.get(token):
            rows = [name for name in strong.entries if "embed_tokens" in name or name.endswith("wte.weight")]
            raise KitError(
                f"{rows[0] if rows else 'the embedding'}: the vocabularies differ: token {token!r} is "
                f"{_place(ours.get(token))} in {weak.folder} and {_place(theirs.get(token))} in {strong.folder}"
            )


def _vocabulary(file: Path) -> dict[str, int]:
    """Token → id. Only the first id of a token that is both in the vocabulary and added."""
    content: Any = read_json(file)
    vocab = content.get("model", {}).get("vocab", {})
    if isinstance(vocab, list):  # Unigram: [token, score] in the order of the ids
        vocab = {token: number for number, (token, _) in enumerate(vocab)}
    return {**vocab, **{added["content"]: added["id"] for added in content.get("added_tokens", [])}}


def _place(number: int | None) -> str:
    return "missing" if number is None else f"number {number}"


def untied(config: dict[str, Any]) -> bool:
    """Whether a configuration says that input and output embeddings are two matrices."""
    return (config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings"))) is False


def copy_side_files(folder: Path, target: Path, dtype: str | None) -> list[str]:
    """Copy what is neither weights nor trainer state nor pickle: config, processor, tokenizer, templates, own code.

    Args:
        folder: the checkpoint.
        target: the new folder.
        dtype: written into ``config.json`` wherever it names a type; None leaves it.

    Returns:
        Names of the files that were left behind, weights aside.
    """
    left = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not LEFT_OUT_FOLDERS.search(path.name):
                (target / path.name).mkdir()
                left += [f"{path.name}/{name}" for name in copy_side_files(path, target / path.name, dtype)]
        elif LEFT_OUT.search(path.name):
            left += [] if path.name.endswith((".safetensors", ".index.json")) else [path.name]
        elif path.name == "config.json" and dtype is not None:
            write_text(target / path.name, json.dumps(_retyped(read_json(path), dtype), indent=2) + "\n")
        else:
            shutil.copyfile(path, target / path.name)  # follows the links of a Hub cache
    return left


def _retyped(config: Any, dtype: str) -> Any:
    """A configuration with every type of weights in it replaced."""
    if isinstance(config, list):
        return [_retyped(value, dtype) for value in config]
    if not isinstance(config, dict):
        return config
    return {k: dtype if k in ("dtype", "torch_dtype") and v else _retyped(v, dtype) for k, v in config.items()}
