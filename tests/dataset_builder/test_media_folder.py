"""Frame folders, hashes and what endpoints are sent."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset_builder.media import (
    MediaError,
    file_sha256,
    folder,
    folder_sha256,
    inspect_video,
    pack_frame_folder,
    probe,
    sample_frames,
)
from dataset_builder.media.transforms import jpeg_bytes, mp4_bytes, resize_frames, target_size
from tests.dataset_builder.clips import moving_square, write_frame_folder


@pytest.mark.parametrize("suffix", [".jpeg", ".png", ".JPG"])
def test_a_folder_and_its_packed_file_are_the_same_video(tmp_path, suffix):
    path = write_frame_folder(tmp_path / "c01", suffix=suffix)
    packed = pack_frame_folder(path, 4)
    for options in ({"num_frames": 5}, {"fps": 1.0}, {"times": [0.3, 2.9]}):
        left, right = sample_frames(path, folder_fps=4, **options), sample_frames(packed, **options)
        assert left.digest == right.digest and left.indices == right.indices
    assert probe(path, folder_fps=4) == probe(packed)
    info = inspect_video(path)[0]
    assert (info.duration, info.fps, info.frames, info.width, info.height) == (6.0, 2.0, 12, 48, 32)


@pytest.mark.parametrize("fps", [2.0, 0.5, 1 / 3, 29.97, 30000 / 1001])
def test_packing_changes_no_byte_of_a_frame_and_is_the_same_each_time(tmp_path, fps):
    path = write_frame_folder(tmp_path / "c01")
    packed = pack_frame_folder(path, fps)
    assert packed == pack_frame_folder(path, fps)
    for file in path.iterdir():
        assert file.read_bytes() in packed
    assert probe(packed).fps == pytest.approx(fps, rel=1e-4)
    assert probe(packed).frames == 12


def test_names_are_in_natural_order(tmp_path):
    video = moving_square(12)
    for number, picture in enumerate(video):
        Image.fromarray(picture).save(tmp_path / f"f{number}.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "._f1.png").write_bytes(b"x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    assert folder.frame_names(tmp_path) == [f"f{n}.png" for n in range(12)]
    assert np.array_equal(sample_frames(tmp_path, 12).array, video)


def test_only_the_wanted_frames_are_decoded(tmp_path, monkeypatch):
    path = write_frame_folder(tmp_path / "c01", moving_square(50))
    decoded, real = [], folder._decode_one
    monkeypatch.setattr(folder, "_decode_one", lambda file: decoded.append(file.name) or real(file))
    assert sample_frames(path, 3).indices == [0, 25, 49]
    assert decoded == ["c01_0001.jpeg", "c01_0026.jpeg", "c01_0050.jpeg"]


def test_the_hash_of_a_folder_is_of_names_and_bytes(tmp_path):
    path = write_frame_folder(tmp_path / "c01")
    first = folder_sha256(path)
    assert first == file_sha256(path) == folder_sha256(write_frame_folder(tmp_path / "copy")) and len(first) == 64
    (path / "notes.txt").write_text("does not count")
    assert folder_sha256(path) == first
    (path / "c01_0012.jpeg").rename(path / "c01_0013.jpeg")
    second = folder_sha256(path)
    data = (path / "c01_0013.jpeg").read_bytes()
    (path / "c01_0013.jpeg").write_bytes(data + b"\0")
    assert len({first, second, folder_sha256(path)}) == 3


@pytest.mark.parametrize("how", ["sizes", "broken", "cut", "empty", "formats"])
def test_what_cannot_be_packed(tmp_path, how):
    path = write_frame_folder(tmp_path / "c01")
    middle = path / "c01_0006.jpeg"  # not the first, which may be looked at more closely
    kind = {"sizes": "mixed_sizes", "formats": "mixed_formats", "empty": "directory"}.get(how, "broken_frame")
    if how == "sizes":
        Image.fromarray(moving_square(1, 64, 64)[0]).save(middle)
    elif how == "broken":
        middle.write_bytes(b"\xff\xd8\xff\xe0 no more")
    elif how == "cut":
        middle.write_bytes(middle.read_bytes()[:-300])
    elif how == "formats":
        Image.fromarray(moving_square(1)[0]).save(path / "c01_0040.png")
    else:
        for file in path.iterdir():
            file.unlink()
    with pytest.raises(MediaError) as caught:
        pack_frame_folder(path, 2)
    assert caught.value.kind == kind and "\n" not in str(caught.value)
    with pytest.raises(MediaError) as caught:
        sample_frames(path, 12)
    assert caught.value.kind == kind
    with pytest.raises(ValueError, match="above 0"):
        sample_frames(path, folder_fps=0)


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), side=st.integers(1, 4000), other=st.integers(1, 4000))
def test_target_size(height, width, side, other):
    new_height, new_width = target_size(height, width, side)
    assert max(new_height, new_width) == min(side, max(height, width))
    assert min(new_height, new_width) >= 1
    assert target_size(height, width, to_height=side)[0] == side
    assert target_size(height, width, to_width=side)[1] == side
    assert target_size(height, width, to_height=side, to_width=other) == (side, other)


def test_resizing_is_antialiased_and_leaves_what_fits(tmp_path):
    stripes = np.zeros((2, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 255
    small = resize_frames(stripes, max_side=16)
    assert small.shape == (2, 16, 16, 3) and small.dtype == np.uint8
    assert np.abs(small[:, 2:-2, 2:-2].astype(int) - 127).max() <= 12  # grey, not stripes that are no stripes
    assert resize_frames(stripes, max_side=64) is stripes and resize_frames(stripes) is stripes
    flat = np.full((1, 30, 50, 3), 77, np.uint8)
    assert (resize_frames(flat, height=7, width=91) == 77).all()
    turned = np.ascontiguousarray(moving_square(3).transpose(0, 2, 1, 3))
    upright = resize_frames(moving_square(3), max_side=20)
    assert np.abs(resize_frames(turned, max_side=20).transpose(0, 2, 1, 3).astype(int) - upright).max() <= 2
    for wrong in (stripes[0], stripes.astype(float), stripes[..., :1]):
        with pytest.raises(ValueError, match="must be uint8"):
            resize_frames(wrong, max_side=4)
    for wish in ({"max_side": 4, "height": 3}, {"max_side": 0}, {"width": -1}, {"height": 1 << 20}):
        with pytest.raises(ValueError):
            resize_frames(stripes, **wish)


def test_jpeg_and_mp4_bytes():
    video = moving_square(9, 47, 33)
    jpeg = jpeg_bytes(video[0], 95)
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.format == "JPEG" and image.size == (47, 33)
        assert np.abs(np.asarray(image).astype(int) - video[0]).mean() < 4
    assert jpeg == jpeg_bytes(video[0], 95) and len(jpeg_bytes(video[0], 20)) < len(jpeg)
    mp4 = mp4_bytes(video, fps=2.5)
    info, taken = inspect_video(mp4, 9)
    assert (info.frames, info.fps, info.width, info.height) == (9, 2.5, 48, 34)
    assert np.abs(taken.array[:, :33, :47].astype(int) - video).mean() < 6
    assert len({mp4_bytes(video) for _ in range(5)}) == 1
    for call in (
        lambda: jpeg_bytes(video, 90),
        lambda: jpeg_bytes(video[0], 0),
        lambda: mp4_bytes(video[:0]),
        lambda: mp4_bytes(video, fps=0),
    ):
        with pytest.raises(ValueError):
            call()
