"""Frames made ready for sending: resized by torchvision's v2 transforms, as JPEG or mp4 bytes, the same every time."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np

MOST_SIDE = 1 << 15  # pixels


def target_size(
    height: int, width: int, max_side: int | None = None, to_height: int | None = None, to_width: int | None = None
) -> tuple[int, int]:
    """(height, width) in pixels after :func:`resize_frames`.

    Raises:
        ValueError: ``max_side`` together with a height or width, or a value outside of 1 to ``MOST_SIDE``.
    """
    if max_side is not None and (to_height is not None or to_width is not None):
        raise ValueError("give max_side, or height and width, not both")
    for value in (max_side, to_height, to_width):
        if value is not None and not 1 <= value <= MOST_SIDE:
            raise ValueError(f"a side must have 1 to {MOST_SIDE} pixels, not {value}")
    if max_side is not None:
        longest = max(height, width)
        if longest <= max_side:
            return height, width
        return _scaled(height, max_side, longest), _scaled(width, max_side, longest)
    if to_height is None and to_width is not None:
        return _scaled(height, to_width, width), to_width
    if to_width is None and to_height is not None:
        return to_height, _scaled(width, to_height, height)
    return (to_height or height), (to_width or width)


def _scaled(side: int, numerator: int, denominator: int) -> int:
    """Rounded to nearest in integers, at least one pixel."""
    return max(1, (2 * side * numerator + denominator) // (2 * denominator))


def resize_frames(
    array: np.ndarray, *, max_side: int | None = None, height: int | None = None, width: int | None = None
) -> np.ndarray:
    """Resize frames, antialiased (bicubic); a picture that already fits is returned as it is.

    Args:
        array: uint8 ``[T, H, W, 3]``.
        max_side: most pixels of the longer side; the shape is kept and nothing is enlarged.
        height: pixels; alone it keeps the shape.
        width: pixels; alone it keeps the shape.

    Raises:
        ValueError: ``max_side`` together with a height or width, a side that cannot be, or an array of another kind.
    """
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], not {array.dtype} {list(array.shape)}")
    size = target_size(array.shape[1], array.shape[2], max_side, height, width)
    if size == array.shape[1:3] or not len(array):
        return array if size == array.shape[1:3] else np.zeros((0, *size, 3), np.uint8)
    import torch
    from torchvision.transforms import InterpolationMode, v2

    resize = v2.Resize(list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    frames = torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)
    return np.ascontiguousarray(resize(frames).permute(0, 2, 3, 1).numpy())


def jpeg_bytes(frame: np.ndarray, quality: int = 85) -> bytes:
    """One picture as JPEG.

    Args:
        frame: uint8 ``[H, W, 3]``, RGB.
        quality: 1 to 95.

    Raises:
        ValueError: another kind of array, or a quality outside of its range.
    """
    if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"a frame must be uint8 [H, W, 3], not {frame.dtype} {list(frame.shape)}")
    if not 1 <= quality <= 95:
        raise ValueError(f"quality must be from 1 to 95, not {quality}")
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def mp4_bytes(frames: np.ndarray, fps: float = 1.0, crf: int = 18) -> bytes:
    """Frames as an H.264 mp4 file that every player reads; odd sides lose nothing (one row is doubled).

    Args:
        frames: uint8 ``[T, H, W, 3]``, RGB, at least one.
        fps: frames per second that the file will say.
        crf: quality of x264, 0 (lossless in 4:2:0) to 51.

    Raises:
        ValueError: another kind of array, or an fps that is not above 0.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    if not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be above 0, not {fps}")
    import av

    # 4:2:0 halves both sides, so they must be even.
    padded = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    rate, out = Fraction(fps).limit_denominator(1001), io.BytesIO()
    # One thread, and a preset without time-dependent decisions: the same frames give the same bytes.
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *padded.shape[1:3], "yuv420p"
        for number, picture in enumerate(padded):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()
