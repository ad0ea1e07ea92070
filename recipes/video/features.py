"""Outputs of a frozen vision tower, kept: in memory, and on disk over epochs, rounds and runs.

The key is made of everything that decides a clip's features: the vision side's weights, the processor, frames and
resolution, the arithmetic's type, and the clip's content. Whatever changes one of them misses, so an entry is never
wrong; the oldest entries go when the folder grows over its limit.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dataset_builder.errors import KitError
from recipes.video.encoding import GRID_KEYS, Kept
from recipes.video.sharding import whole
from recipes.video.vision import is_stored, vision_parameters

# What decides features besides the vision tower's own configuration.
SETTINGS = ("vision_feature_layer", "vision_feature_select_strategy", "downsample_ratio", "scale_factor")


class FeatureStore:
    """Features and small inputs of clips, and the token ids of prompts about them.

    Args:
        folder: kept on disk there, in ``folder/KEY``; None keeps them in memory only.
        limit_bytes: size that the folder may reach.
        memory_bytes: features held in memory.
    """

    def __init__(self, folder: str | Path | None = None, limit_bytes: int = 20 << 30, memory_bytes: int = 1 << 30):
        self.root, self.limit = None if folder is None else Path(folder), limit_bytes
        self._memory, self._prompts = Kept(memory_bytes), Kept(memory_bytes // 8)
        self.key: str | None = None
        self.recent: dict[str, dict] = {}  # of the last batch, on its device: policy and reference look at it in turn
        self.made = self.hits = 0  # clips that the vision tower looked at, and that it need not look at
        self._since_check = 0

    def open(self, key: str) -> None:
        """Serve entries of one key; what was in memory under another stays there under its own."""
        self.key, self.recent = key, {}
        if self.root is not None:
            (self.root / key).mkdir(parents=True, exist_ok=True)
            self._make_room()  # many short runs may each stay below what is worth a look

    def get(self, clip: str) -> dict[str, torch.Tensor] | None:
        """A clip's features and grids, or None."""
        if self.key is None:
            return None
        found = self._memory.get(f"{self.key}/{clip}")
        if found is None and self.root is not None:
            found = self._read(self._path(clip))
            if found is not None:
                self._memory.put(f"{self.key}/{clip}", found, _size(found))
        self.hits += found is not None
        return found

    def put(self, clip: str, inputs: dict[str, torch.Tensor], features: dict[str, torch.Tensor]) -> None:
        """Keep what the vision tower made of a clip."""
        if self.key is None:
            return
        grids = {name: inputs[name] for name in GRID_KEYS if name in inputs}
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in {**grids, **features}.items()}
        self._memory.put(f"{self.key}/{clip}", kept, _size(kept))
        if self.root is not None:
            self._write(self._path(clip), lambda part: save_file(_own_memory(kept), part, {"crc": _crc(kept)}))
            self._since_check += _size(kept)
            if self._since_check > self.limit // 20:
                self._since_check = 0
                self._make_room()

    def prompt(self, clip: str, text: str) -> tuple[list[int], dict] | None:
        """Token ids and types of a rendered prompt about a clip, or None."""
        if self.key is None:
            return None
        name = f"{self.key}/{_prompt_name(clip, text)}"
        found = self._prompts.get(name)
        if found is None and self.root is not None:
            try:
                ids, types = json.loads((self.root / name).read_text())
            except (OSError, ValueError, TypeError):
                return None
            found = (ids, types)
        return found

    def keep_prompt(self, clip: str, text: str, encoded: tuple[list[int], dict]) -> None:
        """Keep a prompt's token ids, so that a clip with features need not be decoded for them."""
        if self.key is None:
            return
        name = f"{self.key}/{_prompt_name(clip, text)}"
        if name in self._prompts:
            return
        self._prompts.put(name, encoded, 8 * len(encoded[0]))
        if self.root is not None:
            self._write(self.root / name, lambda part: part.write_text(json.dumps(encoded)))

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file that is there as a whole or not at all, whoever else writes it."""
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            write(part)
            os.replace(part, path)
        except FileNotFoundError:  # another process made room
            part.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            raise KitError(
                f"feature_cache: {self.root}: cannot be written ({error}); free space, lower feature_cache_gb, or "
                "leave feature_cache out"
            ) from None

    def _path(self, clip: str) -> Path:
        return self.root / self.key / f"{clip}.safetensors"

    @staticmethod
    def _read(path: Path) -> dict[str, torch.Tensor] | None:
        """An entry, or None if there is none or it is damaged: then it is made again."""
        try:
            with safe_open(path, "pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                crc = (file.metadata() or {}).get("crc")
            if crc != _crc(found) or not is_stored(found):
                return None
            os.utime(path)  # most recently used
        except (OSError, SafetensorError):
            return None
        return found

    def _make_room(self) -> None:
        """Delete the least recently used files, of any key, until a tenth of the limit is free."""
        entries = []
        for path in self.root.rglob("*"):
            try:
                stat = path.stat()
            except OSError:
                continue  # another process was faster
            if path.is_file():
                entries.append((stat.st_mtime, stat.st_size, path))
        used = sum(size for _, size, _ in entries)
        if used <= self.limit:
            return
        for _, size, path in sorted(entries, key=lambda entry: entry[0]):
            path.unlink(missing_ok=True)
            used -= size
            if used <= 0.9 * self.limit:
                return


def features_key(model, clip_key: str, dtype: str) -> str:
    """Key of a store's entries.

    Args:
        model: its vision side's weights count, its text side's do not.
        clip_key: of `ClipEncoder`: processor, frames, resolution.
        dtype: in which the features are computed.
    """
    digest = hashlib.sha256(f"{clip_key} {dtype} {model.config.model_type}".encode())
    settings = [model.config.vision_config.to_dict(), {name: getattr(model.config, name, None) for name in SETTINGS}]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, parameter in sorted(vision_parameters(model).items()):
        digest.update(f"{_plain(name)} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(whole(parameter.detach()).cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _plain(name: str) -> str:
    """A parameter's name without what wrappers put before it."""
    return name.removeprefix("base_model.model.")


def _prompt_name(clip: str, text: str) -> str:
    return f"{clip}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _own_memory(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors refuses tensors that share memory."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _crc(tensors: dict[str, torch.Tensor]) -> str:
    """Checksum of the contents: safetensors notices a file that is too short, not one whose bytes have changed."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"


def _size(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
