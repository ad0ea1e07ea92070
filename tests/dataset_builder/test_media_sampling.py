"""Frames many a second and at given times; the index of mp4 files; and that only what is needed is read."""

from __future__ import annotations

import dataclasses

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.media import MediaError, decode, frames, sample_frames, uniform_indices
from dataset_builder.media.choice import choose, shown_at
from dataset_builder.media.container import open_video
from dataset_builder.media.mp4 import check_boxes
from dataset_builder.media.table import FrameTable
from tests.dataset_builder.clips import decode_all, moving_square, remux, write_clip, write_frame_folder


def test_so_many_a_second(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", moving_square(40), fps=10)  # 4 s
    every = decode_all(clip)
    taken = sample_frames(clip, 8, fps=2)
    assert taken.indices == [0, 5, 10, 15, 20, 25, 30, 35]
    assert taken.timestamps == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert all(np.array_equal(got, every[i]) for got, i in zip(taken.array, taken.indices, strict=True))
    assert sample_frames(clip, 3, fps=2).indices == [0, 20, 35]  # 8 frames, evenly thinned
    assert sample_frames(clip, 99, fps=1000).indices == list(range(40))  # none is doubled
    assert sample_frames(clip, 99, fps=0.01).indices == [0]
    assert sample_frames(clip, 99, fps=10).indices == list(range(40))


def test_so_many_a_second_of_a_varying_rate(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", moving_square(5), fps=10, times=[0, 1, 10, 11, 30])
    assert sample_frames(clip, 9, fps=1).timestamps == pytest.approx([0.0, 1.0, 1.1, 3.0])


def test_frames_at_given_times(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", moving_square(12), fps=10)
    taken = sample_frames(clip, times=[0.55, 0.0, 0.5, 1.2, 0.299999999])
    assert taken.indices == [5, 0, 5, 11, 3]
    every = decode_all(clip)
    assert all(np.array_equal(got, every[i]) for got, i in zip(taken.array, taken.indices, strict=True))
    again = sample_frames(clip, times=sample_frames(clip, 7).timestamps)
    assert again.indices == uniform_indices(12, 7)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.h264", "folder"])
def test_a_time_outside_is_one_clear_line(tmp_path, name):
    path = tmp_path / name
    write_frame_folder(path) if name == "folder" else write_clip(path)
    for outside in (-0.1, 99, float("nan"), float("inf")):
        with pytest.raises(MediaError, match=r"shows nothing at .* s \(it is .* s long\)") as caught:
            sample_frames(path, times=[0, outside])
        assert caught.value.kind == "out_of_range"


@pytest.mark.parametrize(
    "wish", [{"fps": 1, "times": [0]}, {"fps": 0}, {"fps": float("nan")}, {"times": []}, {"num_frames": 0}]
)
def test_what_cannot_be_wished(tmp_path, wish):
    with pytest.raises(ValueError):
        sample_frames(write_clip(tmp_path / "a.mp4"), **wish)


gaps = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(gaps=gaps, fps=st.floats(0.05, 200), wanted=st.integers(1, 70))
def test_choice_by_rate_equals_asking_at_every_tick(gaps, fps, wanted):
    starts = (np.cumsum(gaps) - gaps) / 30
    duration = sum(gaps) / 30
    ticks = np.arange(0, int(np.ceil(duration * fps)) + 1) / fps
    ticks = ticks[ticks < duration - 1e-5]
    near = np.abs(ticks[:, None] - starts[None]) < 1e-5  # a tick on the edge may fall to either side
    chosen = choose(starts, duration, 10_000, fps)
    assert chosen == sorted(set(chosen)) and chosen[0] == 0
    if not near[1:].any():
        assert chosen == sorted(set(shown_at(starts, ticks).tolist()))
    few = choose(starts, duration, wanted, fps)
    assert few == [chosen[i] for i in uniform_indices(len(chosen), wanted)]


def test_digest_is_of_pixels_shape_and_times(tmp_path):
    clip = write_clip(tmp_path / "a.mp4")
    taken = sample_frames(clip, 4)
    assert taken.digest == sample_frames(clip.read_bytes(), 4).digest and len(taken.digest) == 64
    other = taken.array.copy()
    other[0, 0, 0, 0] ^= 1
    flat = taken.array.reshape(4, 48, 32, 3)
    later = [second + 1e-9 for second in taken.timestamps]
    changed = [{"array": other}, {"array": flat}, {"timestamps": later}]
    digests = {dataclasses.replace(taken, **change).digest for change in changed} | {taken.digest}
    assert len(digests) == 4
    taken.array[:] = 0
    assert taken.digest in digests  # computed once


@pytest.mark.parametrize(
    "options",
    [{"g": "9", "bf": "3"}, {"g": "9", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}, {"g": "1"}, {"g": "99"}],
)
@pytest.mark.parametrize("times", [None, [n * n for n in range(40)]])
def test_the_index_says_what_the_packets_say(tmp_path, options, times):
    clip = write_clip(tmp_path / "a.mp4", moving_square(40), options=options, times=times)
    with open_video(clip) as video:
        packets = list(decode.data_packets(video))
        read = FrameTable.from_packets(packets)
        index = FrameTable.from_index(video.index, packets[0].pts - int(video.index.pts[0]))
        assert video.index.ends.tolist() == [packet.pos + packet.size for packet in packets]
    for field in dataclasses.fields(FrameTable):
        assert np.array_equal(getattr(read, field.name), getattr(index, field.name)), field.name


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
@pytest.mark.parametrize("keep", [True, False])
def test_only_what_is_needed_is_decoded(tmp_path, monkeypatch, name, keep):
    """Eight frames of 600, a key frame every 20: at most eight runs of 20 packets; and exactly the right frames."""
    clip = write_clip(tmp_path / name, moving_square(600), fps=30, options={"g": "20", "x264-params": "scenecut=0"})
    sent, read = [], decode.TimedDecoder._read
    monkeypatch.setattr(decode.TimedDecoder, "_read", lambda self: sent.append(1) or read(self))
    if not keep:
        monkeypatch.setattr(frames, "_KEEP_BYTES", 0)
    taken = sample_frames(clip, 8)
    assert len(sent) <= 8 * 20
    every = decode_all(clip)
    assert taken.indices == uniform_indices(600, 8)
    assert all(np.array_equal(got, every[i]) for got, i in zip(taken.array, taken.indices, strict=True))


@pytest.mark.parametrize("options", [{"g": "50", "bf": "3"}, {"g": "50", "bf": "8", "x264-params": "b-pyramid=2"}])
def test_every_single_frame_is_right_when_unneeded_ones_are_skipped(tmp_path, options):
    rng = np.random.default_rng(0)
    video = moving_square(101) // 2 + rng.integers(0, 120, (101, 32, 48, 3), dtype=np.uint8)
    clip = write_clip(tmp_path / "a.mp4", video, fps=10, options=options)
    every = decode_all(clip)
    for index in range(101):
        taken = sample_frames(clip, times=[index / 10])
        assert taken.indices == [index] and np.array_equal(taken.array[0], every[index])


def test_an_index_that_lies_is_noticed(tmp_path):
    """Times in the index are swapped behind FFmpeg's back: the frames still come out as the packets say."""
    clip = write_clip(tmp_path / "a.mp4", moving_square(40), options={"g": "9", "bf": "3"})
    expected = sample_frames(clip, 5)

    real = frames.FrameTable.from_index

    def lying(index, shift):
        pts = index.pts.copy()
        pts[[20, 30]] = pts[[30, 20]]
        return real(dataclasses.replace(index, pts=pts), shift)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames.FrameTable, "from_index", lying)
        assert sample_frames(clip, 5).digest == expected.digest


@settings(deadline=None)
@given(data=st.data())
def test_a_damaged_index_never_ends_in_a_traceback(data, tmp_path_factory):
    clip = _clip(tmp_path_factory)
    whole = bytearray(clip)
    start, end = check_boxes(bytes(whole))[b"moov"]
    at = data.draw(st.integers(start, end - 1))
    written = data.draw(st.binary(min_size=1, max_size=8))
    whole[at : at + len(written)] = written
    try:
        taken = sample_frames(bytes(whole), 3)
    except MediaError as error:
        assert "\n" not in str(error)
    else:
        assert len(taken.array) == len(taken.timestamps) <= 3


def test_two_tracks_each_have_their_index(tmp_path):
    first = write_clip(tmp_path / "a.mp4", moving_square(20), options={"g": "5"})
    second = write_clip(tmp_path / "b.mp4", moving_square(9, 96, 64), options={"g": "3"})
    path = tmp_path / "both.mp4"
    with av.open(str(first)) as one, av.open(str(second)) as two, av.open(str(path), "w") as out:
        copies = [out.add_stream_from_template(source.streams.video[0]) for source in (one, two)]
        for source, copy in ((one, copies[0]), (two, copies[1])):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = copy
                    out.mux(packet)
    assert sample_frames(path, 8).digest == sample_frames(first, 8).digest


def test_fragments_have_no_index(tmp_path):
    whole = write_clip(tmp_path / "a.mp4", moving_square(20))
    for flags in ("frag_keyframe+empty_moov", "frag_keyframe"):
        parts = remux(whole, tmp_path / "b.mp4", options={"movflags": flags})
        with open_video(parts) as video:
            assert video.index is None
        assert sample_frames(parts, 5).digest == sample_frames(whole, 5).digest


_CLIP: list[bytes] = []


def _clip(factory) -> bytes:
    if not _CLIP:
        path = factory.mktemp("clip") / "a.mp4"
        _CLIP.append(write_clip(path, moving_square(20), options={"g": "5"}).read_bytes())
    return _CLIP[0]
