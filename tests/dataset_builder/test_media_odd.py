"""Odd videos come out right, broken ones are one clear line: two tables, so that the kinds can be counted."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dataset_builder.media import MediaError, inspect_video, probe, sample_frames, uniform_indices
from tests.dataset_builder.clips import (
    break_clip,
    decode_all,
    moving_square,
    remux,
    write_clip,
    write_frame_folder,
    write_sound,
)

X264 = {"g": "9", "bf": "3", "threads": "1"}


def clip(name: str, frames: int = 25, **options) -> Callable[[Path], Path]:
    """Writes a moving square with these options."""
    return lambda folder: write_clip(folder / name, moving_square(frames), **{"options": X264, **options})


def odd_size(folder: Path) -> Path:
    return write_clip(folder / "a.mp4", moving_square(25, width=49, height=35), pix_fmt="yuv444p", options=X264)


def live(name: str, codec: str) -> Callable[[Path], Path]:
    """Written to a pipe: no duration, no index."""

    def build(folder: Path) -> Path:
        whole = write_clip(folder / "whole.mkv", moving_square(25), codec=codec)
        return remux(whole, folder / name, options={"live": "1"})

    return build


def cut_by_edit_list(folder: Path) -> Path:
    """The first seven frames lie before the edit's start: they are decoded, but never shown."""
    whole = write_clip(folder / "whole.mp4", moving_square(25), options={"g": "25", "bf": "0"})
    with av.open(str(whole)) as read:
        step = 7 * next(p.duration for p in read.demux(video=0))

    def earlier(number: int, packet: av.Packet) -> None:
        packet.pts, packet.dts = packet.pts - step, packet.dts - step

    return remux(whole, folder / "cut.mp4", earlier, {"avoid_negative_ts": "disabled"})


