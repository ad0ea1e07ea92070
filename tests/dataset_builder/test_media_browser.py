"""Videos that browsers play: what is left alone, and what is encoded again to the same pictures and the same bytes."""

from __future__ import annotations

import numpy as np
import pytest

from dataset_builder.media import MediaError, probe, sample_frames
from dataset_builder.media.browser import browser_mp4, plays_in_browsers
from tests.dataset_builder.clips import moving_square, write_clip

LACKING = {  # name: how it is written
    "packed.mp4": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},  # what a packed frame folder is
    "old.avi": {"codec": "mpeg4"},
    "container.mkv": {},
    "colours.mp4": {"pix_fmt": "yuv444p"},
    "turned.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "rotation": 90},
    "uneven.mp4": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "times": [0, 1, 2, 5, 6, 7, 8, 15, 16, 17, 18, 19]},
}


def test_h264_in_mp4_is_left_alone(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    assert plays_in_browsers(path) and plays_in_browsers(path.read_bytes())


@pytest.mark.parametrize("name", LACKING)
def test_what_browsers_lack_becomes_the_same_pictures_at_the_same_times(name, tmp_path):
    path = write_clip(tmp_path / name, **LACKING[name])
    assert not plays_in_browsers(path)
    made = browser_mp4(path.read_bytes())
    assert plays_in_browsers(made)
    before, after = probe(path), probe(made)
    assert (after.width, after.height, after.frames) == (before.width, before.height, before.frames)
    old, new = (sample_frames(video, before.frames) for video in (path, made))
    np.testing.assert_allclose(new.timestamps, old.timestamps, atol=1e-3)
    assert np.abs(new.array.astype(int) - old.array.astype(int)).mean() < 4  # of 255


def test_odd_sides_lose_a_row_or_column(tmp_path):
    path = write_clip(tmp_path / "a.mp4", moving_square(width=49, height=35), pix_fmt="yuv444p")
    made = probe(browser_mp4(path))
    assert (made.width, made.height) == (48, 34)


def test_the_same_clip_gives_the_same_bytes(tmp_path):
    path = write_clip(tmp_path / "a.avi", moving_square(width=64, height=64), codec="mjpeg", pix_fmt="yuvj420p")
    assert len({browser_mp4(path) for _ in range(40)}) == 1


def test_a_broken_video_is_one_line():
    for function in (plays_in_browsers, browser_mp4):
        with pytest.raises(MediaError, match="cannot be opened as a video"):
            function(b"not a video")
