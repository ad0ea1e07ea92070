"""What every benchmark shares: interleaved runs, medians, the printed table and the results file."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate", "av")


def interleaved(ours: Callable[[], object], peer: Callable[[], object], runs: int = 5) -> tuple[float, float]:
    """Time two bodies in turn, so that a machine whose speed drifts treats both alike.

    Returns:
        The median seconds of ours and of the peer, after one uncounted run of each.
    """
    ours(), peer()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for body, list_ in zip((ours, peer), times, strict=True):
            began = time.perf_counter()
            body()
            list_.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def write_results(name: str, rows: list[dict]) -> Path:
    """Print the ratio table and write ``benchmarks/results/NAME.json``.

    Args:
        name: of the benchmark.
        rows: ``{case, ours, peer, ratio, unit}``; a ratio above 1 means that ours is better.
    """
    print(f"{'case':<44} {'ours':>10} {'peer':>10} {'ratio':>7}  unit")
    for row in rows:
        print(f"{row['case']:<44} {row['ours']:>10.3g} {row['peer']:>10.3g} {row['ratio']:>7.2f}  {row['unit']}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "name": name,
        "rows": rows,
        "machine": f"{platform.machine()}, {platform.system()}, CPU only",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "date": date.today().isoformat(),
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
