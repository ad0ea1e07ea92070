"""A clip that a dataset row holds as a list of pictures."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from dataset_builder.errors import KitError
from dataset_builder.media import Frames
from dataset_builder.media.choice import choose
from dataset_builder.media.frames import FOLDER_FPS


class FrameList:
    """Pictures in their order: PIL images, paths, or the ``{bytes, path}`` dicts of an undecoded ``Image`` column.

    Args:
        pictures: all of one size.
        fps: pictures a second; a list does not say, so it is that of a frame folder.

    Raises:
        KitError: for an empty list, or a rate that is not above 0.
    """

    def __init__(self, pictures: Sequence[Any], fps: float = FOLDER_FPS):
        if not len(pictures):
            raise KitError("field frames: is an empty list")
        if not fps > 0:
            raise KitError(f"field fps: is {fps}, it must be above 0")
        self.pictures, self.fps = pictures, float(fps)

    @cached_property
    def digest(self) -> str:
        """sha256 over the pictures' contents (stored bytes where there are any, else pixels) and their rate."""
        digest = hashlib.sha256(b"" if self.fps == FOLDER_FPS else repr(self.fps).encode())
        for picture in self.pictures:
            content = picture.get("bytes") if isinstance(picture, dict) else None
            digest.update(hashlib.sha256(content or _open(picture).tobytes()).digest())
        return digest.hexdigest()

    def sample(self, num_frames: int, fps: float | None = None) -> Frames:
        """Take pictures as :func:`dataset_builder.media.sample_frames` takes a video's frames.

        Raises:
            KitError: when the pictures' sizes differ.
        """
        count = len(self.pictures)
        starts = np.arange(count) / self.fps
        indices = choose(starts, count / self.fps, num_frames, fps, None)
        arrays = [np.asarray(_open(self.pictures[i])) for i in indices]
        if len({a.shape for a in arrays}) > 1:
            raise KitError("field frames: the pictures differ in size")
        return Frames(np.stack(arrays), [float(starts[i]) for i in indices], self.fps, indices, count, count / self.fps)


def _open(picture: Any):
    from PIL import Image

    if isinstance(picture, dict):
        picture = io.BytesIO(picture["bytes"]) if picture.get("bytes") else picture["path"]
    try:
        image = picture if isinstance(picture, Image.Image) else Image.open(picture)
        return image.convert("RGB")
    except (OSError, AttributeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # broken ones
        raise KitError(f"field frames: a picture cannot be read ({error})") from None
