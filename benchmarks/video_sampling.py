"""Eight frames of a clip: the kit's sampling against decoding everything, torchcodec's exact mode and decord2.

    python -m benchmarks.video_sampling [--minutes 10] [--runs 5] [--clips FOLDER]

The clips are rendered first (H.264 with B-frames, 640×360, 30 frames a second: ten minutes with a key frame every 30
and every 250 frames, a short one, one of varying rate). Every reader opens the file anew, uses one thread and takes the
same eight frames; the readers run in turn. The figure is milliseconds a clip; a ratio above 1 means that the kit is
faster. The kit's frames must equal those of a sequential decode bit for bit; every frame carries its number as a row
of black and white fields, by which the peers' wrong frames are counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np

from benchmarks.common import write_results
from dataset_builder.media import sample_frames, uniform_indices

WIDTH, HEIGHT, RATE, WANTED = 640, 360, 30, 8
FIELD, BITS = 32, 16  # pixels a side of a field of the frame's number, and fields

Reader = Callable[[Path, list[int]], np.ndarray]  # (clip, indices) -> uint8 [T, H, W, 3]


def render(path: Path, frames: int, key_every: int, varying: bool = False) -> Path:
    """A texture that drifts in two speeds under noise, each frame with its number; kept when it is already there."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (40, 70, 3), dtype=np.uint8)
    back = coarse.repeat(24, axis=0).repeat(24, axis=1)  # [960, 1680, 3]
    back = (back // 2 + rng.integers(0, 60, back.shape, dtype=np.uint8)).astype(np.uint8)
    partial = path.with_name(f"partial-{path.name}")
    with av.open(str(partial), "w", format="mp4") as out:
        options = {"preset": "veryfast", "g": str(key_every), "bf": "3", "crf": "26", "x264-params": "scenecut=0"}
        stream = out.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        at = 0
        for number in range(frames):
            top, left = (number * 2) % 600, (number * 3) % 1000
            picture = back[top : top + HEIGHT, left : left + WIDTH].copy()
            picture[:FIELD, : FIELD * BITS] = _fields(number)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = at
            at += 1 + (number % 7 if varying else 0)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return partial.rename(path)


def _fields(number: int) -> np.ndarray:
    bits = np.array([(number >> bit) & 1 for bit in range(BITS)], dtype=np.uint8) * 255
    return bits.repeat(FIELD)[None, :, None]


def read_number(picture: np.ndarray) -> int:
    """The frame number that :func:`render` drew, robust to compression and colour conversion."""
    row = picture[: FIELD // 2 + 4, : FIELD * BITS].astype(float).mean(axis=(0, 2)).reshape(BITS, FIELD)
    return sum(int(level > 127) << bit for bit, level in enumerate(row[:, 8:-8].mean(axis=1)))


def ours(path: Path, indices: list[int]) -> np.ndarray:
    """The kit, which chooses the frames itself."""
    taken = sample_frames(path, len(indices), threads=1)
    assert taken.indices == indices
    return taken.array


def decode_all(path: Path, indices: list[int]) -> np.ndarray:
    """PyAV from the first frame to the last; only the wanted frames become RGB."""
    wanted, pictures = set(indices), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pictures.append(frame.to_ndarray(format="rgb24"))
    return np.stack(pictures)


def torchcodec_exact(path: Path, indices: list[int]) -> np.ndarray:
    """torchcodec in the mode that scans the file first and never returns a wrong frame."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(indices).data.numpy()


def decord2(path: Path, indices: list[int]) -> np.ndarray:
    """decord2, the maintained fork of decord."""
    import decord

    return decord.VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()


PEERS: dict[str, tuple[Reader, int | None]] = {  # reader, and how often it runs at most
    "decode all": (decode_all, 1),
    "torchcodec exact": (torchcodec_exact, None),
    "decord2": (decord2, None),
}


PACKAGES = {"decode all": "av", "torchcodec exact": "torchcodec", "decord2": "decord2"}


def available() -> dict[str, tuple[Reader, int | None]]:
    """The peers that work here; what does not is said, and left out."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        clip = render(Path(folder) / "probe.mp4", 4, 4)
        for name, (reader, most) in PEERS.items():
            try:
                reader(clip, [0, 1])
            except Exception as error:  # a missing package, or one whose FFmpeg libraries are missing
                print(f"{name}: not measured ({type(error).__name__}: {str(error).splitlines()[0][:120]})")
            else:
                found[name] = (reader, most)
    return found


def measure(clip: Path, frames: int, runs: int) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds and the most wrong frames in one run, by reader; the kit's is called ``ours``.

    Raises:
        SystemExit: a frame of the kit differs from the sequential decode's.
    """
    indices = uniform_indices(frames, WANTED)
    truth = decode_all(clip, indices)
    if not np.array_equal(ours(clip, indices), truth):
        sys.exit(f"{clip.name}: a sampled frame differs from the sequential decode's")
    readers = {"ours": (ours, None), **available()}
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    wrong: dict[str, int] = {}
    for run in range(runs + 1):  # the first run of each is not timed, but looked at
        for name, (reader, most) in readers.items():
            if most is not None and run > most:
                continue
            began = time.perf_counter()
            pictures = reader(clip, indices)
            seconds[name].append(time.perf_counter() - began)
            missed = sum(read_number(p) != i for p, i in zip(pictures, indices, strict=True))
            wrong[name] = max(wrong.get(name, 0), missed)  # some err in one run and not in the next
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}, wrong


def main() -> None:
    """Render, measure, print the table and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="length of the long clips")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each reader")
    parser.add_argument("--clips", type=Path, help="folder that keeps the rendered clips")
    args = parser.parse_args()
    long = int(args.minutes * 60 * RATE)
    cases = [
        (f"{args.minutes:g} min, key every 30", long, 30, False),
        (f"{args.minutes:g} min, key every 250", long, 250, False),
        ("10 s, key every 250", 10 * RATE, 250, False),
        ("2 min, varying rate, key every 60", 1000, 60, True),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.clips or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case, frames, key_every, varying in cases:
            clip = render(
                folder / f"{frames}-{key_every}-{'vfr' if varying else 'cfr'}.mp4", frames, key_every, varying
            )
            seconds, wrong = measure(clip, frames, args.runs)
            for name in list(seconds)[1:]:
                rows.append(
                    {
                        "case": f"{case}: {name}",
                        "ours": seconds["ours"] * 1000,
                        "peer": seconds[name] * 1000,
                        "ratio": seconds[name] / seconds["ours"],
                        "unit": "ms/clip",
                        "wrong_frames_ours": wrong["ours"],
                        "wrong_frames_peer": wrong[name],
                        "peer_version": version(PACKAGES[name]),
                    }
                )
    write_results("video_sampling", rows)
    for row in rows:
        if row["wrong_frames_peer"]:
            print(f"{row['case']}: {row['wrong_frames_peer']} of {WANTED} frames are not those asked for")


if __name__ == "__main__":
    main()
