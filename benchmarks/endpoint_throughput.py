"""Calls per second of a build through an endpoint, against the ideal of always-full slots.

    python -m benchmarks.endpoint_throughput

A stub server in a process of its own takes 4 s (then 0.5 s) a call and works on 64 at once; a call carries 8 frames of
about 20 KB. The ideal is calls / (slots / latency).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import write_results

SLOTS, CLIPS, FRAMES = 64, 96, 8


def render(folder: Path) -> float:
    """Write clips whose frames are JPEGs of about 20 KB; returns the mean kilobytes of one."""
    import av
    import numpy as np

    from dataset_builder.media import sample_frames
    from dataset_builder.models.parts import frame_parts

    rng = np.random.default_rng(0)
    for number in range(CLIPS):
        with av.open(str(folder / f"{number}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=8, options={"preset": "ultrafast", "crf": "12"})
            stream.width, stream.height, stream.pix_fmt = 192, 144, "yuv420p"
            for _ in range(FRAMES):
                rough = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
                picture = rough.repeat(3, axis=0).repeat(3, axis=1)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())
    parts = frame_parts(sample_frames(folder / "0.mp4", FRAMES), "images", None)
    return sum(len(json.dumps(part)) for part in parts) * 3 / 4 / FRAMES / 1000


def run(folder: Path, url: str, calls: int) -> float:
    """Seconds that sampling takes, models and table ready."""
    from huggingface_hub import AsyncInferenceClient  # noqa: F401  (a second's import is not part of the rate)

    from dataset_builder.plan import make_members
    from dataset_builder.settings import Member, from_dict
    from dataset_builder.stages.job import Job
    from dataset_builder.stages.pool import run_stages
    from dataset_builder.table import QUESTION_SCHEMA, write_questions

    member = {
        "name": "served",
        "model": "stub",
        "endpoint": {"base_url": url, "concurrency": SLOTS},
        "decoding": {"num_frames": FRAMES, "max_new_tokens": 64},
    }
    rows = (
        {
            **dict.fromkeys(QUESTION_SCHEMA.names),
            **{"question_id": f"{number:06}", "question": f"what is in part {number} ?", "answers": []},
            **{"sha256": f"{number % CLIPS:064}", "path": str(folder / f"{number % CLIPS}.mp4"), "embed": False},
        }
        for number in range(calls)
    )
    with tempfile.TemporaryDirectory() as work:
        write_questions(rows, Path(work) / "questions.arrow", block_size=64)
        job = Job(work=work, seed=0, members=make_members([from_dict(member, Member, "benchmark")]), judges=[])
        began = time.perf_counter()
        run_stages(job, progress=False)
        return time.perf_counter() - began


def main() -> None:
    """Measure both latencies and write the results."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = render(folder)
        print(f"{FRAMES} frames of {size:.1f} KB a call")
        for latency, waves in ((4.0, 20), (0.5, 40)):
            words = [sys.executable, "-m", "tests.endpoints.stub", "--latency", str(latency), "--slots", str(SLOTS)]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as stub:
                url = stub.stdout.readline().strip()
                calls = SLOTS * waves
                began = time.process_time()
                seconds = run(folder, url, calls)
                busy = time.process_time() - began
                stub.terminate()
            ideal = math.ceil(calls / SLOTS) * latency
            case = f"latency {latency:g} s, {SLOTS} slots, {calls} calls"
            rows.append(
                {
                    "case": case,
                    "ours": calls / seconds,
                    "peer": calls / ideal,
                    "ratio": ideal / seconds,
                    "unit": "calls/s",
                }
            )
            print(f"{case}: {busy / calls * 1000:.1f} ms of this process's CPU a call")
    write_results("endpoint_throughput", rows)


if __name__ == "__main__":
    main()
