"""Frame folders: a folder of numbered JPEG or PNG pictures is a video, sampled, hashed and packed without re-encoding.

Pictures are decoded by the same decoder that reads them after packing, so a folder and its packed file give the same
pixels. A turn noted in a picture's EXIF data is not applied: frames cut from a video carry none.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from dataset_builder.media.source import MediaError, describe

_CODECS = {".jpg": "mjpeg", ".jpeg": "mjpeg", ".png": "png"}
_FORMATS = {"mjpeg": "JPEG", "png": "PNG"}


def frame_names(folder: Path | str) -> list[str]:
    """Names of the frames in natural order (``f2`` before ``f10``); other and hidden files do not count.

    Raises:
        MediaError: none, or JPEG and PNG mixed, or the folder cannot be read.
    """
    try:
        names = [p.name for p in Path(folder).iterdir() if p.suffix.lower() in _CODECS and not p.name.startswith(".")]
    except OSError as error:
        raise MediaError(f"{describe(folder)}: cannot be read ({error.strerror})") from None
    if not names:
        raise MediaError(f"{describe(folder)}: is a folder without JPEG or PNG frames", "directory")
    if len({_codec(name) for name in names}) > 1:
        raise MediaError(f"{describe(folder)}: mixes JPEG and PNG frames", "mixed_formats")
    return sorted(names, key=lambda name: ([(len(n), n) for n in _numbers(name)], name))


def _numbers(name: str) -> list[str]:
    """A name cut into texts and numbers; numbers without leading zeros compare by length, then digits."""
    return [part.lstrip("0") if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def _codec(name: str) -> str:
    return _CODECS[Path(name).suffix.lower()]


def timeline(folder: Path | str, fps: float) -> tuple[np.ndarray, float, list[str]]:
    """Seconds at which the frames begin, the duration, and the names.

    Raises:
        MediaError: as for :func:`frame_names`.
        ValueError: fps is not above 0.
    """
    _check_rate(fps)
    names = frame_names(folder)
    return np.arange(len(names)) / fps, len(names) / fps, names


def decode(folder: Path | str, names: Sequence[str], indices: Sequence[int], every_size: bool) -> dict[int, np.ndarray]:
    """Pictures by index, uint8 ``[H, W, 3]``; only these are decoded.

    Args:
        folder: of the frames.
        names: of all frames.
        indices: the wanted ones.
        every_size: also compare the sizes of all the others, by their headers.

    Raises:
        MediaError: ``broken_frame`` or ``mixed_sizes``.
    """
    pictures = {index: _decode_one(Path(folder) / names[index]) for index in sorted(set(indices))}
    sizes = {picture.shape[1::-1] for picture in pictures.values()}
    if every_size:
        sizes |= {_header(Path(folder) / name) for name in names}
    _check_sizes(folder, sizes)
    return pictures


def _decode_one(path: Path) -> np.ndarray:
    data = _read(path)
    try:
        decoder = av.CodecContext.create(_codec(path.name), "r")
        frames = decoder.decode(av.Packet(data)) + decoder.decode(None)
        if len(frames) != 1 or frames[0].is_corrupt:
            raise ValueError
        return frames[0].to_ndarray(format="rgb24")
    except (av.FFmpegError, ValueError):
        raise MediaError(f"{describe(path)}: is a frame that cannot be decoded", "broken_frame") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{describe(path)}: cannot be read ({error.strerror})", "broken_frame") from None


def _header(path: Path, data: bytes | None = None) -> tuple[int, int]:
    """(width, height) from the picture's head; with its bytes given, all its pixels must decode as well."""
    from PIL import Image

    try:
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            if image.format != _FORMATS[_codec(path.name)]:
                raise ValueError
            size = image.size
            if data is not None:
                image.load()
            return size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for broken pictures
        raise MediaError(
            f"{describe(path)}: is no whole {_FORMATS[_codec(path.name)]} picture", "broken_frame"
        ) from None


def _check_sizes(folder: Path | str, sizes: set[tuple[int, int]]) -> None:
    if len(sizes) > 1:
        listed = ", ".join(f"{width}×{height}" for width, height in sorted(sizes)[:3])
        raise MediaError(f"{describe(folder)}: its frames differ in size ({listed})", "mixed_sizes")


def _check_rate(fps: float) -> None:
    if not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"the frames per second of a folder must be above 0, not {fps}")


def pack_frame_folder(folder: Path | str, fps: float) -> bytes:
    """The frames, unchanged, as an MJPEG (or PNG) stream in an mp4 file; the same bytes every time.

    Args:
        folder: of JPEG or PNG frames of one size.
        fps: frames per second that the file will say.

    Raises:
        MediaError: no frames, mixed formats or sizes, or a frame that does not decode.
        ValueError: fps is not above 0.
    """
    _check_rate(fps)
    names, out = frame_names(folder), io.BytesIO()
    frames = [(name, _read(Path(folder) / name)) for name in names]
    sizes = {_header(Path(folder) / name, data) for name, data in frames}
    _check_sizes(folder, sizes)
    (width, height), rate = sizes.pop(), Fraction(fps).limit_denominator(1001)
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_mux_stream(_codec(names[0]), rate=rate, width=width, height=height)
        stream.time_base = 1 / rate
        for number, (_, data) in enumerate(frames):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)
    return out.getvalue()


def folder_sha256(folder: Path | str) -> str:
    """Content hash of a frame folder, 64 hex digits: over each frame's name and bytes, in natural order of names.

    Raises:
        MediaError: as for :func:`frame_names`.
    """
    hashed = hashlib.sha256()
    for name in frame_names(folder):
        data, written = _read(Path(folder) / name), name.encode(errors="surrogateescape")
        # Lengths in front, so that no other split into names and contents gives the same hash.
        hashed.update(len(written).to_bytes(8) + written + len(data).to_bytes(8) + data)
    return hashed.hexdigest()
