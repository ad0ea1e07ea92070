"""Two fingerprints of a video: one of its bytes (exact), one of its picture (survives re-encoding)."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np

from dataset_builder.media.folder import folder_sha256
from dataset_builder.media.source import MediaError, VideoSource, check_readable, describe, is_folder


def file_sha256(source: VideoSource) -> str:
    """SHA-256 of a file's bytes (or of bytes in memory) as 64 hex digits; of a frame folder its `folder_sha256`.

    Raises:
        MediaError: the file is missing, empty or cannot be read.
    """
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if is_folder(source):
        return folder_sha256(source)
    check_readable(source)
    try:
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MediaError(f"{describe(source)}: cannot be read ({error.strerror})") from None


def perceptual_hash(image: np.ndarray) -> str:
    """Difference hash (dHash, N. Krawetz 2013) of one picture: 64 bits as 16 hex digits.

    The picture becomes grey, is averaged down to 8 rows of 9 cells, and each bit says whether a cell is darker than its
    right neighbour. Copies in another size or compression differ in few bits; unrelated pictures in about 32.

    Args:
        image: uint8 ``[H, W, 3]`` (RGB) or ``[H, W]``.
    """
    # Integers throughout (BT.601 weights in thousandths): the same bits on every machine.
    grey = image.astype(np.int64)
    if grey.ndim == 3:
        grey = grey @ np.array([299, 587, 114], dtype=np.int64)
    rows, row_sizes = _cells(grey.shape[0], 8)
    columns, column_sizes = _cells(grey.shape[1], 9)
    summed = np.add.reduceat(grey[rows.ravel()].reshape(-1, grey.shape[1]), _starts(row_sizes), axis=0)
    summed = np.add.reduceat(summed[:, columns.ravel()], _starts(column_sizes), axis=1)  # [8, 9]
    # Cells of unequal width are compared by their means without dividing: a / m < b / n as a * n < b * m.
    darker = summed[:, :-1] * column_sizes[1:] < summed[:, 1:] * column_sizes[:-1]
    return np.packbits(darker.ravel()).tobytes().hex()


def _cells(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of ``length`` pixels in ``count`` neighbouring cells, each at least one pixel, and the cells' sizes."""
    edges = np.arange(count + 1) * length // count
    spans = [np.arange(low, max(high, low + 1)) for low, high in pairwise(edges)]
    return np.concatenate(spans), np.array([len(span) for span in spans])


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)[:-1]])
