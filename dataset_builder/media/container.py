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
from dataclasses import dataclass

import av

from dataset_builder.media.mp4 import Mp4Index, check_boxes, read_index
from dataset_builder.media.source import MediaError, VideoSource, check_readable, describe, source_size

# FFmpeg's names of the demuxers that are allowed; one name of an alias group is enough.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,rm,dv,ivf,h264,hevc"
_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}


@dataclass(frozen=True)
class OpenVideo:
    """A video that is open for reading.

    Attributes:
        container: FFmpeg's view of the file.
        stream: its first real picture stream.
        index: its frames as its own index lists them, where there is one that can be trusted.
    """

    container: av.container.InputContainer
    stream: av.VideoStream
    index: Mp4Index | None


@contextmanager
def open_video(source: VideoSource) -> Iterator[OpenVideo]:
    """Open a video and its first real picture stream (a cover image of an audio file is none).

    Raises:
        MediaError: see its kinds; FFmpeg's own errors inside the ``with`` block are turned into it as well.
    """
    check_readable(source)
    name = describe(source)
    boxes = check_boxes(source)
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
        stream = streams[0]
        if stream.codec_context is None:
            raise MediaError(f"{name}: is in a codec that cannot be decoded here", "undecodable_video")
        index = None
        if "mp4" in container.format.name.split(","):
            index = read_index(source, boxes, stream.id)
            if index is not None and (
                len(stream.index_entries) != len(index.pts) or index.time_base != stream.time_base
            ):
                index = None  # FFmpeg sees it otherwise
            _check_complete(source, stream, index)
        yield OpenVideo(container, stream, index)
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{name}: is damaged and cannot be decoded ({reason})", "undecodable_video") from None
    finally:
        container.close()


def _check_complete(source: VideoSource, stream: av.VideoStream, index: Mp4Index | None) -> None:
    """The index of an mp4 file gives every frame's position: none may lie behind the end (an open-ended last box)."""
    size = source_size(source)
    ends = index.ends.tolist() if index is not None else [entry.pos + entry.size for entry in stream.index_entries]
    needed = max(ends, default=0)
    if needed > size:
        lost = sum(end > size for end in ends)
        raise MediaError(
            f"{describe(source)}: is truncated: {lost} of {len(ends)} frames lie behind the end of the file "
            f"({size} of at least {needed} bytes); copy or download it again",
            "truncated_video",
        )
