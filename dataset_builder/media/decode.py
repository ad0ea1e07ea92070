"""Decoding exactly the wanted frames: from the key frame before each, or by counting where times cannot be trusted.

Every packet that is read is compared with what the table promised for its position. Whenever something does not come
out as promised (:class:`Surprise`), the caller takes a slower way that promises less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np

from dataset_builder.media.container import OpenVideo, open_video
from dataset_builder.media.source import MediaError, VideoSource, describe
from dataset_builder.media.table import FrameTable

_SMALL_PICTURE = 256 * 256  # pixels; below this, starting decoder threads costs more than they save
_SEEKS_EXACTLY = ("mov", "matroska")  # containers whose index leads to the packet asked for
_ASSUMED_RATE = 25  # frames a second of a stream that does not say; FFmpeg's own default


class Surprise(Exception):
    """A frame or packet did not come out as promised."""


def data_packets(video: OpenVideo) -> Iterator[av.Packet]:
    """The stream's packets with data, in decoding order, without FFmpeg's closing empty packet."""
    for packet in video.container.demux(video.stream):
        if packet.size:
            yield packet


def set_threads(stream: av.VideoStream, threads: int) -> None:
    """How many threads decode; 0 lets FFmpeg decide, except for small pictures, where one is fastest."""
    context = stream.codec_context
    context.thread_type = "AUTO"
    small = context.width * context.height <= _SMALL_PICTURE
    context.thread_count = threads or (1 if small else 0)


class TimedDecoder:
    """Decodes the frames shown at given times, reading and decoding as little as possible.

    Args:
        video: an open video.
        table: its exact frame table.
        packets: all its packets, where they are in memory; else they are read where they are needed.
        skip: leave out frames on which no other depends, unless they are wanted.
    """

    def __init__(self, video: OpenVideo, table: FrameTable, packets: list[av.Packet] | None, skip: bool):
        self._video, self._table, self._packets = video, table, packets
        self._decoder = video.stream.codec_context
        # In H.264 a frame says itself that none refers to it. Two fields of one frame may differ in that.
        self._skip = skip and self._decoder.name == "h264" and self._decoder.field_order == 1  # progressive
        self._seek = bool(set(_SEEKS_EXACTLY) & set(video.container.format.name.split(",")))
        self._source: Iterator[av.Packet] = iter(())
        self._next = 0  # position of the packet that comes next from _source
        self._latest: int | None = None  # time of the frame that came out last

    def take(self, times: Sequence[int]) -> dict[int, np.ndarray]:
        """Pictures by time, uint8 ``[H, W, 3]``.

        Args:
            times: presentation times of frames in the table.

        Raises:
            Surprise: the file is not what its table says.
        """
        order = np.argsort(self._table.pts)
        places = order[np.searchsorted(self._table.pts, times, sorter=order)]
        self._waiting = dict(zip(times, places.tolist(), strict=True))
        self._found: dict[int, np.ndarray] = {}
        wanted = set(self._waiting.values())
        runs: dict[int, int] = {}  # position of the key frame -> last position that is wanted from it
        for time, place in self._waiting.items():
            begin = self._table.begin(time)
            runs[begin] = max(runs.get(begin, 0), place)
        running = False
        for begin, following in zip(sorted(runs), [*sorted(runs)[1:], None], strict=True):
            if not running or begin > self._next:
                self._decoder.flush_buffers()
                self._latest = None
                self._go_to(begin)
            while self._next <= runs[begin]:
                if self._skip:
                    self._decoder.skip_frame = "DEFAULT" if self._next in wanted else "NONREF"
                self._collect(self._decoder.decode(self._read()))
            running = following is not None and following <= self._next
            if not running:  # the decoder still holds frames back; nothing more needs to go in for them
                self._collect(self._decoder.decode(None))
        if self._waiting:
            raise Surprise
        return self._found

    def _go_to(self, position: int) -> None:
        """Let the packet at ``position`` be the next one."""
        if self._packets is not None:
            self._source, self._next = iter(self._packets[position:]), position
            return
        self._video.container.seek(int(self._table.pts[position]) if self._seek else 0, stream=self._video.stream)
        self._source = data_packets(self._video)
        if not self._seek or position == 0:
            self._next = 0
        else:
            first = next(self._source, None)
            found = np.flatnonzero(self._table.pts == first.pts) if first is not None and first.pts is not None else []
            if len(found) != 1 or found[0] > position:
                raise Surprise
            self._next = int(found[0]) + 1
            if self._next == position + 1:
                self._source, self._next = _chain(first, self._source), position
        while self._next < position:
            self._read()

    def _read(self) -> av.Packet:
        packet = next(self._source, None)
        if packet is None or packet.pts != self._table.pts[self._next]:
            raise Surprise
        self._next += 1
        return packet

    def _collect(self, frames: list[av.VideoFrame]) -> None:
        for frame in frames:
            # Frames come out in the order in which they are shown, or the times are not to be trusted.
            if frame.pts is None or (self._latest is not None and frame.pts <= self._latest):
                raise Surprise
            self._latest = frame.pts
            if frame.pts in self._waiting:
                if frame.is_corrupt:
                    raise Surprise
                self._found[frame.pts] = picture(frame)
                del self._waiting[frame.pts]


def _chain(first: av.Packet, rest: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield first
    yield from rest


def take_by_count(
    source: VideoSource, expected: int, pick: Callable[[np.ndarray, float], list[int]], threads: int
) -> tuple[dict[int, np.ndarray], list[int], int, float]:
    """Decode everything and count: for raw streams, hidden frames, repeated or missing time stamps.

    The number of frames is known only at the end, so a wrong guess costs a second pass.

    Args:
        source: the video.
        expected: number of packets.
        pick: indices of the wanted frames, from the frames' seconds and the duration.
        threads: of the decoder.

    Returns:
        Pictures by index, the chosen indices, the number of frames and the frames a second.

    Raises:
        MediaError: a wanted frame is damaged, or most cannot be decoded.
    """
    total = expected
    for _ in range(2):
        with open_video(source) as video:
            set_threads(video.stream, threads)
            rate = float(video.stream.average_rate or video.stream.guessed_rate or _ASSUMED_RATE)
            indices, pictures, count = pick(np.arange(total) / rate, total / rate), {}, 0
            wanted = set(indices)
            for frame in video.container.decode(video.stream):
                if count in wanted:
                    if frame.is_corrupt:
                        raise MediaError(f"{describe(source)}: frame {count} is damaged", "undecodable_video")
                    pictures[count] = picture(frame)
                count += 1
        # Two packets a frame (fields of interlaced video) are the most that a whole file needs.
        if 2 * count < expected or not count:
            raise MediaError(
                f"{describe(source)}: only {count} of its {expected} frames can be decoded", "undecodable_video"
            )
        if count == total:
            break
        total = count
    return pictures, indices, total, rate


def picture(frame: av.VideoFrame) -> np.ndarray:
    """uint8 [H, W, 3] as a person would see it: phones store portrait video sideways with a note to turn it."""
    array = frame.to_ndarray(format="rgb24")
    turns = round((frame.rotation or 0) / 90) % 4  # degrees counterclockwise
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array
