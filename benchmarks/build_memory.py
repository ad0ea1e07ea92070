"""Peak memory of a whole build through an endpoint, with 1,000 and with 100,000 questions.

    python -m benchmarks.build_memory [--counts 1000 100000]

A stub server answers at once; the build reads a JSONL, samples one member, scores with the reference judge, selects and
writes, in a process of its own whose peak memory (``VmHWM``) is read at its end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import write_results

CLIPS = 50


def child(folder: Path, url: str) -> None:
    """Build and print seconds and peak bytes."""
    from dataset_builder.build import build
    from dataset_builder.settings import BuildConfig, from_dict

    member = {
        "name": "served",
        "model": "stub",
        "endpoint": {"base_url": url, "concurrency": 32},
        "decoding": {"num_frames": 1, "max_new_tokens": 16},
    }
    source = {"kind": "folder", "videos": str(folder / "toy/videos"), "questions": str(folder / "questions.jsonl")}
    config = from_dict({"sources": [source], "zoo": [member], "judges": [{"kind": "reference"}]}, BuildConfig, "bench")
    began = time.perf_counter()
    summary = build(config, folder / "mmaip-v", progress=False)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak, "answers": summary["answers"]}))


def measure(count: int) -> dict:
    """One build in a process of its own."""
    from dataset_builder.toy import generate_toy

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_toy(folder / "toy", seed=0, clips={"train": CLIPS}, types=("colour",))
        with open(folder / "questions.jsonl", "w") as out:
            for number in range(count):
                row = {"video": f"train-{number % CLIPS:05d}.mp4", "question": f"what moves in part {number} ?"}
                out.write(json.dumps({**row, "answer": "red square"}) + "\n")
        words = [sys.executable, "-m", "tests.endpoints.stub"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as stub:
            url = stub.stdout.readline().strip()
            words = [sys.executable, "-m", "benchmarks.build_memory", "--child", name, "--url", url]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            stub.terminate()
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs=2, default=[1_000, 100_000])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.url)
        return
    small, large = (measure(count) for count in options.counts)
    print(f"{large['answers']:,} answers in {large['seconds']:.0f} s")
    case = f"build of {options.counts[1]:,} questions against {options.counts[0]:,}"
    row = {"case": case, "ours": large["peak"] / 2**20, "peer": small["peak"] / 2**20}
    write_results("build_memory", [{**row, "ratio": large["peak"] / small["peak"], "unit": "MiB peak"}])


if __name__ == "__main__":
    main()
