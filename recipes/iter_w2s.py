"""Iterative video DPO with weak-to-strong extrapolation (Iter-W2S-RLAIF, arXiv 2411.16201).

    accelerate launch recipes/iter_w2s.py --config recipes/configs/toy.yaml [--any_field value]
    torchrun --nproc-per-node 2 recipes/iter_w2s.py --config recipes/configs/toy.yaml --use_cpu true
    accelerate launch recipes/iter_w2s.py --config recipes/configs/toy.yaml --arms --workers 2

Every round trains by DPO with the round's start as the reference, then goes on along the same line by the alpha that is
best on validation, and is saved as an ordinary checkpoint. Typing the same command again goes on at the round it was
stopped in. `--arms` trains and evaluates the controls too.
"""

from __future__ import annotations

import sys

from dataset_builder.errors import KitError
from recipes.settings import Settings, parse, run_recipe


def train(settings: Settings) -> list[dict]:
    """Run the rounds of one parsed command.

    Returns:
        Each round's metrics.
    """
    from recipes.rounds import run_rounds
    from recipes.workbench import Workbench

    script, training = settings.script, settings.training
    log = _say if training.process_index == 0 else _silent
    bench = Workbench(settings, log)
    log(
        f"{settings.model.model_name_or_path}: {len(bench.rows)} pairs, {script.rounds} rounds × {training.max_steps} "
        f"steps × {bench.batch_size} pairs, world size {bench.world}, {bench.device}"
    )
    rounds = run_rounds(bench, plan_of(settings), training.output_dir, script.overwrite)
    log(f"{len(rounds)} rounds in {training.output_dir}")
    return rounds


def plan_of(settings: Settings):
    """How the rounds of a parsed command are divided, as `recipes.rounds.Plan`."""
    from recipes.rounds import Plan

    script, training = settings.script, settings.training
    return Plan(
        rounds=script.rounds,
        steps=training.max_steps,
        learning_rate=training.learning_rate,
        alphas=script.alphas,
        pairs=script.pairs,
        sft_weight=script.sft_weight,
        judge_names=None if script.judge_names is None else tuple(script.judge_names),
        stop_early=script.stop_early,
    )


def main(argv: list[str] | None = None) -> int:
    """Parse and run."""
    settings = parse(sys.argv[1:] if argv is None else argv)
    if settings.script.arms:
        from recipes.arms.run import run_parsed
        from recipes.arms.table import format_table

        if settings.training.world_size > 1:
            raise KitError("--arms shares its runs between --workers, not between distributed processes; start it once")
        _say(format_table(run_parsed(settings, _say)))
        return 0
    train(settings)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    pass


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
