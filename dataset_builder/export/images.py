"""Frames as ``images``: a Parquet dataset that stock TRL's vision DPO trains on as it is.

TRL knows no videos: it wants a column ``images`` and as many image parts in the prompt. Frames as images cost more
tokens than the native video of most models, so ``DPOConfig(max_length=None)`` belongs to it: the
default would cut them.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import Features, Image, List, Value

from dataset_builder.export.pairs import Pair
from dataset_builder.media import MediaError, sample_frames
from dataset_builder.schema import MESSAGES, assistant_message

FEATURES = Features(
    {
        "question_id": Value("string"),
        "video_id": Value("string"),
        "images": List(Image()),
        "prompt": MESSAGES,
        "chosen": MESSAGES,
        "rejected": MESSAGES,
    }
)
IMAGE_FORMATS = {"jpeg": {"quality": 95, "subsampling": 0}, "png": {}}
_GROUP_ROWS = 8


def image_rows(pairs: Iterable[Pair], num_frames: int, image_format: str, left_out: Counter) -> Iterator[dict]:
    """One row a pair, the frames of its video as encoded pictures.

    Args:
        pairs: sorted by video, so that each clip is decoded once.
        num_frames: at most so many a video, evenly spaced.
        image_format: one of :data:`IMAGE_FORMATS`.
        left_out: counts pairs whose video cannot be decoded.
    """
    last, images = None, []
    for pair in pairs:
        if pair.video_id != last:
            last = pair.video_id
            try:
                images = [_encode(frame, image_format) for frame in sample_frames(pair.video, num_frames).array]
            except MediaError:
                images = []
        if not images:
            left_out["broken_video"] += 1
            continue
        parts = [{"type": "image", "text": None}] * len(images)
        yield {
            "question_id": pair.question_id,
            "video_id": pair.video_id,
            "images": [{"bytes": data, "path": None} for data in images],
            "prompt": [{"role": "user", "content": [*parts, {"type": "text", "text": pair.question}]}],
            "chosen": [assistant_message(pair.chosen)],
            "rejected": [assistant_message(pair.rejected)],
        }


def _encode(frame, image_format: str) -> bytes:
    """A frame, uint8 [H, W, 3], as the bytes of a picture file."""
    from PIL import Image as Picture

    stream = io.BytesIO()
    Picture.fromarray(frame).save(stream, image_format, **IMAGE_FORMATS[image_format])
    return stream.getvalue()


def write_images(rows: Iterable[dict], folder: Path, split: str, max_shard_bytes: int) -> int:
    """Write ``data/SPLIT-*.parquet`` and a card that ``load_dataset`` reads.

    Args:
        rows: from :func:`image_rows`; a few are in memory at a time.
        folder: where to write.
        split: of the dataset.
        max_shard_bytes: a file that has so many bytes of pictures is closed.

    Returns:
        The number of rows.
    """
    data, schema = folder / "data", FEATURES.arrow_schema
    data.mkdir(parents=True)
    count, shards, size, writer, group = 0, [], 0, None, []

    def put() -> None:
        nonlocal writer, size, group
        if writer is None:
            shards.append(data / f".{split}-{len(shards):05d}")
            writer, size = pq.ParquetWriter(shards[-1], schema), 0
        writer.write_table(pa.Table.from_pylist(group, schema))
        size += sum(len(image["bytes"]) for row in group for image in row["images"])
        group = []
        if size >= max_shard_bytes:
            writer.close()
            writer = None

    for row in rows:
        group.append(row)
        count += 1
        if len(group) == _GROUP_ROWS:
            put()
    if group:
        put()
    if writer is not None:
        writer.close()
    for index, path in enumerate(shards):
        path.rename(data / f"{split}-{index:05d}-of-{len(shards):05d}.parquet")
    header = yaml.safe_dump(
        {"configs": [{"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}-*.parquet"}]}]},
        sort_keys=False,
    )
    (folder / "README.md").write_text(
        f"---\n{header}---\n\n# Preference pairs, frames as images\n\n"
        "For TRL's `DPOTrainer` with a vision-language model and `DPOConfig(max_length=None)`.\n",
        encoding="utf-8",
    )
    return count
