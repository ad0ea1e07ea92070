"""Extrapolation of checkpoint folders, piece by piece: memory does not grow with the model.

Every weight is widened to fp64, moved and rounded once to the type it is saved in; what was saved is read back from the
buffer and compared with the step that was meant, so the figures are of the very bytes in the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dataset_builder.errors import KitError
from dataset_builder.models.revision import checkpoint_revision
from eval.results import write_text
from recipes.extrapolate.folders import (
    ADAPTER_CONFIG,
    INDEX,
    WEIGHTS,
    Checkpoint,
    check_same_model,
    copy_side_files,
    is_adapter,
    open_checkpoint,
    untied,
)
from recipes.extrapolate.measure import Sums, report
from recipes.extrapolate.tensorfile import CODES, FLOATS, Entry, Planned, Reader, Writer, plan_shards

PIECE = 1 << 17  # weights worked on at a time: 1 MiB in fp64, so that a piece stays in the processor's caches
REPORT = "extrapolation.json"
Say = Callable[[str], None]


def extrapolate_checkpoint(
    weak: Path, strong: Path, alpha: float, target: Path, dtype: str | None, shard_size: int, say: Say, progress: Say
) -> dict[str, Any]:
    """Fill a folder with the checkpoint STRONG + alpha · (STRONG − WEAK).

    Args:
        weak: checkpoint that the training of `strong` started from.
        strong: checkpoint of the same architecture and vocabulary.
        alpha: 0 gives STRONG's weights bit for bit, −1 WEAK's (in the type of `dtype`); buffers that are no floats are
            always STRONG's.
        target: an empty folder.
        dtype: ``float32``, ``bfloat16`` or ``float16`` for all weights; None keeps each tensor's type in STRONG.
        shard_size: bytes of a file at most.
        say: gets lines for the person.
        progress: gets a line every few seconds, with rate and time left.

    Returns:
        What was written to ``extrapolation.json``.

    Raises:
        KitError: when the two are not of one model, naming the tensor; when files are missing, damaged, pickled or
            quantized; when values are not finite or do not fit the type; when the disk is too small.
    """
    ours, theirs = open_checkpoint(weak), open_checkpoint(strong)
    check_same_model(ours, theirs)
    with Reader() as reader, one_thread():
        names, dropped = pair(ours, theirs, reader)
        for name, twin in dropped.items():
            say(f"{name} is a copy of {twin} (tied) in one of the two; written once")
        for checkpoint in (ours, theirs):
            if checkpoint.masters is not None:
                say(f"{checkpoint.folder}: weights are taken from their more precise copies in {checkpoint.masters}")
        prints = background(lambda: [content_fingerprint(folder) for folder in (weak, strong)])
        sums, inputs = _write(ours, theirs, names, alpha, target, dtype, shard_size, reader, progress)
        twins = _twins(ours, theirs, list(sums), reader)
        left = copy_side_files(strong, target, dtype)
        if left:
            say(f"not copied: {', '.join(left)}")
        content = report(
            sums,
            alpha,
            twins,
            kind="checkpoint",
            dtype=dtype or _stored(theirs, names),
            inputs=inputs,
            weak={"path": weak.name, "fingerprint": prints()[0]},
            strong={"path": strong.name, "fingerprint": prints()[1]},
        )
    write_text(target / REPORT, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content


def background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin something in a thread that nobody waits for after an error; the function returned waits for its result.

    Hashing takes as long as moving and needs the same files, so it also reads ahead.
    """
    future: Future = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return future.result


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: dividing pieces this small costs more than it gains, most on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def content_fingerprint(folder: Path) -> str:
    """16 hex digits over weights and configuration: `checkpoint_revision`, with an adapter's settings."""
    revision = checkpoint_revision(folder)
    if is_adapter(folder):
        return hashlib.sha256(revision.encode() + (folder / ADAPTER_CONFIG).read_bytes()).hexdigest()[:16]
    return revision


