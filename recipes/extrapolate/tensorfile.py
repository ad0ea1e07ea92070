"""Reading and writing safetensors piece by piece, so that no tensor has to be in memory as a whole.

The library maps a file and hands out whole tensors, and writes a file from whole tensors. Here a file is read with
ordinary reads into a buffer that is used again (nothing stays mapped), and written front to back. Format:
8 bytes little-endian length, a JSON header, then the data; https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dataset_builder.errors import KitError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COUNTERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")  # buffers that are copied as they are
CODES = {str(dtype).removeprefix("torch."): code for code, dtype in FLOATS.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        name: of the tensor.
        file: the safetensors file.
        code: the format's name of the type, such as ``BF16``.
        shape: of the tensor.
        offset: byte in the file where its data begins.
        size: bytes of data.
    """

    name: str
    file: Path
    code: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it holds weights that can be extrapolated; others are counters and masks."""
        return self.code in FLOATS

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.size // self.numel if self.numel else 1


def read_header(file: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read what a file holds, in the order of its data.

    Returns:
        (entries by name, the file's metadata).

    Raises:
        KitError: when the file is missing, cut short or damaged, or a type is neither a plain float nor an integer.
    """
    try:
        with safe_open(file, framework="pt"):  # the library checks the header against the file's length
            pass
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise KitError(
            f"{file}: there is no such file, though the index names it; fetch the checkpoint again"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise KitError(f"{file}: cut short or damaged ({error}); fetch or save it again") from None
    metadata = header.pop("__metadata__", {})
    entries = []
    for name, what in header.items():
        begin, end = what["data_offsets"]
        if what["dtype"] not in FLOATS and what["dtype"] not in COUNTERS:
            raise KitError(f"{file}: {name} is of type {what['dtype']}: quantized weights cannot be extrapolated")
        entries.append(Entry(name, file, what["dtype"], tuple(what["shape"]), 8 + length + begin, end - begin))
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.offset)}, metadata


class Reader:
    """Reads pieces of tensors; files stay open."""

    def __init__(self):
        self._files: dict[Path, int] = {}

    def read(self, entry: Entry, first: int, buffer: memoryview) -> None:
        """Fill a buffer with an entry's bytes from byte `first` on.

        Raises:
            KitError: when the file ends before that (it was changed meanwhile).
        """
        if entry.file not in self._files:
            self._files[entry.file] = os.open(entry.file, os.O_RDONLY)
        done = 0
        while done < len(buffer):
            got = os.preadv(self._files[entry.file], [buffer[done:]], entry.offset + first + done)
            if not got:
                raise KitError(f"{entry.file}: ends within {entry.name}; it was changed while it was read")
            done += got

    def close(self) -> None:
        """Close the files."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    name: str
    code: str
    shape: tuple[int, ...]
    size: int


class Writer:
    """Writes one safetensors file front to back.

    Args:
        path: the file.
        tensors: what it will hold, in this order; wider types first, or readers find data that is not aligned.
        metadata: text by text.
    """

    def __init__(self, path: Path, tensors: Sequence[Planned], metadata: Mapping[str, str]):
        header: dict = {"__metadata__": dict(metadata)} if metadata else {}
        at = 0
        for tensor in tensors:
            offsets = [at, at + tensor.size]
            header[tensor.name] = {"dtype": tensor.code, "shape": list(tensor.shape), "data_offsets": offsets}
            at += tensor.size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # the data begins at a multiple of eight
        self.path, self._left = path, at
        self._stream = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        self._write(len(text).to_bytes(8, "little") + text)

    def write(self, data: memoryview) -> None:
        """Append the next bytes of the data."""
        self._left -= len(data)
        self._write(data)

    def _write(self, data: memoryview | bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._stream.write(view) :]

    def close(self) -> None:
        """Bring the file to the disk and close it.

        Raises:
            RuntimeError: when not all that was announced was written, or more.
        """
        if self._left:
            raise RuntimeError(f"{self.path}: {self._left} bytes of what the header announces were not written")
        os.fsync(self._stream.fileno())
        self._stream.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind, *exc) -> None:
        if kind is None:
            self.close()
        else:
            self._stream.close()


def plan_shards(tensors: Sequence[Planned], limit: int) -> list[list[Planned]]:
    """Divide tensors into files of at most `limit` bytes (a larger tensor gets a file of its own), keeping their order.

    Within a file wider types come first, as the library writes them too: all data is aligned to its type.
    """
    shards: list[list[Planned]] = [[]]
    used = 0
    for tensor in tensors:
        if shards[-1] and used + tensor.size > limit:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.size

    def width(tensor: Planned) -> int:
        return -(tensor.size // max(1, math.prod(tensor.shape)))

    return [sorted(shard, key=width) for shard in shards]
