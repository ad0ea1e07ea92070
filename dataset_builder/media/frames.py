"""Frames out of a video: which ones, at which second, and exactly those.

The number of frames and every time stamp are the file's own and not what a header claims: they come from the index of
a plain mp4 file, else from one pass over the packets (cheap: nothing is decoded). Then only what leads from the key
frame before each wanted frame is decoded. Files whose packets do not map one to one to frames are decoded from the
start and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dataset_builder.media import folder
from dataset_builder.media.choice import check_choice, choose, out_of_range, uniform_indices
from dataset_builder.media.container import OpenVideo, open_video
from dataset_builder.media.decode import Surprise, TimedDecoder, data_packets, set_threads, take_by_count
from dataset_builder.media.source import MediaError, VideoSource, describe, is_folder, source_size
from dataset_builder.media.table import FrameTable

FOLDER_FPS = 2.0  # frames a second of a frame folder, which does not say
_KEEP_BYTES = 64 * 2**20  # packets of files up to this size stay in memory between the two passes
_ASSUMED_RATE = 25


@dataclass(frozen=True)
class VideoInfo:
    """What a video is.

    Attributes:
        duration: seconds, first to end of last frame.
        fps: frames per second of the source (its average where it varies).
        width: pixels, as shown (a phone's rotation applied).
        height: pixels, as shown.
        frames: number of frames.
    """

    duration: float
    fps: float
    width: int
    height: int
    frames: int


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames taken from one video.

    Attributes:
        array: uint8 ``[T, H, W, 3]``, RGB.
        timestamps: seconds after the first frame of the video, one per frame.
        fps: frames per second of the source.
        indices: which frames of the source these are, from 0; ascending unless taken at given times.
        total: number of frames in the source.
        duration: length of the source in seconds.
    """

    array: np.ndarray
    timestamps: list[float]
    fps: float
    indices: list[int]
    total: int
    duration: float

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels, their shape and the time stamps, as 64 hex digits: what a model is shown."""
        shape = np.array(self.array.shape, dtype="<i8").tobytes()
        hashed = hashlib.sha256(shape + np.array(self.timestamps, dtype="<f8").tobytes())
        hashed.update(np.ascontiguousarray(self.array).data)
        return hashed.hexdigest()

    def thin(self, num_frames: int) -> Frames:
        """At most ``num_frames`` of these, evenly spaced, first and last included."""
        keep = uniform_indices(len(self), num_frames)
        return Frames(
            array=self.array[keep],
            timestamps=[self.timestamps[i] for i in keep],
            fps=self.fps,
            indices=[self.indices[i] for i in keep],
            total=self.total,
            duration=self.duration,
        )


@dataclass(frozen=True)
class _Wish:
    """Which frames somebody wants; see :func:`sample_frames`."""

    num_frames: int
    fps: float | None
    times: Sequence[float] | None

    def indices(self, source: VideoSource, starts: np.ndarray, duration: float) -> list[int]:
        if self.times is not None and (outside := out_of_range(duration, self.times)):
            raise MediaError(
                f"{describe(source)}: shows nothing at {outside[0]:g} s (it is {duration:g} s long)", "out_of_range"
            )
        return choose(starts, duration, self.num_frames, self.fps, self.times)


def sample_frames(
    source: VideoSource,
    num_frames: int = 8,
    fps: float | None = None,
    times: Sequence[float] | None = None,
    *,
    folder_fps: float = FOLDER_FPS,
    threads: int = 0,
) -> Frames:
    """Take frames of a video: evenly spaced ones (all when there are fewer; none is doubled), so many a second, or
    those shown at given seconds.

    Args:
        source: a path, the bytes of a video file, or a folder of JPEG or PNG frames.
        num_frames: how many at most.
        fps: the frames shown at 0, 1/fps, 2/fps … seconds, none twice; when these are more than ``num_frames``, as
            many of them, evenly spaced.
        times: the frames shown at these seconds after the first frame, in this order (``num_frames`` does not count).
        folder_fps: frames per second of a frame folder.
        threads: of the decoder; 0 chooses.

    Raises:
        MediaError: the video is missing, broken, truncated, a wanted frame cannot be decoded, or a time lies outside.
        ValueError: both ``fps`` and ``times``, or a number that is not above 0.
    """
    return _take(source, _Wish(num_frames, fps, times), folder_fps, threads, every_size=False)[1]


def probe(source: VideoSource, *, folder_fps: float = FOLDER_FPS) -> VideoInfo:
    """Length, rate and size of a video; its middle frame is decoded, so what has no picture does not pass.

    Raises:
        MediaError: as for :func:`sample_frames`.
    """
    return inspect_video(source, 1, folder_fps=folder_fps)[0]


def inspect_video(
    source: VideoSource,
    num_frames: int = 1,
    fps: float | None = None,
    times: Sequence[float] | None = None,
    *,
    folder_fps: float = FOLDER_FPS,
    threads: int = 0,
) -> tuple[VideoInfo, Frames]:
    """:func:`probe` and :func:`sample_frames` in one opening of the file; of a frame folder every header is read.

    Raises:
        MediaError: as for :func:`sample_frames`.
    """
    return _take(source, _Wish(num_frames, fps, times), folder_fps, threads, every_size=True)


def _take(
    source: VideoSource, wish: _Wish, folder_fps: float, threads: int, every_size: bool
) -> tuple[VideoInfo, Frames]:
    check_choice(wish.num_frames, wish.fps, wish.times)
    if is_folder(source):
        starts, duration, names = folder.timeline(source, folder_fps)
        indices, total, fps = wish.indices(source, starts, duration), len(names), float(folder_fps)
        pictures = folder.decode(source, names, indices, every_size)
        seconds = [float(starts[i]) for i in indices]
    else:
        pictures, indices, seconds, total, duration, fps = _take_from_file(source, wish, threads)
    if len({pictures[i].shape for i in indices}) > 1:
        raise MediaError(f"{describe(source)}: its picture size changes within the file", "changing_size")
    array = np.stack([pictures[i] for i in indices])
    info = VideoInfo(duration=duration, fps=fps, width=array.shape[2], height=array.shape[1], frames=total)
    return info, Frames(array=array, timestamps=seconds, fps=fps, indices=indices, total=total, duration=duration)


def _take_from_file(source: VideoSource, wish: _Wish, threads: int):
    """Pictures by index, indices, seconds, number of frames, duration and rate, on the fastest way that is exact."""
    for way in (_by_index, _by_packets):
        with open_video(source) as video:
            set_threads(video.stream, threads)
            try:
                taken, packets = way(source, video, wish)
            except Surprise:
                continue
        if taken is not None:
            return taken
    pictures, indices, total, rate = take_by_count(
        source, packets, lambda starts, duration: wish.indices(source, starts, duration), threads
    )
    return pictures, indices, [i / rate for i in indices], total, total / rate, rate


def _by_index(source: VideoSource, video: OpenVideo, wish: _Wish):
    """Read the file's index and then only the packets that are needed."""
    if video.index is None:
        raise Surprise
    first = next(data_packets(video), None)
    if first is None or first.pts is None:
        raise Surprise
    table = FrameTable.from_index(video.index, first.pts - int(video.index.pts[0]))
    if not table.exact:
        raise Surprise
    return _timed(source, video, wish, table, None, skip=True), table.packets


def _by_packets(source: VideoSource, video: OpenVideo, wish: _Wish):
    """Read every packet, then decode the needed ones; without pictures when the packets' times cannot be used."""
    packets = list(data_packets(video)) if source_size(source) <= _KEEP_BYTES else None
    table = FrameTable.from_packets(data_packets(video) if packets is None else packets)
    if table.packets == 0:
        raise MediaError(f"{describe(source)}: its video stream holds no frames", "no_video_stream")
    # AVI stores no presentation times: what FFmpeg makes up is wrong where frames are stored out of order.
    guessed = video.container.format.name == "avi" and video.stream.codec_context.has_b_frames
    if not table.exact or guessed:
        return None, table.packets
    try:
        return _timed(source, video, wish, table, packets, skip=False), table.packets
    except Surprise:
        return None, table.packets


def _timed(source: VideoSource, video: OpenVideo, wish: _Wish, table: FrameTable, packets, skip: bool):
    base, stream = video.stream.time_base, video.stream
    rate = stream.average_rate or stream.guessed_rate
    starts, length = table.starts(base), table.duration(base, rate)
    indices = wish.indices(source, starts, float(length))
    wanted = table.times[sorted(set(indices))].tolist()
    found = TimedDecoder(video, table, packets, skip).take(wanted)
    fps = float(rate or (len(starts) / length if length else _ASSUMED_RATE))
    pictures = {i: found[int(table.times[i])] for i in indices}
    return pictures, indices, [float(starts[i]) for i in indices], len(starts), float(length), fps