def pair(weak: Checkpoint, strong: Checkpoint, reader: Reader) -> tuple[list[str], dict[str, str]]:
    """Match the tensors of two checkpoints.

    Returns:
        (names in STRONG's order, {name that only one of them holds: the tensor it is tied to}).

    Raises:
        KitError: naming the first tensor that only one holds, or whose shape or kind differs.
    """
    dropped = {}
    for name in sorted(weak.entries.keys() ^ strong.entries.keys()):
        owner, other = (strong, weak) if name in strong.entries else (weak, strong)
        twin = None
        if not untied(weak.config) and not untied(strong.config):
            twin = next((n for n in other.entries if n in owner.entries and _same(owner, name, n, reader)), None)
        if twin is None:
            raise KitError(f"{name}: only {owner.folder} holds it; both must be checkpoints of one model")
        dropped[name] = twin
    names = [name for name in strong.entries if name not in dropped]
    for name in names:
        start, end = weak.entries[name], strong.entries[name]
        if start.shape != end.shape:
            embeds = "embed" in name or "lm_head" in name or "wte" in name
            hint = " (the vocabularies differ)" if embeds and start.shape[1:] == end.shape[1:] else ""
            raise KitError(
                f"{name}: shapes differ, {list(start.shape)} in {weak.folder}, {list(end.shape)} in "
                f"{strong.folder}{hint}"
            )
        if start.is_float != end.is_float:
            raise KitError(f"{name}: types differ, {start.code} in {weak.folder}, {end.code} in {strong.folder}")
    return names, dropped


def _same(checkpoint: Checkpoint, name: str, other: str, reader: Reader) -> bool:
    """Whether two matrices of one checkpoint have the same bytes."""
    a, b = checkpoint.entries[name], checkpoint.entries[other]
    if name == other or a.shape != b.shape or a.code != b.code or not a.is_float or len(a.shape) < 2:
        return False
    buffers = [memoryview(bytearray(min(a.size, 1 << 20))) for _ in range(2)]
    for first in range(0, a.size, 1 << 20):
        pieces = [buffer[: min(len(buffer), a.size - first)] for buffer in buffers]
        for entry, piece in zip((a, b), pieces, strict=True):
            reader.read(entry, first, piece)
        if pieces[0] != pieces[1]:
            return False
    return True


def _twins(weak: Checkpoint, strong: Checkpoint, names: list[str], reader: Reader) -> list[str]:
    """Second copies of a tied matrix that both checkpoints hold (an output head equal to the embedding)."""
    if untied(strong.config):
        return []
    heads = [name for name in names if name.endswith("lm_head.weight")]
    tables = [name for name in names if "embed_tokens" in name or name.endswith(("wte.weight", "shared.weight"))]
    both = (weak, strong)
    return [h for h in heads if any(all(_same(c, h, t, reader) for c in both) for t in tables)]


def _stored(checkpoint: Checkpoint, names: list[str]) -> str:
    """The type most of the weights are saved in."""
    count: dict[str, int] = {}
    for name in names:
        if (entry := checkpoint.saved(name)).is_float:
            count[entry.code] = count.get(entry.code, 0) + entry.numel
    code = max(count, key=count.__getitem__, default="F32")
    return str(FLOATS[code]).removeprefix("torch.")


def _write(
    weak: Checkpoint,
    strong: Checkpoint,
    names: list[str],
    alpha: float,
    target: Path,
    dtype: str | None,
    shard_size: int,
    reader: Reader,
    progress: Say,
) -> tuple[dict[str, Sums], dict[str, str]]:
    """Write the weights and the index. Returns the sums by tensor and the types that were read."""
    planned = []
    for name in names:
        entry = strong.saved(name)
        code = CODES[dtype] if dtype is not None and entry.is_float else entry.code
        size = entry.numel * FLOATS[code].itemsize if entry.is_float else entry.size
        planned.append(Planned(name, code, entry.shape, size))
    total = sum(tensor.size for tensor in planned)
    if (free := shutil.disk_usage(target).free) < total:
        raise KitError(f"{target.parent}: the result needs {total / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")
    shards = plan_shards(planned, shard_size)
    mover, sums, index = Mover(reader, alpha), {}, {}
    clock = Progress(total, progress)
    for number, shard in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with Writer(target / file, shard, {"format": "pt", **strong.metadata}) as writer:
            for tensor in shard:
                index[tensor.name] = file
                entries = weak.entries[tensor.name], strong.entries[tensor.name]
                if tensor.code in FLOATS:
                    sums[tensor.name] = mover.move(*entries, FLOATS[tensor.code], writer, clock)
                else:
                    mover.copy(entries[1], writer, clock)
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        write_text(target / INDEX, json.dumps(content, indent=2, sort_keys=True) + "\n")
    floats = [name for name in names if strong.entries[name].is_float]
    read = {
        role: ", ".join(sorted({str(FLOATS[c.entries[n].code]).removeprefix("torch.") for n in floats}))
        for role, c in (("weak", weak), ("strong", strong))
    }
    return sums, read