def late_start(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        whole = write_clip(folder / "whole.mp4", moving_square(25), options=X264)

        def later(number: int, packet: av.Packet) -> None:
            shift = int(90_000 / packet.time_base)  # 25 hours
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift

        return remux(whole, folder / name, later)

    return build


def doubled_times(folder: Path) -> Path:
    """Every second frame claims the time of the one before it."""
    whole = write_clip(folder / "whole.mkv", moving_square(25), codec="mjpeg", pix_fmt="yuvj420p")

    def same(number: int, packet: av.Packet) -> None:
        packet.pts = packet.dts = packet.pts - (number % 2) * packet.duration if packet.duration else number // 2 * 200

    return remux(whole, folder / "a.mkv", same)


def swapped_times(folder: Path) -> Path:
    """Key frames whose times run backwards in places."""
    whole = write_clip(folder / "whole.mkv", moving_square(25), codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(whole)) as read:
        packets = [p for p in read.demux(video=0) if p.size]
        path = folder / "a.mkv"
        with av.open(str(path), "w") as out:
            stream = out.add_stream_from_template(read.streams.video[0])
            for number, packet in enumerate(packets):
                packet.pts = (number ^ 1) * 100 + 200
                packet.dts = number * 100
                packet.stream = stream
                out.mux(packet)
    return path


def with_sound(folder: Path) -> Path:
    path = folder / "a.mp4"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=10, options=X264)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        audio = out.add_stream("aac", rate=16000, layout="mono")
        for number, picture in enumerate(moving_square(25)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            out.mux(video.encode(frame))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16000, number * 1600
            out.mux(audio.encode(sound))
        out.mux(video.encode())
        out.mux(audio.encode())
    return path


def appended_rubbish(folder: Path) -> Path:
    path = write_clip(folder / "a.mp4", moving_square(25), options=X264)
    path.write_bytes(path.read_bytes() + b"\0" * 5000)
    return path


def wrong_suffix(folder: Path) -> Path:
    return write_clip(folder / "a.mp4", moving_square(25), options=X264).rename(folder / "a.txt")


def name_like_an_address(folder: Path) -> Path:
    return write_clip(folder / "a.mp4", moving_square(25), options=X264).rename(folder / "http:%20é'#?.mp4")


ODD: dict[str, tuple[Callable[[Path], Path], int]] = {  # how it is written, and how many frames it shows
    "rotated 90": (clip("a.mp4", rotation=90), 25),
    "rotated 180": (clip("a.mp4", rotation=180), 25),
    "rotated 270": (clip("a.mp4", rotation=-90), 25),
    "variable rate mp4": (clip("a.mp4", 8, times=[0, 1, 10, 30, 31, 32, 90, 91]), 8),
    "variable rate mkv": (clip("a.mkv", 8, times=[0, 1, 10, 30, 31, 32, 90, 91]), 8),
    "yuv444p": (clip("a.mp4", pix_fmt="yuv444p"), 25),
    "yuv422p": (clip("a.mp4", pix_fmt="yuv422p"), 25),
    "10 bit": (clip("a.mp4", pix_fmt="yuv420p10le"), 25),
    "gray": (clip("a.mp4", pix_fmt="gray"), 25),
    "rgb24": (clip("a.mov", codec="png", pix_fmt="rgb24", options={}), 25),
    "rgba": (clip("a.mov", codec="png", pix_fmt="rgba", options={}), 25),
    "gbrp": (clip("a.mp4", codec="libx264rgb", pix_fmt="rgb24"), 25),
    "full range": (clip("a.mp4", codec="mjpeg", pix_fmt="yuvj420p", options={}), 25),
    "odd size": (odd_size, 25),
    "B-frames": (clip("a.mp4"), 25),
    "open GOP": (clip("a.mp4", options={**X264, "x264-params": "open-gop=1:scenecut=0"}), 25),
    "intra refresh, one key": (clip("a.mp4", options={"g": "999", "intra-refresh": "1"}), 25),
    "interlaced": (clip("a.mp4", options={**X264, "x264-params": "tff=1"}), 25),
    "interlaced stream": (clip("a.ts", options={**X264, "x264-params": "tff=1"}), 25),
    "MPEG-2": (clip("a.mpg", fps=25, codec="mpeg2video", options={"g": "9", "bf": "2"}), 25),
    "fragmented mp4": (clip("a.mp4", container={"movflags": "frag_keyframe+empty_moov"}), 25),
    "index in front": (clip("a.mp4", container={"movflags": "faststart"}), 25),
    "raw h264": (clip("a.h264"), 25),
    "live mkv": (live("a.mkv", "libx264"), 25),
    "live webm": (live("a.webm", "libvpx"), 25),
    "edit list cut": (cut_by_edit_list, 18),
    "late start ts": (late_start("a.ts"), 25),
    "late start mkv": (late_start("a.mkv"), 25),
    "late start mp4": (late_start("a.mp4"), 25),
    "doubled times": (doubled_times, 25),
    "swapped times": (swapped_times, 25),
    "hidden frames": (clip("a.webm", codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "8"}), 25),
    "AVI with B-frames": (clip("a.avi"), 25),
    "FLV": (clip("a.flv"), 25),
    "GIF": (clip("a.gif", codec="gif", pix_fmt="rgb8", options={}), 25),
    "single frame": (clip("a.mp4", 1), 1),
    "with sound": (with_sound, 25),
    "rubbish behind the end": (appended_rubbish, 25),
    "wrong suffix": (wrong_suffix, 25),
    "name like an address": (name_like_an_address, 25),
}


