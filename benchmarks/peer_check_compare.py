"""What ms-swift and LLaMA-Factory must make of exported rows, and how it is compared with what they made of them."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

FRAMES = 8
MIN_PIXELS, MAX_PIXELS = 56 * 56, 256 * 28 * 28  # of a frame; the least is that of the released Qwen2.5-VL
FPS = 60  # LLaMA-Factory takes the fewer of video_maxlen frames and so many a second
TAG = "<video>"


@dataclass(frozen=True)
class Row:
    """An exported row, whatever its shape.

    Attributes:
        video: path as written.
        file: where that is.
        question, chosen, rejected: texts, the question without its tag.
        tags: how many ``<video>`` tags the texts hold.
    """

    video: str
    file: Path
    question: str
    chosen: str
    rejected: str
    tags: int


def read_rows(folder: Path, shape: str) -> list[Row]:
    """The rows of an export, as they lie in its ``train.jsonl``."""
    rows = []
    for line in (folder / "train.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        if shape == "ms_swift":
            question, chosen = (message["content"] for message in row["messages"])
            rejected = row["rejected_response"]
        else:
            question = row["conversations"][0]["value"]
            chosen, rejected = row["chosen"]["value"], row["rejected"]["value"]
        (video,) = row["videos"]
        tags = sum(text.count(TAG) for text in (question, chosen, rejected))
        rows.append(Row(video, folder / video, question.removeprefix(TAG), chosen, rejected, tags))
    return rows


def frames_shown(shape: str, total: int, duration: float) -> int:
    """How many frames of a clip a peer takes.

    Args:
        shape: of the peer.
        total: frames of the clip.
        duration: of the clip in seconds.
    """
    if shape == "ms_swift":
        return min(FRAMES, total) // 2 * 2
    return min(FRAMES, total, max(1, math.floor(duration * FPS)))


def frame_size(shape: str, height: int, width: int) -> tuple[int, int]:
    """Size of a frame, pixels, when a peer hands it to the processor's own rule (``smart_resize``).

    LLaMA-Factory first scales a frame above the limit down to it, without regard to the 28 pixels of a token.
    """
    if shape == "llama_factory":
        if height * width > MAX_PIXELS:
            factor = math.sqrt(MAX_PIXELS / (height * width))
            height, width = int(height * factor), int(width * factor)
        if min(height, width) < 28:
            height, width = max(height, 28), max(width, 28)
    return height, width


@dataclass(frozen=True)
class Clip:
    """What a clip comes to.

    Attributes:
        tokens: in a prompt.
        grid: patches, [time, height, width].
        frames: indices of those taken, of which an odd number is filled up by repeating the last.
        total: frames of the clip.
    """

    tokens: int
    grid: list[int]
    frames: list[int]
    total: int


class ClipCounter:
    """The kit's own count: frames by `sample_frames`, tokens by the checkpoint's processor.

    Args:
        checkpoint: a Qwen2.5-VL folder.
    """

    def __init__(self, checkpoint: Path):
        from transformers import AutoProcessor

        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.token = self.processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
        self.released = self.processor.video_processor.size

    def count(self, video: Path, shape: str | None) -> Clip:
        """What a clip comes to in the kit's own training (``None``), or with a peer's number and size of frames.

        Raises:
            MediaError: the clip cannot be read.
        """
        import numpy as np

        from dataset_builder.media import sample_frames
        from dataset_builder.media.choice import uniform_indices
        from dataset_builder.models.local import video_inputs

        frames, limits = sample_frames(video, FRAMES), {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
        if shape is not None:
            number = frames_shown(shape, frames.total, frames.duration)
            if not number:
                return Clip(0, [], [], frames.total)
            height, width = frame_size(shape, *frames.array.shape[1:3])
            array = np.zeros((number, height, width, 3), np.uint8)
            frames = replace(frames, array=array, indices=uniform_indices(frames.total, number), timestamps=[])
        # LLaMA-Factory has applied its limit before the processor, which keeps the checkpoint's own
        self.processor.video_processor.size = self.released if shape == "llama_factory" else limits
        text = "<|vision_start|><|video_pad|><|vision_end|>"
        inputs = self.processor(text=[text], **video_inputs([frames]), return_tensors="pt")
        tokens = int((inputs["input_ids"] == self.token).sum())
        return Clip(tokens, inputs["video_grid_thw"][0].tolist(), frames.indices, frames.total)


def same(one: str | None, other: str) -> bool:
    """Whether two texts are the same to Qwen's tokenizer, which composes characters (NFC)."""
    return one is not None and unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def check_rows(rows: Sequence[Row]) -> list[str]:
    """What is wrong with the exported rows themselves; a trainer passes over most of it without a word."""
    problems = []
    for number, row in enumerate(rows, 1):
        if row.tags != 1:
            problems.append(f"row {number}: has {row.tags} {TAG} tags for 1 video")
        if not row.chosen.strip() or not row.rejected.strip():
            problems.append(f"row {number}: an answer is empty")
        if row.chosen == row.rejected:
            problems.append(f"row {number}: chosen and rejected are the same")
        if not row.file.is_file():
            problems.append(f"row {number}: there is no file {row.video}")
    return problems


