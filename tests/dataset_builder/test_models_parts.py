"""Frames as message parts: what a server decodes is what was seen."""

from __future__ import annotations

import base64
import gc
import io

import av
import numpy as np
import pytest
from PIL import Image

from dataset_builder.media import Frames
from dataset_builder.models import parts
from dataset_builder.models.parts import frame_parts
from tests.dataset_builder.clips import moving_square


def frames_of(array: np.ndarray, times: list[float] | None = None) -> Frames:
    times = [i / 2 for i in range(len(array))] if times is None else times
    return Frames(
        array=array, timestamps=times, fps=30.0, indices=list(range(len(array))), total=300, duration=times[-1] + 0.5
    )


def data_of(part: dict, kind: str, mime: str) -> bytes:
    assert part.keys() == {"type", kind} and part["type"] == kind
    head, _, data = part[kind]["url"].partition(";base64,")
    assert head == f"data:{mime}"
    return base64.b64decode(data, validate=True)


def test_images_are_the_frames_in_their_order():
    video = moving_square(6, 64, 48)
    made = frame_parts(frames_of(video))
    assert len(made) == 6
    for part, picture in zip(made, video, strict=True):
        decoded = np.asarray(Image.open(io.BytesIO(data_of(part, "image_url", "image/jpeg"))))
        assert decoded.shape == picture.shape
        assert np.abs(decoded.astype(int) - picture).mean() < 6


@pytest.mark.parametrize("shape", [(48, 64), (33, 47), (2, 2), (1, 5)])
@pytest.mark.parametrize("times", [[0.0, 0.5, 1.0], [3.0, 6.25, 9.5], [7.0]])
def test_a_video_shows_every_frame_at_its_second(shape, times):
    shades = np.linspace(30, 220, len(times)).astype(np.uint8)
    array = np.stack([np.full((*shape, 3), shade, np.uint8) for shade in shades])
    (part,) = frame_parts(frames_of(array, times), "video")
    with av.open(io.BytesIO(data_of(part, "video_url", "video/mp4"))) as container:
        decoded = list(container.decode(video=0))
    assert [frame.time for frame in decoded] == pytest.approx([time - times[0] for time in times], abs=1e-2)
    means = [frame.to_ndarray(format="rgb24").mean() for frame in decoded]
    assert means == pytest.approx(shades.tolist(), abs=4)


@pytest.mark.parametrize("form", ["images", "video"])
def test_large_frames_are_shrunk(form):
    made = frame_parts(frames_of(moving_square(3, 96, 64)), form, max_side=48)
    if form == "images":
        sizes = {Image.open(io.BytesIO(data_of(part, "image_url", "image/jpeg"))).size for part in made}
    else:
        with av.open(io.BytesIO(data_of(made[0], "video_url", "video/mp4"))) as container:
            sizes = {(frame.width, frame.height) for frame in container.decode(video=0)}
    assert sizes == {(48, 32)}


def test_a_clip_is_encoded_once_and_forgotten_with_its_frames():
    frames = frames_of(moving_square(4))
    assert frame_parts(frames) is frame_parts(frames)
    assert frame_parts(frames, max_side=16) is not frame_parts(frames)
    gc.collect()
    before = len(parts._encoded)
    del frames
    gc.collect()
    assert len(parts._encoded) == before - 1