class Mover:
    """Moves one tensor after the other, with buffers that are used again.

    Args:
        reader: of the files.
        alpha: of the extrapolation.
    """

    def __init__(self, reader: Reader, alpha: float):
        self.reader, self.alpha = reader, alpha
        self.raw = [memoryview(bytearray(PIECE * 8)) for _ in range(3)]  # WEAK's bytes, STRONG's, the result's
        self.wide = [torch.empty(PIECE, dtype=torch.float64) for _ in range(4)]

    def copy(self, entry: Entry, writer: Writer, clock: Progress) -> None:
        """Write a tensor as it is."""
        for first in range(0, entry.size, len(self.raw[0])):
            piece = self.raw[0][: min(len(self.raw[0]), entry.size - first)]
            self.reader.read(entry, first, piece)
            writer.write(piece)
            clock.add(len(piece))

    def move(self, weak: Entry, strong: Entry, dtype: torch.dtype, writer: Writer, clock: Progress) -> Sums:
        """Write one tensor, moved.

        Raises:
            KitError: naming the tensor, when WEAK or STRONG hold values that are not finite, or a result does not fit
                `dtype`.
        """
        sums = Sums()
        for first in range(0, strong.numel, PIECE):
            count = min(PIECE, strong.numel - first)
            start, end = (self._typed(raw, FLOATS[e.code], count, e, first) for raw, e in zip(self.raw, (weak, strong)))
            saved = torch.frombuffer(self.raw[2], dtype=dtype, count=count)
            sums += self._piece(start, end, saved, strong.name)
            data = self.raw[2][: count * dtype.itemsize]
            writer.write(data)
            clock.add(len(data))
        return sums

    def _typed(self, raw: memoryview, dtype: torch.dtype, count: int, entry: Entry, first: int) -> torch.Tensor:
        self.reader.read(entry, first * dtype.itemsize, raw[: count * dtype.itemsize])
        return torch.frombuffer(raw, dtype=dtype, count=count)

    def _piece(self, start: torch.Tensor, end: torch.Tensor, saved: torch.Tensor, name: str) -> Sums:
        """Fill `saved` (all [n], of their stored types) and measure it."""
        weak, strong, step, result = (wide[: len(end)] for wide in self.wide)
        weak.copy_(start), strong.copy_(end)
        torch.sub(strong, weak, out=step)
        trained = _dot(step, step)
        if not math.isfinite(trained):
            self._not_finite(weak, strong, step, name)
            trained = _dot(step, step)
        changed = int(torch.count_nonzero(step))
        if self.alpha == 0:
            saved.copy_(end)
        elif self.alpha == -1:
            saved.copy_(start)
        else:
            torch.add(strong, step, alpha=self.alpha, out=result)
            if changed < len(step):  # −0.0 + 0.0 is 0.0: weights without a step keep their bits
                torch.where(step == 0, strong, result, out=result)
            saved.copy_(result)
        added = result.copy_(saved).sub_(strong)
        squares, moved = _dot(added, added), changed
        if not math.isfinite(squares):
            added.masked_fill_(~strong.isfinite() & ~result.isfinite() & (step == 0), 0)
            squares = _dot(added, added)
            if not math.isfinite(squares):
                raise KitError(f"{name}: the result does not fit {str(saved.dtype)[6:]}; use --dtype float32")
        if changed:
            moved = int(torch.count_nonzero(added)) if changed == len(step) else int(((added != 0) & (step != 0)).sum())
        dot = _dot(added, step)
        norms = [_dot(x, x) for x in (weak, strong)]
        if not math.isfinite(sum(norms)):  # masks: their infinities are no weights
            norms = [_dot(x, x) for x in (x.masked_fill_(~x.isfinite(), 0) for x in (weak, strong))]
        return Sums(len(end), *norms, trained, squares, dot, changed, moved)

    def _not_finite(self, weak: torch.Tensor, strong: torch.Tensor, step: torch.Tensor, name: str) -> None:
        """Let masks through (the same infinity in both); refuse anything else."""
        step.masked_fill_(weak == strong, 0)
        if not bool(step.isfinite().all()):
            raise KitError(f"{name}: WEAK or STRONG holds values that are not finite; the checkpoint is broken")


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.dot(a, b))


class Progress:
    """A line every few seconds: how much is written, rate, time left.

    Args:
        total: bytes that will be written.
        say: gets the line.
        every: seconds between two lines.
    """

    def __init__(self, total: int, say: Say, every: float = 5.0):
        self.total, self.say, self.every = total, say, every
        self.done, self.started = 0, time.monotonic()
        self.spoke = self.started

    def add(self, count: int) -> None:
        """Count bytes that were written."""
        self.done += count
        now = time.monotonic()
        if now - self.spoke >= self.every and self.done < self.total:
            self.spoke, rate = now, self.done / (now - self.started)
            self.say(
                f"{self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB written, {rate / 1e6:.0f} MB/s, "
                f"{(self.total - self.done) / rate:.0f} s left"
            )
