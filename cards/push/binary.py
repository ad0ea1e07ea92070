"""Text inside files that are no text: what pictures, videos and other containers say of themselves.

Pictures hold titles, comments and positions (PNG text chunks may be compressed), videos the name of whoever made them.
What can be read as text is taken out, so that the search for secrets and paths sees it too.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
EDGE = 256 * 2**10  # bytes at both ends of a video, where its container tells of itself
_RUN = re.compile(rb"[\x20-\x7e\t]{8,}")  # shorter ones are chance, and no secret
_WIDE = re.compile(rb"(?:[\x20-\x7e]\0){8,}")  # UTF-16, as EXIF comments have it
_TEXT_LIMIT = 2**20  # bytes of one decompressed chunk


def printable(content: bytes) -> str:
    """Runs of printable characters in a content, one a line; chunks of text in a PNG unpacked."""
    pieces = [content]
    if content.startswith(PNG):
        pieces = list(_chunks(content))
    runs = [run for piece in pieces for run in _RUN.findall(piece)]
    runs += [run[::2] for piece in pieces for run in _WIDE.findall(piece)]
    return b"\n".join(runs).decode("ascii")


def edges(content: bytes) -> bytes:
    """Begin and end of a long content; all of a short one."""
    return content if len(content) <= 2 * EDGE else content[:EDGE] + b"\0" + content[-EDGE:]


def _chunks(content: bytes) -> Iterator[bytes]:
    """What the chunks of a PNG say, pictures left out; what follows its end is given as it is."""
    place = len(PNG)
    while place + 8 <= len(content):
        size, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        data = content[place + 8 : place + 8 + size]
        place += 12 + size
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            yield data
            yield _unpacked(data)
        elif kind != b"IDAT":
            yield data
        if kind == b"IEND":
            break
    yield content[place:]


def _unpacked(data: bytes) -> bytes:
    """The first compressed part of a chunk; nothing when there is none."""
    for start in (found.start() for found in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", data)):
        try:
            return zlib.decompressobj().decompress(data[start:], _TEXT_LIMIT)
        except zlib.error:
            continue
    return b""
