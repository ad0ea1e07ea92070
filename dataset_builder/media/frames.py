"""Frames out of a video: which ones, at which second, and exactly those.

Sampling reads the container's packets once (cheap: nothing is decoded), so that the number of frames and every time
stamp are the file's own and not what a header claims; then it decodes only from the key frame before each wanted frame.
Files whose packets do not map one to one to frames are decoded from the start and counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import av
import numpy as np

from dataset_builder.media.container import MediaError, VideoSource, describe, open_video, source_size

_KEEP_BYTES = 64 * 2**20  # packets of files up to this size stay in memory between the two passes
_ASSUMED_RATE = 25  # frames per second of a stream that does not say; FFmpeg's own default
_SMALL_PICTURE = 256 * 256  # below this, starting decoder threads costs more than they save


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
        indices: which frames of the source these are, ascending, from 0.
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


def uniform_indices(total: int, num_frames: int) -> list[int]:
    """Evenly spaced indices into ``total`` frames: first and last included, all when there are not more than asked.

    One frame alone is taken from the middle.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_frames}")
    if total <= num_frames:
        return list(range(total))
    if num_frames == 1:
        return [(total - 1) // 2]
    gaps = num_frames - 1  # integer rounding to nearest: no float decides which frame it is
    return [(2 * i * (total - 1) + gaps) // (2 * gaps) for i in range(num_frames)]


def sample_frames(source: VideoSource, num_frames: int = 8) -> Frames:
    """Take ``num_frames`` evenly spaced frames of a video (all of them when it has fewer; none is doubled).

    Args:
        source: a path, or the bytes of a video file.
        num_frames: how many at most.

    Raises:
        MediaError: the video is missing, broken, truncated, or a wanted frame cannot be decoded.
    """
    return inspect_video(source, num_frames)[1]


def probe(source: VideoSource) -> VideoInfo:
    """Length, rate and size of a video; its middle frame is decoded, so what has no picture does not pass.

    Raises:
        MediaError: as for :func:`sample_frames`.
    """
    return inspect_video(source, 1)[0]


def inspect_video(source: VideoSource, num_frames: int = 1) -> tuple[VideoInfo, Frames]:
    """:func:`probe` and :func:`sample_frames` in one opening of the file.

    Raises:
        MediaError: as for :func:`sample_frames`.
    """
    with open_video(source) as (container, stream):
        stream.codec_context.thread_type = "AUTO"
        if stream.codec_context.width * stream.codec_context.height <= _SMALL_PICTURE:
            stream.codec_context.thread_count = 1
        packets = _packets(container, stream)
        if source_size(source) <= _KEEP_BYTES:
            packets = list(packets)
            table = _Table.read(packets)
        else:
            table = _Table.read(packets)
            packets = None
        if table.packets == 0:
            raise MediaError(f"{describe(source)}: its video stream holds no frames", "no_video_stream")
        # AVI stores no presentation times: what FFmpeg makes up is wrong where frames are stored out of order.
        if container.format.name == "avi" and stream.codec_context.has_b_frames:
            table.exact = False
        taken = _take_by_time(stream, packets or _again(container, stream), table, num_frames) if table.exact else None
    if taken is None:
        taken = _take_by_count(source, table.packets, num_frames)
    pictures, times, indices, total, duration, fps = taken
    if len({picture.shape for picture in pictures}) > 1:
        raise MediaError(f"{describe(source)}: its picture size changes within the file", "undecodable_video")
    array = np.stack(pictures)
    info = VideoInfo(duration=duration, fps=fps, width=array.shape[2], height=array.shape[1], frames=total)
    return info, Frames(array=array, timestamps=times, fps=fps, indices=indices, total=total, duration=duration)


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The stream's packets with data, in decoding order, without FFmpeg's closing empty packet."""
    for packet in container.demux(stream):
        if packet.size:
            yield packet


def _again(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    container.seek(0)
    return _packets(container, stream)


@dataclass
class _Table:
    """What the packets say, before anything is decoded."""

    packets: int  # packets with data
    times: list[int]  # presentation times of the frames that are shown, ascending, in units of time_base
    keys: list[tuple[int, int]]  # (presentation time, position in decoding order) of the key frames, ascending
    last_duration: int
    exact: bool  # one packet is one frame with a time of its own

    @classmethod
    def read(cls, packets: Iterable[av.Packet]) -> _Table:
        times, keys, count, last, exact = [], [], 0, (-1, 0), True
        for position, packet in enumerate(packets):
            count += 1
            if packet.pts is None:
                exact = False
                continue
            if packet.is_keyframe:
                keys.append((packet.pts, position))
            if packet.is_discard or not keys:  # before an edit's start, or undecodable without an earlier key frame
                continue
            times.append(packet.pts)
            last = max(last, (packet.pts, packet.duration or 0))
        times = sorted(time for time in times if time >= keys[0][0])
        exact = exact and bool(times) and len(set(times)) == len(times) and keys == sorted(keys)
        return cls(packets=count, times=times, keys=keys, last_duration=last[1], exact=exact)


def _take_by_time(stream: av.VideoStream, packets: Iterable[av.Packet], table: _Table, num_frames: int):
    """Decode only around the wanted times. None when a frame does not come out as the packets promised."""
    indices = uniform_indices(len(table.times), num_frames)
    wanted = [table.times[i] for i in indices]
    key_times = [time for time, _ in table.keys]
    # A frame is decoded from the last key frame shown at or before it; frames shown before a key frame but stored
    # behind it ("open GOP") thereby come from the key frame before, which they need.
    starts = [table.keys[max(0, bisect_right(key_times, time) - 1)][1] for time in wanted]
    found: dict[int, np.ndarray] = {}
    waiting = dict(zip(wanted, starts))

    def collect(frames: list[av.VideoFrame]) -> bool:
        nonlocal latest
        for frame in frames:
            if frame.pts is None or (latest is not None and frame.pts <= latest):
                return False  # frames come out in the order they are shown, or the times are not to be trusted
            latest = frame.pts
            if frame.pts in waiting:
                if frame.is_corrupt:
                    return False
                found[frame.pts] = _picture(frame)
                del waiting[frame.pts]
        return True

    decoder, running, latest = stream.codec_context, False, None
    for position, packet in enumerate(packets):
        if not any(start <= position for start in waiting.values()):
            running = False
            if not waiting:
                break
            continue
        if not running:
            decoder.flush_buffers()
            running, latest = True, None
        if not collect(decoder.decode(packet)):
            return None
    if waiting and running and not collect(decoder.decode(None)):
        return None
    if waiting:
        return None
    # Fractions until the very end: 4.004 s stays 4.004 s.
    base, first, total = stream.time_base, table.times[0], len(table.times)
    rate = stream.average_rate or stream.guessed_rate
    duration = (table.times[-1] - first) * base + (table.last_duration * base or (1 / rate if rate else 0))
    fps = float(rate or (total / duration if duration else _ASSUMED_RATE))
    times = [float((time - first) * base) for time in wanted]
    return [found[time] for time in wanted], times, indices, total, float(duration), fps


def _take_by_count(source: VideoSource, expected: int, num_frames: int):
    """Decode everything and count: for raw streams, hidden frames, repeated or missing time stamps.

    The number of frames is known only at the end, so a wrong guess costs a second pass.
    """
    total = expected
    for _ in range(2):
        indices, pictures, count = uniform_indices(total, num_frames), [], 0
        wanted = set(indices)
        with open_video(source) as (container, stream):
            for frame in container.decode(stream):
                if count in wanted:
                    if frame.is_corrupt:
                        raise MediaError(f"{describe(source)}: frame {count} is damaged", "undecodable_video")
                    pictures.append(_picture(frame))
                count += 1
            rate = stream.average_rate or stream.guessed_rate
        # Two packets a frame (fields of interlaced video) are the most that a whole file needs.
        if 2 * count < expected:
            raise MediaError(
                f"{describe(source)}: only {count} of its {expected} frames can be decoded", "undecodable_video"
            )
        if count == total:
            break
        total = count
    fps = float(rate or _ASSUMED_RATE)
    return pictures, [i / fps for i in indices], indices, total, total / fps, fps


def _picture(frame: av.VideoFrame) -> np.ndarray:
    """uint8 [H, W, 3] as a person would see it: phones store portrait video sideways with a note to turn it."""
    array = frame.to_ndarray(format="rgb24")
    turns = round((frame.rotation or 0) / 90) % 4  # degrees counterclockwise
    return np.ascontiguousarray(np.rot90(array, turns)) if turns else array
