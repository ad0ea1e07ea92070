"""Runs of every arm over several seeds of the toy world, for `python -m benchmarks.arms`.

    python -m benchmarks.arms_runs 6 11 12 13 14 15
    python -m benchmarks.arms runs/arms/seed-*

Each seed has a world, models and a dataset of its own (those of `make demo SEED=K`, in `runs/demo-seed-K`) and its arms
in `runs/arms/seed-K`. A finished seed is not run again; a stopped one goes on.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dataset_builder.errors import KitError, run_cli

CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "arms.yaml"
WORLD = Path(__file__).parents[1] / "cards" / "configs" / "demo.yaml"


def run_seed(seed: int) -> Path:
    """World, models, dataset and arms of one seed.

    Returns:
        The folder of its arms.
    """
    from cards import steps
    from cards.release import load_config
    from cards.stage_log import StageLog
    from recipes.arms.run import run_arms

    config = load_config(WORLD, seed)
    with StageLog(Path(config.run_dir), print) as log:
        steps.world(config, log)
        steps.models(config, log)
        steps.dataset(config, log)
    output = Path("runs/arms") / f"seed-{seed}"
    judges = [
        {"kind": "reference"},
        {"kind": "visual", "name": "verifier", "model": f"{config.run_dir}/models/verifier"},
    ]
    base = f"{config.run_dir}/models/base"
    run_arms(output, config.dataset, base=base, config=CONFIG, judges=judges, seed=seed, workers=config.workers)
    return output


def main() -> int:
    """Run every seed named on the command line."""
    try:
        seeds = [int(word) for word in sys.argv[1:]]
    except ValueError:
        raise KitError("usage: python -m benchmarks.arms_runs SEED [SEED ...]") from None
    if not seeds:
        raise KitError("usage: python -m benchmarks.arms_runs SEED [SEED ...]")
    began = time.monotonic()
    for number, seed in enumerate(seeds, 1):
        output = run_seed(seed)
        passed = time.monotonic() - began
        left = passed / number * (len(seeds) - number)
        print(f"seed {seed}: arms in {output}, {number}/{len(seeds)}, {passed:.0f} s, {left:.0f} s left", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