def compare(rows: Sequence[Row], seen: dict, clips: Sequence[Clip]) -> list[str]:
    """What a peer made of the rows against what was exported.

    Args:
        rows: exported.
        seen: written by the peer's check script: ``read``, the rows its loader found, and ``rows``, those it kept,
            each ``{video, error, frames, chosen, rejected}``, sides as `benchmarks.peer_check_text.side` makes them.
        clips: what the video of each exported row must come to.

    Returns:
        Every difference, one line each; none when all is equal.
    """
    problems = []
    if seen["read"] != len(rows):
        problems.append(f"{seen['read']} rows were read, {len(rows)} exported")
    kept = list(seen["rows"])
    if len(kept) != len(rows):
        problems.append(f"{len(kept)} rows were kept, {len(rows)} exported")
    position = 0
    for number, (row, clip) in enumerate(zip(rows, clips, strict=True), 1):
        lost = position == len(kept) or (len(kept) < len(rows) and not _belongs(kept[position], row))
        if lost:
            problems.append(f"row {number}: was dropped ({Path(row.video).name}: {row.question.strip()[:60]!r})")
            continue
        found = kept[position]
        position += 1
        problems += [f"row {number}: {problem}" for problem in _differences(row, found, clip)]
    problems += [f"a row too many: {one['video']}" for one in kept[position:]]
    return problems


def _belongs(found: dict, row: Row) -> bool:
    """Whether what a peer kept came from a row."""
    if Path(found["video"] or "").name != Path(row.video).name:
        return False
    return bool(found["error"]) or (
        same(found["chosen"]["answer"], row.chosen) and same(found["rejected"]["answer"], row.rejected)
    )


def _differences(row: Row, found: dict, clip: Clip) -> list[str]:
    if found["error"]:
        return [f"cannot be encoded: {found['error'].splitlines()[0][:200]}"]
    problems = []
    if Path(found["video"] or "").name != Path(row.video).name:
        problems.append(f"its video is {found['video']}, exported was {row.video}")
    for side, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
        one = found[side]
        if not same(one["answer"], answer):
            problems.append(f"{side} is {one['answer'][:60]!r}, exported was {answer[:60]!r}")
        if not same(one["question"], row.question):
            problems.append(f"the question beside {side} is {one['question']!r}, exported was {row.question!r}")
        if one["tokens"] != clip.tokens:
            problems.append(f"{side} has {one['tokens']} video tokens, its clip comes to {clip.tokens}")
        if one["grid"] != clip.grid:
            problems.append(f"{side} is given {_patches(one['grid'])}, its clip has {_patches(clip.grid)}")
    if len(found["frames"]) != len(clip.frames) or any(
        abs(one - other) > 1 for one, other in zip(found["frames"], clip.frames, strict=True)
    ):
        shown = " ".join(map(str, found["frames"]))
        problems.append(f"shows frames {shown} of {clip.total}, wanted {' '.join(map(str, clip.frames))}")
    return problems


def _patches(grid: list[int] | None) -> str:
    """A grid in words."""
    return "no frames" if not grid else f"{grid[0]} x {grid[1]} x {grid[2]} patches (time, height, width)"
