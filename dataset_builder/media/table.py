"""What a video's packets or its index say about its frames before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from dataset_builder.media.mp4 import Mp4Index


@dataclass(frozen=True, eq=False)
class FrameTable:
    """The frames of a stream; times in units of the stream's time base.

    Attributes:
        packets: how many packets hold data.
        pts: int64 ``[packets]``, presentation times in decoding order.
        times: int64 ``[frames]``, presentation times of the frames that are shown, ascending.
        key_times: int64 ``[K]``, presentation times of the key frames, ascending.
        key_positions: int64 ``[K]``, their positions in decoding order.
        last_duration: of the frame shown last; 0 where it is not said.
        exact: one packet is one frame with a time of its own. Where not, the frames can only be counted.
    """

    packets: int
    pts: np.ndarray
    times: np.ndarray
    key_times: np.ndarray
    key_positions: np.ndarray
    last_duration: int
    exact: bool

    @classmethod
    def from_packets(cls, packets: Iterable[av.Packet]) -> FrameTable:
        """From all packets in decoding order."""
        pts, shown, keys, exact, last = [], [], [], True, (-1, 0)
        for position, packet in enumerate(packets):
            time = packet.pts
            if time is None:
                exact, time = False, -1
            pts.append(time)
            if packet.is_keyframe:
                keys.append(position)
            if packet.is_discard or not keys:  # before an edit's start, or undecodable without an earlier key frame
                continue
            shown.append(time)
            last = max(last, (time, packet.duration or 0))
        return cls._checked(np.array(pts, np.int64), np.array(shown, np.int64), keys, last[1], exact)

    @classmethod
    def from_index(cls, index: Mp4Index, shift: int) -> FrameTable:
        """From a file's own index.

        Args:
            index: of the file.
            shift: what is added to the index's times to get those of the packets.
        """
        pts = index.pts + shift
        shown = pts[index.keys[0] :]
        return cls._checked(pts, shown, index.keys, int(index.durations[np.argmax(pts)]), True)

    @classmethod
    def _checked(cls, pts: np.ndarray, shown: np.ndarray, keys, last_duration: int, exact: bool) -> FrameTable:
        key_positions = np.asarray(keys, dtype=np.int64)
        key_times = pts[key_positions] if len(key_positions) else np.zeros(0, np.int64)
        times = np.sort(shown[shown >= key_times[0]]) if len(key_times) else np.zeros(0, np.int64)
        exact = exact and len(times) > 0
        exact = exact and bool((np.diff(times) > 0).all()) and bool((np.diff(key_times) > 0).all())
        exact = exact and len(np.unique(pts)) == len(pts)
        return cls(len(pts), pts, times, key_times, key_positions, last_duration, exact)

    def starts(self, base: Fraction) -> np.ndarray:
        """float64 ``[frames]``: seconds after the first frame at which each begins to be shown."""
        # One rounding, at the end: 4.004 s stays 4.004 s.
        return (self.times - self.times[0]) * base.numerator / base.denominator

    def duration(self, base: Fraction, rate: Fraction | None) -> Fraction:
        """Seconds from the first frame to the end of the last."""
        span = int(self.times[-1] - self.times[0]) * base
        return span + (self.last_duration * base or (1 / Fraction(rate) if rate else Fraction(0)))

    def begin(self, time: int) -> int:
        """Position from which the frame shown at ``time`` can be decoded.

        That is the last key frame shown at or before it. Frames shown before a key frame but stored behind it ("open
        GOP") thereby come from the key frame before, which they need.
        """
        return int(self.key_positions[max(0, np.searchsorted(self.key_times, time, side="right") - 1)])
