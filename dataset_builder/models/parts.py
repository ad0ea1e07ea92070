"""Frames as content parts of an OpenAI-style message: JPEG images or one mp4, encoded once for each clip."""

from __future__ import annotations

import base64
import threading
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from dataset_builder.media.transforms import jpeg_bytes, mp4_bytes, resize_frames

if TYPE_CHECKING:
    from dataset_builder.media import Frames

JPEG_QUALITY = 90

_encoded: WeakKeyDictionary[Frames, dict] = WeakKeyDictionary()  # frames -> {(form, max_side): entry}
_lock = threading.Lock()


def frame_parts(frames: Frames, form: Literal["images", "video"] = "images", max_side: int | None = None) -> list[dict]:
    """The frames as message parts, encoded at the first call and kept as long as the frames are.

    Args:
        frames: of one clip.
        form: ``images`` gives one JPEG ``image_url`` part a frame, ``video`` one mp4 ``video_url`` part of the same
            frames at an even rate, so that it takes as long as they are apart.
        max_side: longer side in pixels at most; None keeps the size.

    Returns:
        Parts with data URLs. Callers must not change them.
    """
    with _lock:
        kept = _encoded.setdefault(frames, {})
        entry = kept.setdefault((form, max_side), {"lock": threading.Lock()})
    with entry["lock"]:
        if "parts" not in entry:
            pictures = resize_frames(frames.array, max_side=max_side)
            if form == "images":
                files = [jpeg_bytes(picture, quality=JPEG_QUALITY) for picture in pictures]
                entry["parts"] = [_part("image", "image/jpeg", file) for file in files]
            else:
                entry["parts"] = [_part("video", "video/mp4", mp4_bytes(pictures, fps=_rate(frames)))]
        return entry["parts"]


def _rate(frames: Frames) -> float:
    """Frames a second at which the first and the last are as far apart as in the video; 1 where there is no telling."""
    apart = frames.timestamps[-1] - frames.timestamps[0]
    return (len(frames) - 1) / apart if apart > 0 else 1.0


def _part(kind: str, mime: str, data: bytes) -> dict:
    url = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