def decode_upright(path: Path) -> list[np.ndarray]:
    """A sequential decode, each picture turned as its file says."""
    pictures = []
    with av.open("file:" + str(path)) as container:
        for frame in container.decode(video=0):
            turns = round(frame.rotation / 90) % 4
            pictures.append(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    return pictures


@pytest.mark.parametrize("kind", ODD)
def test_odd_videos_come_out_right(tmp_path, capfd, kind):
    build, frames = ODD[kind]
    path = build(tmp_path)
    every = decode_upright(path)
    assert len(every) == frames
    for wanted in (1, 3, 8, 64):
        info, taken = inspect_video(path, wanted)
        assert info.frames == taken.total == frames and taken.indices == uniform_indices(frames, wanted)
        assert all(np.array_equal(got, every[i]) for got, i in zip(taken.array, taken.indices, strict=True))
        assert taken.timestamps == sorted(taken.timestamps) and taken.timestamps[0] >= 0
        assert taken.timestamps[-1] <= info.duration < 60 and info.fps > 0
        assert (info.height, info.width) == every[0].shape[:2]
    assert np.array_equal(sample_frames(path.read_bytes(), 4).array, sample_frames(path, 4).array)
    assert capfd.readouterr().err == ""


def renamed_picture(folder: Path) -> Path:
    path = folder / "a.mp4"
    Image.fromarray(moving_square(1)[0]).save(path, "PNG")
    return path


def cover_art(folder: Path) -> Path:
    """A song with a picture of its cover."""
    picture = io.BytesIO()
    Image.fromarray(moving_square(1)[0]).save(picture, "JPEG")
    sound, path = write_sound(folder / "sound.mp4"), folder / "a.m4a"
    with av.open(str(sound)) as read, av.open(str(path), "w", format="mp4") as out:
        audio = out.add_stream_from_template(read.streams.audio[0])
        cover = out.add_mux_stream("mjpeg", width=48, height=32)
        cover.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts = cover, 0, 0
        out.mux(packet)
        for packet in read.demux(read.streams.audio[0]):
            if packet.size:
                packet.stream = audio
                out.mux(packet)
    return path


def changing_size(folder: Path) -> Path:
    """Two recordings one behind the other, as a camera's transport stream may be."""
    small = write_clip(folder / "small.ts", moving_square(12), options=X264)
    large = write_clip(folder / "large.ts", moving_square(12, 96, 64), options=X264)
    path = folder / "a.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    return path


def only_boxes(folder: Path) -> Path:
    path = folder / "a.mp4"
    path.write_bytes(b"\0\0\0\x14ftypisom\0\0\2\0isom" + b"\0\0\0\x08free")
    return path


def no_frames(folder: Path) -> Path:
    """A finished file with a video track that holds nothing."""
    path = folder / "a.mp4"
    with av.open(str(path), "w", options={"movflags": "empty_moov"}) as out:
        stream = out.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        out.start_encoding()
    return path


def with_bytes(content: bytes, name: str = "a.mp4") -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return build


def zipped(folder: Path) -> Path:
    path = folder / "a.mp4"
    with zipfile.ZipFile(path, "w") as file:
        file.write(write_clip(folder / "inner.mp4"), "inner.mp4")
    return path


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.mp4")
    return folder / "a.mp4"


def overwritten_pictures(folder: Path) -> Path:
    """The index is whole; all that lies between is rubbish."""
    path = write_clip(folder / "a.mp4", moving_square(25), options=X264)
    whole = bytearray(path.read_bytes())
    start, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4
    whole[start:end] = b"\xaa" * (end - start)
    path.write_bytes(whole)
    return path


def broken(how: str) -> Callable[[Path], Path]:
    return lambda folder: break_clip(folder, how)


def odd_folder(how: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / "frames"
        if how == "empty":
            path.mkdir()
            (path / "notes.txt").write_text("none yet")
            return path
        write_frame_folder(path)
        first = path / "c01_0001.jpeg"
        if how == "sizes":
            Image.fromarray(moving_square(1, 96, 64)[0]).save(first)
        elif how == "formats":
            write_frame_folder(path, moving_square(1), ".png", 40)
        elif how == "cut":
            first.write_bytes(first.read_bytes()[:400])
        elif how == "text":
            first.write_text("no picture")
        elif how == "zero":
            first.write_bytes(b"")
        elif how == "png inside":
            Image.fromarray(moving_square(1)[0]).save(first, "PNG")
        elif how == "folder inside":
            first.unlink()
            first.mkdir()
        return path

    return build


HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n"
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {  # how it is written, and the kind of its error
    "missing": (broken("missing"), "missing_video"),
    "zero bytes": (broken("zero_bytes"), "empty_video"),
    "text": (broken("text"), "unreadable_video"),
    "web page": (with_bytes(b"<!DOCTYPE html><html><body>404 not found</body></html>"), "unreadable_video"),
    "zip archive": (zipped, "unreadable_video"),
    "concat list": (broken("play_list"), "unreadable_video"),
    "HLS list": (with_bytes(HLS), "unreadable_video"),
    "zeros": (with_bytes(bytes(10_000)), "unreadable_video"),
    "cut off": (broken("truncated"), "truncated_video"),
    "cut off behind its index": (broken("truncated_behind_index"), "truncated_video"),
    "boxes without a track": (only_boxes, "unreadable_video"),
    "no frames": (no_frames, "no_video_stream"),
    "sound only": (broken("sound_only"), "no_video_stream"),
    "sound with cover": (cover_art, "no_video_stream"),
    "picture renamed": (renamed_picture, "unreadable_video"),
    "changing size": (changing_size, "changing_size"),
    "pictures overwritten": (overwritten_pictures, "undecodable_video"),
    "named pipe": (pipe, "unreadable_video"),
    "NUL in the name": (lambda folder: folder / "a\0.mp4", "missing_video"),
    "name too long": (lambda folder: folder / ("a" * 300), "unreadable_video"),
    "folder without frames": (odd_folder("empty"), "directory"),
    "folder of mixed sizes": (odd_folder("sizes"), "mixed_sizes"),
    "folder of mixed formats": (odd_folder("formats"), "mixed_formats"),
    "folder with a cut frame": (odd_folder("cut"), "broken_frame"),
    "folder with a text frame": (odd_folder("text"), "broken_frame"),
    "folder with an empty frame": (odd_folder("zero"), "broken_frame"),
    "folder with a PNG named JPEG": (odd_folder("png inside"), "broken_frame"),
    "folder with a folder": (odd_folder("folder inside"), "broken_frame"),
}


def test_enough_kinds():
    assert len(ODD) >= 20 and len(BROKEN) >= 20


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_videos_are_one_clear_line(tmp_path, capfd, kind):
    build, word = BROKEN[kind]
    path = build(tmp_path)
    for action in (lambda: sample_frames(path, 8), lambda: inspect_video(path, 8)):
        with pytest.raises(MediaError) as caught:
            action()
        message = str(caught.value)
        assert message.startswith(str(path).replace("\0", "\\x00")[:40]) and "\n" not in message
        assert caught.value.kind == word, message
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".ts", ".avi"])
def test_other_containers_cut_off_give_an_error_or_the_frames_that_are_there(tmp_path, suffix):
    codec = "libvpx" if suffix == ".webm" else "libx264"
    path = write_clip(tmp_path / f"a{suffix}", moving_square(25), codec=codec, options={"g": "5"})
    whole, every = path.read_bytes(), decode_all(path)
    for part in range(1, 20):
        cut = whole[: len(whole) * part // 20]
        try:
            taken = sample_frames(cut, 4)
        except MediaError as error:
            assert "\n" not in str(error)
        else:
            complete = [i for i in taken.indices[:-1] if i < taken.total - 3]
            for index in complete:  # what is not at the torn end is exact
                assert np.array_equal(taken.array[taken.indices.index(index)], every[index])


def test_a_rotated_probe_swaps_the_sides(tmp_path):
    info = probe(write_clip(tmp_path / "a.mp4", rotation=90))
    assert (info.width, info.height) == (32, 48)
