"""Media: exactly the frames asked for, and one clear line for every broken file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.media import (
    MediaError,
    file_sha256,
    frames,
    inspect_video,
    perceptual_hash,
    probe,
    sample_frames,
    uniform_indices,
)
from tests.dataset_builder.clips import break_clip, decode_all, moving_square, real_clips, write_clip


@given(total=st.integers(1, 5000), wanted=st.integers(1, 64))
def test_uniform_indices_are_even_and_reach_both_ends(total, wanted):
    indices = uniform_indices(total, wanted)
    assert len(indices) == min(total, wanted) == len(set(indices))
    assert indices == sorted(indices) and indices[0] >= 0 and indices[-1] < total
    if wanted > 1 or total == 1:
        assert (indices[0], indices[-1]) == (0, total - 1)
    if total > wanted > 1:
        gaps = np.diff(indices)
        assert gaps.max() - gaps.min() <= 1


def test_uniform_indices_of_one_frame_is_the_middle():
    assert uniform_indices(9, 1) == [4]
    with pytest.raises(ValueError, match="at least 1"):
        uniform_indices(9, 0)


def test_a_short_clip_gives_all_its_frames(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", moving_square(5), fps=10)
    taken = sample_frames(clip, 8)
    assert taken.array.shape == (5, 32, 48, 3) and taken.array.dtype == np.uint8
    assert taken.indices == [0, 1, 2, 3, 4] and taken.total == len(taken) == 5
    assert taken.timestamps == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert (taken.fps, taken.duration) == (10.0, 0.5)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b_frames.mp4", "libx264", {"g": "9", "bf": "3"}),
        ("open_gop.mp4", "libx264", {"g": "9", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
        ("short_gop.mkv", "libx264", {"g": "2"}),
        ("all_key.mp4", "libx264", {"g": "1"}),
        ("one_key.mp4", "libx264", {"g": "999"}),
        ("mpeg4.avi", "mpeg4", {"g": "9", "bf": "2"}),
        ("h264.avi", "libx264", {"g": "9", "bf": "2"}),
        ("transport.ts", "libx264", {"g": "9"}),
        ("hidden.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "8", "g": "20"}),
        ("nine.webm", "libvpx-vp9", {"g": "12", "cpu-used": "8"}),
        ("raw.h264", "libx264", {"g": "9"}),
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_sampled_frames_equal_a_sequential_decode(tmp_path, monkeypatch, name, codec, options, in_memory):
    """Whatever the codec, container and key frames; also when the packets are read twice instead of kept."""
    if not in_memory:
        monkeypatch.setattr(frames, "_KEEP_BYTES", 0)
    clip = write_clip(tmp_path / name, moving_square(41), codec=codec, options=options)
    every = decode_all(clip)
    assert len(every) == 41
    for wanted in (1, 2, 5, 8, 64):
        taken = sample_frames(clip, wanted)
        assert taken.total == 41 and taken.indices == uniform_indices(41, wanted)
        assert all(np.array_equal(got, every[i]) for got, i in zip(taken.array, taken.indices, strict=True))
        rate = 25 if name.endswith(".h264") else 10  # a raw stream has no clock
        assert taken.timestamps == pytest.approx([i / rate for i in taken.indices], abs=0.011)


def test_times_of_a_varying_rate_are_the_files_own(tmp_path):
    clip = write_clip(tmp_path / "vfr.mkv", moving_square(4), fps=10, times=[0, 1, 10, 30])
    assert sample_frames(clip, 4).timestamps == pytest.approx([0.0, 0.1, 1.0, 3.0])


def test_bytes_and_path_give_the_same(tmp_path):
    clip = write_clip(tmp_path / "a.mp4")
    left, right = sample_frames(clip, 4), sample_frames(clip.read_bytes(), 4)
    assert np.array_equal(left.array, right.array) and left.timestamps == right.timestamps
    assert file_sha256(clip) == file_sha256(clip.read_bytes()) == file_sha256(str(clip))
    assert probe(str(clip)) == probe(clip.read_bytes())


def test_probe_and_thin(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", moving_square(20), fps=8)
    info, taken = inspect_video(clip, 9)
    assert (info.frames, info.width, info.height, info.fps, info.duration) == (20, 48, 32, 8.0, 2.5)
    thin = taken.thin(3)
    assert thin.indices == [taken.indices[0], taken.indices[4], taken.indices[8]] == [0, 10, 19]
    assert np.array_equal(thin.array, taken.array[[0, 4, 8]]) and thin.total == 20
    assert taken.thin(9).indices == taken.indices


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_rotated_phone_video_comes_out_upright(tmp_path, degrees):
    turned = write_clip(tmp_path / "a.mp4", moving_square(3), rotation=degrees)
    expected = np.rot90(np.stack(decode_all(turned)), degrees // 90, axes=(1, 2))
    taken = sample_frames(turned, 3).array
    assert np.array_equal(taken, expected)
    assert (probe(turned).height, probe(turned).width) == expected.shape[1:3]


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("missing", "missing_video", "there is no such file"),
        ("zero_bytes", "empty_video", "0 bytes"),
        ("text", "unreadable_video", "not a video file"),
        ("truncated", "truncated_video", "is truncated"),
        ("truncated_behind_index", "truncated_video", "is truncated"),
        ("sound_only", "no_video_stream", "has no video stream"),
        ("folder", "directory", "is a folder"),
        ("play_list", "unreadable_video", "cannot be opened as a video"),
    ],
)
def test_broken_files_are_one_clear_line(tmp_path, capfd, how, kind, says):
    path = break_clip(tmp_path, how)
    for action in (sample_frames, probe):
        with pytest.raises(MediaError) as caught:
            action(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and says in message and "\n" not in message
        assert caught.value.kind == kind
    assert capfd.readouterr().err == ""  # nothing of FFmpeg's own


def test_broken_bytes_are_one_clear_line():
    for data in (b"", b"no video at all" * 50):
        with pytest.raises(MediaError, match=r"video in memory \(\d+ bytes\): "):
            sample_frames(data)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_a_media_error_or_frames_and_nothing_else(data, tmp_path_factory):
    """Any cut and any run of overwritten bytes: either frames of the promised shape or one clear line."""
    whole = _pristine(tmp_path_factory)
    broken = bytearray(whole[: data.draw(st.integers(1, len(whole)), "length")])
    at = data.draw(st.integers(0, len(broken) - 1), "at")
    broken[at : at + 40] = data.draw(st.binary(max_size=40), "bytes")
    try:
        taken = sample_frames(bytes(broken), 4)
    except MediaError as error:
        assert "\n" not in str(error)
    else:
        assert len(taken.array) == len(taken.indices) == len(taken.timestamps) <= 4


def test_every_cut_of_a_file_with_its_index_in_front_is_noticed(tmp_path):
    whole = write_clip(tmp_path / "a.mp4", container={"movflags": "faststart"}).read_bytes()
    for length in range(1, len(whole), 97):
        with pytest.raises(MediaError):
            sample_frames(whole[:length], 2)


_CLIP: list[bytes] = []


def _pristine(factory) -> bytes:
    if not _CLIP:
        folder = factory.mktemp("clip")
        _CLIP.append(write_clip(folder / "a.mp4", container={"movflags": "faststart"}).read_bytes())
    return _CLIP[0]


def test_perceptual_hash_survives_compression_and_tells_pictures_apart(tmp_path):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (2, 8, 9, 3), dtype=np.uint8)
    pictures = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)  # [2, 64, 72, 3]
    clean = [perceptual_hash(picture) for picture in pictures]
    poor = write_clip(tmp_path / "a.mp4", pictures[:1].repeat(3, axis=0), options={"crf": "35"})
    again = perceptual_hash(sample_frames(poor, 1).array[0])

    def apart(left: str, right: str) -> int:
        return (int(left, 16) ^ int(right, 16)).bit_count()

    assert apart(clean[0], again) <= 8 < 16 < apart(clean[0], clean[1])
    assert len(clean[0]) == 16 and clean[0] == perceptual_hash(pictures[0])


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_perceptual_hash_of_any_size(height, width, seed):
    picture = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    found = perceptual_hash(picture)
    assert len(found) == 16 and int(found, 16) >= 0
    doubled = picture.repeat(2, axis=0).repeat(2, axis=1)
    if height % 8 == 0 and width % 9 == 0:
        assert perceptual_hash(doubled) == found
    assert perceptual_hash(np.zeros_like(picture)) == "0" * 16


@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4"])
def test_real_clips(name):
    path = real_clips()[name]
    info, taken = inspect_video(path, 4)
    sizes = {
        "bikes.mp4": (640, 272, 250),
        "carphone_pristine.mp4": (176, 144, 120),
        "bigbuckbunny.mp4": (1280, 720, 132),
    }
    assert (info.width, info.height, info.frames) == sizes[name]
    assert info.duration == pytest.approx(info.frames / info.fps, rel=1e-3)
    every = decode_all(path)
    assert all(np.array_equal(got, every[i]) for got, i in zip(taken.array, taken.indices, strict=True))
