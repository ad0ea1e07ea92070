"""What one LightEval process learns about its inputs and has no place for elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from eval.runner import FramesCache, MediaIndex


@dataclass
class Run:
    """State of the process.

    Attributes:
        model_revision: hash of the weights that are evaluated.
        fingerprints: task name → content of its rows and videos.
        left_out: task name → rows that could not be used.
        verdicts: task name with shots → (answers without a verdict, answers).
        frames: decoded frames.
        media: the ``media.json`` that was read last.
        video: of the document made last.
    """

    model_revision: str = ""
    fingerprints: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    verdicts: dict[str, tuple[int, int]] = field(default_factory=dict)
    frames: FramesCache = field(default_factory=FramesCache)
    media: MediaIndex | None = None
    video: str | bytes | None = None


RUN = Run()
