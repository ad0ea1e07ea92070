"""What a video can be given as, the one error for everything wrong with it, and what can be told from outside."""

from __future__ import annotations

import os
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.text import one_line

VideoSource = str | Path | bytes


class MediaError(KitError):
    """A video that cannot be used, in one line.

    Args:
        message: what is wrong, beginning with the video's name.
        kind: a word to count by: ``missing_video``, ``empty_video``, ``directory`` (a folder without frames),
            ``unreadable_video``, ``truncated_video``, ``no_video_stream``, ``undecodable_video``, ``changing_size``,
            ``out_of_range`` (a time stamp behind the end); of frame folders also ``mixed_sizes``, ``mixed_formats``
            and ``broken_frame``.
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


def is_folder(source: VideoSource) -> bool:
    """Whether the video is a folder of frames."""
    try:
        return not isinstance(source, bytes) and os.path.isdir(source)
    except ValueError:  # a NUL character in the name
        return False


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
