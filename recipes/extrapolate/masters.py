"""More precise copies of a checkpoint's weights, where its folder or its run holds them."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from recipes.extrapolate.tensorfile import FLOATS, Entry, Reader

LOOKED_AT = 4096  # first weights of a tensor that must agree


def find_masters(saved: dict[str, Entry], held: dict[str, Entry]) -> dict[str, Entry]:
    """Match weights with wider copies of them.

    A copy has the same name, or else the one that ends most alike (a model's own names and those in its files differ
    over the versions of a library). Its first values, rounded to the saved type, must be the saved ones, bit for bit:
    copies of another model, or of another moment, are never taken.

    Args:
        saved: the checkpoint's tensors.
        held: those of the file with copies.

    Returns:
        Copies by the saved name; empty unless there is one for every weight that is saved in a narrower type.
    """
    found: dict[str, Entry] = {}
    with Reader() as reader:
        for name, entry in saved.items():
            if not entry.is_float or entry.itemsize >= 4:
                continue
            alike = [held[name]] if name in held else sorted(held.values(), key=lambda e: -_common(e.name, name))
            fits = (e for e in alike if e.is_float and e.itemsize > entry.itemsize and e.shape == entry.shape)
            copy = next((e for e in fits if _agree(reader, entry, e)), None)
            if copy is None:
                return {}
            found[name] = copy
    return found


def round_masters(folder: Path) -> Path | None:
    """The file with the fp32 weights that a run of rounds keeps beside ``round-N`` for its next round."""
    number = re.fullmatch(r"round-(\d+)", folder.name)
    file = folder.parent / f".handover.safetensors.{number[1]}" if number else None
    return file if file is not None and file.is_file() else None


def _common(a: str, b: str) -> int:
    """Number of last parts that two names share."""
    count = 0
    for left, right in zip(reversed(a.split(".")), reversed(b.split("."))):
        if left != right:
            break
        count += 1
    return count


def _agree(reader: Reader, saved: Entry, copy: Entry) -> bool:
    count = min(saved.numel, LOOKED_AT)
    if not count:
        return True
    tensors = []
    for entry in (saved, copy):
        buffer = bytearray(count * entry.itemsize)
        reader.read(entry, 0, memoryview(buffer))
        tensors.append(torch.frombuffer(buffer, dtype=FLOATS[entry.code]))
    return torch.equal(tensors[0], tensors[1].to(tensors[0].dtype))
