"""Seconds and memory of a step of video DPO, ours against stock TRL with a minimal video collator, on two cores.

    python -m benchmarks.video_dpo                    LoRA and full, prompts of 860 and 2,000 tokens
    python -m benchmarks.video_dpo --peers [DIR]      Qwen's vocabulary: TRL, ms-swift, LLaMA-Factory and ours

A run is a process of its own: a model from config (`benchmarks.dpo_cases`), one warm-up step and `--steps` optimizer
steps through ``trainer.train()``, two pairs a step, every clip another mp4 file. The clock runs from the end of the
warm-up step to the end of the last one: decoding, collation, forward, backward and optimizer are in it on both sides,
in one process without loader workers. The runs of stock and ours take turns; figures are medians. The same batch is put
through both first: the losses must be equal within 1e-4.

``online_reference``: ours with the reference computed in every step, as stock does. ``cached``: reference
log-probabilities and frozen-vision features computed before; what that filling costs is added in the rows that say over
how many epochs. Memory is the highest resident memory while training, and how far that lies above what was resident
before the first step (interpreter, libraries, model, data).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.common import write_results
from benchmarks.dpo_run import BATCH, TUNINGS, Spec, launch
from benchmarks.peers_env import HOME

GIB = 2**30
LENGTHS = ("860", "2000")
VARIANTS = ("stock", "online_reference", "fill", "cached")
TARGETS = {"online_reference": 2.1, "cached": 3.1}
DRIFT = 1e-3  # losses of a few training steps, each computed with weights that took the earlier ones


def step_seconds(seen: dict) -> float:
    """Mean seconds of a timed step of one run."""
    return statistics.mean(seen["seconds"])


def measure(make, runs: int) -> dict[str, list[dict]]:
    """Run every variant ``runs`` times, taking turns.

    Args:
        make: variant → its :class:`Spec`.
        runs: how often.
    """
    seen: dict[str, list[dict]] = {variant: [] for variant in VARIANTS}
    for number in range(runs):
        shutil.rmtree(make("fill").folder, ignore_errors=True)  # the filling pass starts from nothing
        for variant in VARIANTS:
            seen[variant].append(launch(make(variant)))
            told = seen[variant][-1]
            cost = f"{told['seconds']:.2f} s to fill" if variant == "fill" else f"{step_seconds(told):.2f} s/step"
            print(f"  run {number + 1}: {variant:<17} {cost}", flush=True)
    return seen


def check(seen: dict[str, list[dict]], video_tokens: int) -> float:
    """All variants must have trained on the same rows, with the vision work that is claimed and with equal losses.

    Returns:
        The largest difference of a loss from stock's at the same step.

    Raises:
        AssertionError: a variant did something else than what its row says.
    """
    clips = {"stock": 4 * BATCH, "online_reference": BATCH, "cached": 0}
    losses = seen["stock"][0]["losses"]
    apart = 0.0
    for variant, expected in clips.items():
        for one in seen[variant]:
            assert one["tokens"] == [video_tokens], f"{variant}: {one['tokens']} video tokens, not {video_tokens}"
            assert set(one["clips"][1:]) == {expected}, f"{variant}: {one['clips']} clips through vision a step"
            apart = max(apart, *(abs(a - b) for a, b in zip(losses, one["losses"], strict=True)))
    assert apart <= DRIFT, f"the losses of the variants drift apart by {apart}"
    return apart


def table(name: str, seen: dict[str, list[dict]], pairs: int) -> list[dict]:
    """Rows of the results for one tuning and length."""

    def median(variant: str, value) -> float:
        return statistics.median(value(one) for one in seen[variant])

    def row(case: str, ours: float, peer: float, unit: str) -> dict:
        return {"case": f"{name}, {case}", "ours": ours, "peer": peer, "ratio": peer / ours, "unit": unit}

    stock = median("stock", step_seconds)
    made = median("online_reference", lambda one: one["made"])  # a trainer is made on both sides: not part of filling
    fill = max(0.0, median("fill", lambda one: one["seconds"]) - made) / (pairs / BATCH)
    cached = median("cached", step_seconds)
    rows = [
        row("online_reference", median("online_reference", step_seconds), stock, "s/step"),
        row("cached", cached, stock, "s/step"),
        *(
            row(f"cached, filling in {epochs} epoch{'s' * (epochs > 1)}", cached + fill / epochs, stock, "s/step")
            for epochs in (1, 3)
        ),
    ]
    for variant in ("online_reference", "cached"):
        for case, value in (
            ("peak memory", lambda one: one["peak"] / GIB),
            ("memory above the start", lambda one: (one["peak"] - one["before"]) / GIB),
        ):
            rows.append(row(f"{variant}, {case}", median(variant, value), median("stock", value), "GiB"))
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="interleaved runs of each variant")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a run")
    parser.add_argument("--tuning", nargs="+", choices=TUNINGS, default=["lora", "full"])
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--peers",
        nargs="?",
        const=HOME,
        type=Path,
        metavar="DIR",
        help="environments of the peers are kept here",
    )
    options = parser.parse_args()
    if options.peers:
        from benchmarks.dpo_peers import compare

        write_results("video_dpo_peers", compare(options.peers, options.runs, options.steps, options.threads))
        return

    from benchmarks.dpo_cases import LENGTHS as CASES

    rows = []
    for tuning in options.tuning:
        for length in options.lengths:
            name = f"{tuning.replace('_', ' + ')}, prompt {length}"
            with tempfile.TemporaryDirectory() as folder:

                def make(variant: str, tuning=tuning, length=length, folder=folder) -> Spec:
                    return Spec(variant, tuning, length, f"{folder}/work", options.steps, threads=options.threads)

                told = launch(make("check"))
                print(f"{name}: loss {told['stock']:.6f} in stock, {told['ours']:.6f} in ours", flush=True)
                seen = measure(make, options.runs)
            apart = check(seen, CASES[length].video_tokens)
            print(f"{name}: over the training steps the losses differ by at most {apart:.1e}", flush=True)
            rows += table(name, seen, make("fill").rows)
    path = write_results("video_dpo", rows)
    for row in rows:
        target = next((t for variant, t in TARGETS.items() if row["case"].endswith(variant)), None)
        if target and row["ratio"] < target:
            print(f"{row['case']}: {row['ratio']:.2f} is below the aim of {target}")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
