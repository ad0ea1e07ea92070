"""Selection and writing at scale: seconds and peak memory with 100,000 and 1,000,000 questions of five answers.

``python -m benchmarks.selection [--counts 100000 1000000] [--folder DIR]`` writes synthetic question tables and answers
(two judges, one of them with four criteria; every twentieth question is a repetition), selects and writes the dataset
in a process of its own and reads that process's peak memory (``VmHWM``). Near-duplicate questions are measured apart at
100,000.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.common import RESULTS

ANSWERS = 5
PER_VIDEO = 10  # questions
_SUBJECTS = (
    "man",
    "woman",
    "boy",
    "girl",
    "dog",
    "cat",
    "chef",
    "rider",
    "player",
    "dancer",
    "crowd",
    "teacher",
    "worker",
    "bird",
    "child",
    "runner",
)
_VERBS = (
    "opens",
    "carries",
    "throws",
    "cuts",
    "watches",
    "follows",
    "lifts",
    "paints",
    "repairs",
    "pushes",
    "washes",
    "holds",
    "drops",
    "catches",
)
_OBJECTS = (
    "door",
    "box",
    "ball",
    "onion",
    "screen",
    "car",
    "rope",
    "wall",
    "bicycle",
    "cart",
    "dish",
    "guitar",
    "cup",
    "hat",
    "ladder",
    "book",
    "phone",
)
_PLACES = (
    "kitchen",
    "street",
    "garden",
    "field",
    "studio",
    "beach",
    "garage",
    "classroom",
    "market",
    "forest",
    "station",
    "hall",
)
_SCORES = (
    ("visual", "right", 0.0, 1.0),
    *(("vlm", name, 1.0, 5.0) for name in ("relevance", "accuracy", "completeness", "clarity")),
)
_POOL = 50_000  # different answers


def sentence(rng: random.Random) -> str:
    """A caption-like answer of 8 to 20 words."""
    first = f"The {rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} the {rng.choice(_OBJECTS)} in the {rng.choice(_PLACES)}"
    return first + (f", then {rng.choice(_VERBS)} a {rng.choice(_OBJECTS)}." if rng.random() < 0.5 else ".")


def questions(count: int, rng: random.Random) -> Iterator[dict]:
    """Rows of a question table, sorted as the table wants them."""
    for video in range(-(-count // PER_VIDEO)):
        sha256 = f"{video:012x}" + hashlib.sha256(str(video).encode()).hexdigest()[12:]
        last = ""
        for number in range(min(PER_VIDEO, count - video * PER_VIDEO)):
            text = last if number and rng.random() < 0.05 else f"What happens after {sentence(rng)[:-1].lower()}?"
            last = text
            answer = sentence(rng)
            yield {
                "question_id": f"{video:010x}{number:06x}",
                "video_id": sha256[:16],
                "source": "synthetic",
                "source_id": f"{video}.mp4",
                "license": "CC0-1.0",
                "sha256": sha256,
                "phash": sha256[20:36],
                "duration": 10.0,
                "question": text,
                "answer": answer,
                "answers": [answer],
                "origin": "given",
                "split": "test" if video % 50 == 0 else "train",
                "path": f"{video}.mp4",
                "embed": False,
            }


def answers(batch: pa.RecordBatch, pool: pa.Array, rng: np.random.Generator, schema: pa.Schema) -> pa.Table:
    """Scored answers to a block of questions: two judges, the second with four criteria."""
    count = batch.num_rows * ANSWERS
    asked = pa.array(np.repeat(np.arange(batch.num_rows), ANSWERS))
    level = rng.random(count)
    values = np.empty((count, len(_SCORES)))
    values[:, 0] = np.clip(level + rng.normal(0, 0.1, count), 0, 1)
    values[:, 1:] = rng.integers(1, 6, (count, len(_SCORES) - 1))
    empty = rng.random(count) < 0.02
    scores = {
        "judge": [judge for judge, *_ in _SCORES],
        "judge_revision": ["0" * 40] * len(_SCORES),
        "settings_hash": ["0" * 16] * len(_SCORES),
        "criterion": [criterion for _, criterion, *_ in _SCORES],
        "score": None,
        "low": [low for *_, low, _ in _SCORES],
        "high": [high for *_, high in _SCORES],
        "rationale": ["The answer names what can be seen." if judge == "vlm" else None for judge, *_ in _SCORES],
        "error": [None] * len(_SCORES),
    }
    place = pa.array(np.tile(np.arange(len(_SCORES)), count))
    kinds = {field.name: field.type for field in schema.field("scores").type.value_type}
    parts = [
        pa.array(values.ravel()) if column is None else pa.array(column, kinds[name]).take(place)
        for name, column in scores.items()
    ]
    offsets = pa.array(np.arange(count + 1) * len(_SCORES), pa.int32())
    flags = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(empty)]), pa.int32()),
        pa.array(["empty"] * int(empty.sum()), pa.string()),
    )
    text = pool.take(pa.array(rng.integers(0, len(pool), count)))
    columns = {
        "response_id": pa.array([f"{key:016x}" for key in rng.integers(0, 2**63, count).tolist()]),
        **{name: batch.column(name).take(asked) for name in ("question_id", "video_id", "question", "answer")},
        "model": pa.array([f"member-{n}" for n in range(ANSWERS)] * batch.num_rows),
        "model_revision": pa.array(["0" * 40] * count),
        "sampling": pa.array(["{}"] * count),
        "response": pc.if_else(pa.array(empty), "", text),
        "finish_reason": pa.array(["stop"] * count),
        "prompt_tokens": pa.array([900] * count, pa.int32()),
        "completion_tokens": pa.array([20] * count, pa.int32()),
        "flags": flags,
        "scores": pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(parts, names=list(scores))),
        "score": pa.array(level),
        "disagreement": pa.array([0.1] * count),
    }
    return pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)


def synthesise(folder: Path, count: int, with_answers: bool = True) -> None:
    """Write ``questions.arrow`` and ``assembled/responses.parquet`` of so many questions."""
    from dataset_builder.schema import FEATURES
    from dataset_builder.table import QuestionTable, write_questions

    (folder / "assembled").mkdir(parents=True, exist_ok=True)
    write_questions(questions(count, random.Random(1)), folder / "questions.arrow", 1024)
    if not with_answers:
        return
    schema, rng, words = FEATURES["responses"].arrow_schema, np.random.default_rng(2), random.Random(3)
    pool, table = pa.array([sentence(words) for _ in range(_POOL)]), QuestionTable(folder / "questions.arrow")
    with pq.ParquetWriter(folder / "assembled" / "responses.parquet", schema) as writer:
        for number in range(table.block_count):
            writer.write_table(answers(table.batch(number), pool, rng, schema))


def child(folder: Path, what: str) -> dict:
    """Select (or only look for near-duplicates) in this process; seconds, peak bytes and counts."""
    from dataset_builder.mmaip_v import write_dataset
    from dataset_builder.selection import select
    from dataset_builder.selection.duplicates import drop_duplicates
    from dataset_builder.selection.fates import Fates
    from dataset_builder.settings import DedupConfig, PairsConfig
    from dataset_builder.table import QuestionTable

    table = QuestionTable(folder / "questions.arrow")
    began = time.perf_counter()
    if what == "near":
        fates = Fates(len(table))
        drop_duplicates(table, DedupConfig(questions="near"), fates, folder)
        found = {"dropped": int(np.count_nonzero(fates.codes))}
    else:
        record = select(table, folder / "assembled" / "responses.parquet", PairsConfig(), None, folder)
        if record["questions"] != record["questions_with_pairs"] + sum(record["drops"].values()):
            raise SystemExit("questions are not accounted for")
        found = {"pairs": record["pairs"], "drops": record["drops"]}
        found["select_seconds"] = round(time.perf_counter() - began, 2)
        write_dataset(folder, folder / "mmaip-v", embed=False, extra={"provenance.json": {}})
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return {"seconds": round(seconds, 2), "peak_bytes": peak, **found}


def measure(folder: Path, count: int, what: str) -> dict:
    """One measurement in a process of its own."""
    began = time.perf_counter()
    synthesise(folder, count, with_answers=what == "select")
    made = time.perf_counter() - began
    command = [sys.executable, "-m", "benchmarks.selection", "--child", what, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return {"what": what, "questions": count, "answers": ANSWERS, "made_seconds": round(made, 1), **result}


def main() -> None:
    """Measure, print the table, write ``results/selection.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--near", type=int, default=100_000, help="questions of the near-duplicate measurement")
    parser.add_argument("--folder", type=Path, help="where to put the synthetic data (a temporary folder by default)")
    parser.add_argument("--child", choices=("select", "near"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.folder, options.child)))
        return
    rows = []
    print(f"{'what':<8} {'questions':>10} {'seconds':>9} {'µs each':>8} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for what, count in [*(("select", n) for n in options.counts), ("near", options.near)]:
            row = measure(Path(folder) / f"{what}-{count}", count, what)
            rows.append(row)
            each, peak = row["seconds"] / count * 1e6, row["peak_bytes"] / 2**20
            print(f"{what:<8} {count:>10,} {row['seconds']:>9.1f} {each:>8.1f} {peak:>9.0f}", flush=True)
            write(rows)


def write(rows: list[dict]) -> None:
    """Write ``results/selection.json``."""
    machine = f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores"
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("pyarrow", "duckdb", "numpy")}}
    content = {"name": "selection", "rows": rows, "machine": machine, "versions": versions}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(content | {"date": date.today().isoformat()}, indent=1)
    (RESULTS / "selection.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
