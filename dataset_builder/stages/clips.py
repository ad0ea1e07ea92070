"""Frames of clips, decoded once and shared by everybody who asks about the same clip."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from dataset_builder.errors import KitError

CACHE_BYTES = 128 << 20
BATCH = 64  # most requests that go through a local model at once
BATCH_BYTES = 256 << 20  # of frames; large clips go in smaller batches


class FrameCache:
    """Frames by (video, number of frames, rate); the least recently used go first. Safe for several threads.

    Args:
        limit: most bytes of pixels to keep. Questions come sorted by video, so a small cache finds nearly everything.
    """

    def __init__(self, limit: int = CACHE_BYTES):
        self.limit, self.size = limit, 0
        self._items: OrderedDict[tuple, Any] = OrderedDict()
        self._lock, self._busy = threading.Lock(), {}

    def get(self, question: dict, num_frames: int, fps: float | None = None) -> Any:
        """Frames of the question's clip, or the :class:`KitError` that decoding it ended in."""
        key = (question["sha256"], num_frames, fps)
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
            turn = self._busy.setdefault(key, threading.Lock())
        with turn:  # a second thread that wants the same clip waits for the first one's frames
            with self._lock:
                if key in self._items:
                    return self._items[key]
            value = self._decode(question["path"], num_frames, fps)
            with self._lock:
                self._busy.pop(key, None)
                self._items[key] = value
                self.size += _size(value)
                while self.size > self.limit and len(self._items) > 1:
                    self.size -= _size(self._items.popitem(last=False)[1])
        return value

    @staticmethod
    def _decode(path: str, num_frames: int, fps: float | None) -> Any:
        from dataset_builder.media import sample_frames

        try:
            return sample_frames(path, num_frames, fps=fps) if fps else sample_frames(path, num_frames)
        except KitError as error:
            return error


def _size(value: Any) -> int:
    return 0 if isinstance(value, KitError) else value.array.nbytes


def batch_size(clips: list[Any]) -> int:
    """How many requests with such clips go through a model at once; it depends on the clips alone."""
    largest = max((clip.array.nbytes for clip in clips if clip is not None), default=0)
    return max(1, min(BATCH, BATCH_BYTES // max(1, largest)))
