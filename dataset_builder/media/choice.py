"""Which frames to take: evenly spaced, so many a second, or at given seconds. Numbers only; nothing is read here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SLACK = 1e-6  # seconds; a time stamp that was printed or rounded still names its own frame


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


def shown_at(starts: np.ndarray, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
    """For each time the last frame that starts at or before it (int64; the first frame for times before it).

    Args:
        starts: float ``[N]``, seconds at which the frames begin to be shown, ascending.
        seconds: the times.
    """
    return np.maximum(np.searchsorted(starts, np.asarray(seconds, dtype=float) + _SLACK, side="right") - 1, 0)


def choose(
    starts: np.ndarray,
    duration: float,
    num_frames: int = 8,
    fps: float | None = None,
    times: Sequence[float] | None = None,
) -> list[int]:
    """Indices of the frames to take.

    Args:
        starts: float ``[N]``, seconds at which the frames begin to be shown, ascending from 0.
        duration: seconds, to the end of the last frame.
        num_frames: how many at most (not with ``times``).
        fps: the frames shown at 0, 1/fps, 2/fps … seconds, none twice; evenly thinned when more than ``num_frames``.
        times: the frames shown at these seconds, in this order; a frame may come twice.

    Raises:
        ValueError: as :func:`check_choice`.
    """
    check_choice(num_frames, fps, times)
    if times is not None:
        return shown_at(starts, times).tolist()
    if fps is None:
        return uniform_indices(len(starts), num_frames)
    # Frame i is shown at a tick k / fps if the first tick at or after its start comes before the next frame's start.
    first_ticks = np.ceil((starts - _SLACK) * fps)
    nexts = np.append(starts[1:], max(duration, float(starts[-1]) + 2 * _SLACK))
    chosen = np.flatnonzero((first_ticks < (nexts - _SLACK) * fps) | (np.arange(len(starts)) == 0))
    return chosen[uniform_indices(len(chosen), num_frames)].tolist()


def check_choice(num_frames: int, fps: float | None, times: Sequence[float] | None) -> None:
    """Refuse what can be told before a file is opened.

    Raises:
        ValueError: both ``fps`` and ``times``, no times, or a number that is not above 0 and finite.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_frames}")
    if fps is not None and times is not None:
        raise ValueError("give fps or times, not both")
    if fps is not None and not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be above 0, not {fps}")
    if times is not None and not len(times):
        raise ValueError("times must name at least one second")


def out_of_range(duration: float, times: Sequence[float]) -> list[float]:
    """Those of the times at which nothing is shown; the very end counts as the last frame's."""
    return [second for second in times if not -_SLACK <= second <= duration + _SLACK]
