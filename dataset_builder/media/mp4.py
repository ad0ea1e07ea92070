"""The frame index of a plain mp4 or mov file, read straight from its boxes (ISO/IEC 14496-12, section 8.6 and 8.7).

The index says when every frame is shown and where it lies, so that eight frames of a long clip cost eight short reads
instead of a pass over the whole file. Only the simple case is trusted: one description, no fragments, an edit list that
hides nothing. Everything else gives None, and the reader goes through the packets instead. What the index promises is
checked again against each packet that is really read (:mod:`dataset_builder.media.decode`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dataset_builder.media.source import MediaError, VideoSource, describe, source_size

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot")
_MOST_BYTES = 64 * 2**20  # of the box that holds the index; a clip of a day has less


@dataclass(frozen=True)
class Mp4Index:
    """All frames of one track, in decoding order, times in units of ``time_base``.

    Attributes:
        pts: int64 ``[N]``, presentation times up to one constant shift (the edit list's).
        durations: int64 ``[N]``.
        keys: int64 ``[K]``, positions of the key frames, ascending.
        ends: int64 ``[N]``, one behind each frame's last byte in the file.
        time_base: seconds a unit.
    """

    pts: np.ndarray
    durations: np.ndarray
    keys: np.ndarray
    ends: np.ndarray
    time_base: Fraction


def check_boxes(source: VideoSource) -> dict[bytes, tuple[int, int]]:
    """Where the file's outer boxes lie: an mp4 file is a row of boxes that each say their length.

    The last one may not reach behind the file's end, which notices every cut through a box, whether the index is in
    front or at the end (section 4.2).

    Returns:
        The first box of each name as (start, end) of its content; empty for another container.

    Raises:
        MediaError: the file is cut off.
    """
    size, at, found = source_size(source), 0, {}
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            if at == 0 and head[4:8] not in _FIRST_BOXES:
                return {}  # another container
            length, inner = int.from_bytes(head[:4]), 8
            if length == 1:  # a 64-bit length follows the name
                length, inner = int.from_bytes(head[8:16]), 16
            elif length == 0:  # up to the end of the file
                found.setdefault(head[4:8], (at + 8, size))
                return found
            if length < inner or not head[4:8].isalnum():
                return found  # not a box: something appended, and FFmpeg decides what is left
            if at + length > size:
                raise MediaError(
                    f"{describe(source)}: is truncated ({size} bytes, at least {at + length} expected); "
                    "copy or download it again",
                    "truncated_video",
                )
            found.setdefault(head[4:8], (at + inner, at + length))
            at += length
    return found


def read_index(source: VideoSource, boxes: dict[bytes, tuple[int, int]], track: int) -> Mp4Index | None:
    """The index of one track; None where it is not simple enough to be trusted.

    Args:
        source: a path or bytes.
        boxes: from :func:`check_boxes`.
        track: the track's id (FFmpeg's ``stream.id``).
    """
    if b"moov" not in boxes or b"moof" in boxes:
        return None
    start, end = boxes[b"moov"]
    if end - start > _MOST_BYTES:
        return None
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        file.seek(start)
        moov = memoryview(file.read(end - start))
    try:
        return _read_movie(moov, track, source_size(source))
    except (
        KeyError,
        ValueError,
        IndexError,
        OverflowError,
        ZeroDivisionError,
    ):  # not what the standard says: FFmpeg may know better
        return None


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        if length < 8 or at + length > len(data):
            return
        yield bytes(data[at + 4 : at + 8]), data[at + 8 : at + length]
        at += length


def _read_movie(moov: memoryview, track: int, file_size: int) -> Mp4Index | None:
    movie = list(_boxes(moov))
    if b"mvex" in dict(movie):
        return None
    for name, content in movie:
        if name != b"trak":
            continue
        trak = dict(_boxes(content))
        header = trak[b"tkhd"]
        at = 20 if header[0] == 1 else 12  # version 1 has 64-bit times in front of the id
        if int.from_bytes(header[at : at + 4]) == track:
            return _read_track(trak, _time_scale(dict(movie)[b"mvhd"]), file_size)
    return None


def _time_scale(header: memoryview) -> int:
    """Units a second, from ``mvhd`` or ``mdhd``."""
    at = 20 if header[0] == 1 else 12
    return int.from_bytes(header[at : at + 4])


def _read_track(trak: dict[bytes, memoryview], movie_scale: int, file_size: int) -> Mp4Index | None:
    media = dict(_boxes(trak[b"mdia"]))
    scale = _time_scale(media[b"mdhd"])
    table = dict(_boxes(dict(_boxes(media[b"minf"]))[b"stbl"]))
    if int.from_bytes(table[b"stsd"][4:8]) != 1 or b"stps" in table or b"stz2" in table:
        return None
    sizes = _sizes(table[b"stsz"], file_size)
    if not len(sizes):
        return None
    durations = _spread(_rows(table[b"stts"], 2), len(sizes))
    pts = np.cumsum(durations) - durations  # decoding times
    if b"ctts" in table:
        pts = pts + _spread(_rows(table[b"ctts"], 2), len(sizes)).astype(np.int32)  # may be below 0
    keys = _rows(table[b"stss"], 1)[:, 0] - 1 if b"stss" in table else np.arange(len(sizes))
    if not len(keys) or (np.diff(keys) <= 0).any() or keys[0] < 0 or keys[-1] >= len(sizes):
        return None
    if b"edts" in trak and not _hides_nothing(dict(_boxes(trak[b"edts"])), pts, movie_scale, scale):
        return None
    ends = _ends(table, sizes)
    return None if ends is None else Mp4Index(pts, durations, keys, ends, Fraction(1, scale))


def _rows(box: memoryview, columns: int, skip: int = 8) -> np.ndarray:
    """A table of unsigned 32-bit numbers behind version, flags and a count, as int64 ``[rows, columns]``."""
    count = int.from_bytes(box[skip - 4 : skip])
    if skip + 4 * columns * count > len(box):
        raise ValueError("a table is shorter than it says")
    return np.frombuffer(box, ">u4", count * columns, skip).reshape(count, columns).astype(np.int64)


def _spread(rows: np.ndarray, frames: int) -> np.ndarray:
    """(repetitions, value) rows as one value for each frame; a damaged count must not cost memory."""
    if rows[:, 0].sum() != frames:
        raise ValueError("a table is for another number of frames")
    return np.repeat(rows[:, 1], rows[:, 0])


def _sizes(box: memoryview, file_size: int) -> np.ndarray:
    same, count = int.from_bytes(box[4:8]), int.from_bytes(box[8:12])
    if same:
        if same * count > file_size:
            raise ValueError("more frames than the file can hold")
        return np.full(count, same, dtype=np.int64)
    return _rows(box, 1, skip=12)[:, 0]


def _ends(table: dict[bytes, memoryview], sizes: np.ndarray) -> np.ndarray | None:
    """One behind each frame's last byte: frames lie one after the other in chunks (section 8.7.4)."""
    if b"co64" in table:
        high_low = _rows(table[b"co64"], 2)
        chunks = (high_low[:, 0] << 32) + high_low[:, 1]
    else:
        chunks = _rows(table[b"stco"], 1)[:, 0]
    runs = _rows(table[b"stsc"], 3)  # (first chunk from 1, frames a chunk, description)
    if not len(runs) or runs[0, 0] != 1:
        return None
    lengths = np.diff(np.append(runs[:, 0], len(chunks) + 1))
    if (lengths < 0).any():
        return None
    per_chunk = np.repeat(runs[:, 1], lengths)
    if per_chunk.sum() != len(sizes):
        return None
    ends = np.cumsum(sizes)
    firsts = np.cumsum(per_chunk) - per_chunk  # first frame of each chunk
    before = np.where(firsts > 0, ends[np.minimum(firsts, len(sizes)) - 1], 0)
    return ends + np.repeat(chunks - before, per_chunk)


def _hides_nothing(edits: dict[bytes, memoryview], pts: np.ndarray, movie_scale: int, scale: int) -> bool:
    """Whether the edit list only shifts the track: empty edits, then one that shows every frame at normal speed."""
    box = edits.get(b"elst")
    if box is None:
        return True
    wide = 8 if box[0] == 1 else 4
    rows = []
    count = int.from_bytes(box[4:8])
    if not 1 <= count <= 16 or 8 + count * (2 * wide + 4) > len(box):
        return False
    for at in range(8, 8 + count * (2 * wide + 4), 2 * wide + 4):
        length, begin = box[at : at + wide], box[at + wide : at + 2 * wide]
        rate = int.from_bytes(box[at + 2 * wide : at + 2 * wide + 4])
        rows.append((int.from_bytes(length), int.from_bytes(begin, signed=True), rate))
    shown = [row for row in rows if row[1] != -1]
    if len(shown) != 1 or rows[-1] != shown[0]:
        return False
    length, begin, rate = shown[0]
    to_the_end = length == 0 or begin + Fraction(length * scale, movie_scale) > int(pts.max())
    return rate == 0x10000 and begin <= int(pts.min()) and to_the_end
