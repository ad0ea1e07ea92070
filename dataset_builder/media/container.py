"""Opening a video so that every way in which it can be broken ends in one clear line.

FFmpeg guesses a file's format from its content, not from its name, and some of the formats it knows are play lists
that name *other* files or addresses (concat, HLS). A clip of a data set must never make the reader open something
else, so only real containers are allowed (``CONTAINERS``) and only the local file itself is read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from dataset_builder.errors import KitError
from dataset_builder.text import one_line

VideoSource = str | Path | bytes

# FFmpeg's names of the demuxers that are allowed; one name of an alias group is enough.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,rm,dv,ivf,h264,hevc"
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot")
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}


class MediaError(KitError):
    """A video that cannot be used, in one line.

    Args:
        message: what is wrong, beginning with the video's name.
        kind: a word to count by: ``missing_video``, ``empty_video``, ``directory``, ``unreadable_video``,
            ``truncated_video``, ``no_video_stream`` or ``undecodable_video``.
    """

    def __init__(self, message: str, kind: str = "unreadable_video"):
        self.kind = kind
        super().__init__(message)


def describe(source: VideoSource) -> str:
    """How a message calls this video: its path, or its size when it is bytes in memory."""
    return f"video in memory ({len(source)} bytes)" if isinstance(source, bytes) else one_line(str(source))


def source_size(source: VideoSource) -> int:
    """Size in bytes."""
    return len(source) if isinstance(source, bytes) else os.path.getsize(source)


def check_readable(source: VideoSource) -> None:
    """Refuse what can be told from outside.

    Raises:
        MediaError: no such file, a folder, not a plain file, zero bytes, no permission.
    """
    name = describe(source)
    if isinstance(source, bytes):
        if not source:
            raise MediaError(f"{name}: is empty (0 bytes)", "empty_video")
        return
    path = Path(source)
    try:
        if path.is_dir():
            raise MediaError(f"{name}: is a folder, not a video file", "directory")
        if not path.exists():
            raise MediaError(f"{name}: there is no such file", "missing_video")
        if not path.is_file():
            raise MediaError(f"{name}: is not a plain file", "unreadable_video")
        if path.stat().st_size == 0:
            raise MediaError(f"{name}: is empty (0 bytes); copy or download it again", "empty_video")
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise MediaError(f"{name}: cannot be looked at ({error})", "unreadable_video") from None
    if not os.access(path, os.R_OK):
        raise MediaError(f"{name}: may not be read (permissions)", "unreadable_video")


@contextmanager
def open_video(source: VideoSource) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a video and its first real picture stream (a cover image of an audio file is none).

    Raises:
        MediaError: see its kinds; FFmpeg's own errors inside the ``with`` block are turned into it as well.
    """
    check_readable(source)
    name = describe(source)
    _check_boxes(source)
    # "file:" keeps a name such as "http:clip.mp4" from being read as an address.
    target = io.BytesIO(source) if isinstance(source, bytes) else "file:" + os.path.abspath(source)
    try:
        container = av.open(target, options=dict(_OPTIONS), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError):
        raise MediaError(
            f"{name}: cannot be opened as a video (not a video file, or cut off before its index)"
        ) from None
    try:
        streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not streams:
            raise MediaError(f"{name}: has no video stream", "no_video_stream")
        if streams[0].codec_context is None:
            raise MediaError(f"{name}: is in a codec that cannot be decoded here", "undecodable_video")
        _check_complete(source, container, streams[0])
        yield container, streams[0]
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{name}: is damaged and cannot be decoded ({reason})", "undecodable_video") from None
    finally:
        container.close()


def _check_boxes(source: VideoSource) -> None:
    """An mp4 file is a row of boxes that each say their length; the last one may not reach behind the file's end.

    This notices every cut through a box, whether the index is in front or at the end (ISO/IEC 14496-12, section 4.2).
    """
    size, at = source_size(source), 0
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            if at == 0 and head[4:8] not in _FIRST_BOXES:
                return  # another container
            length = int.from_bytes(head[:4])
            if length == 1:  # a 64-bit length follows the name
                length = int.from_bytes(head[8:16])
            elif length == 0:  # up to the end of the file
                return
            if length < 8 or not head[4:8].isalnum():
                return  # not a box: something appended, and FFmpeg decides what is left
            if at + length > size:
                raise MediaError(
                    f"{describe(source)}: is truncated ({size} bytes, at least {at + length} expected); "
                    "copy or download it again",
                    "truncated_video",
                )
            at += length


def _check_complete(source: VideoSource, container: av.container.InputContainer, stream: av.VideoStream) -> None:
    """The index of an mp4 file gives every frame's position: none may lie behind the end (an open-ended last box)."""
    if "mp4" not in container.format.name.split(","):
        return
    entries, size = stream.index_entries, source_size(source)
    needed = max((entry.pos + entry.size for entry in entries), default=0)
    if needed > size:
        lost = sum(entry.pos + entry.size > size for entry in entries)
        raise MediaError(
            f"{describe(source)}: is truncated: {lost} of {len(entries)} frames lie behind the end of the file "
            f"({size} of at least {needed} bytes); copy or download it again",
            "truncated_video",
        )
