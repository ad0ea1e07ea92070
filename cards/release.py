"""The whole road from one config: world, models, dataset, control, arms, evaluator, figures, cards, report, summary.

``python -m cards release CONFIG.yaml`` runs the stages in order, skips what is done, and can be stopped at any moment:
the same command goes on from there. ``--dry-run`` says what would be made and pushed and starts nothing.
"""

from __future__ import annotations

import signal
from pathlib import Path

from cards.push.plan import repo_names, version_tag
from cards.release_config import ReleaseConfig, load_config
from cards.stage_log import StageLog

__all__ = ["load_config", "plan", "release"]


def plan(config: ReleaseConfig) -> str:
    """What a release would make and push, as text. Reads the config only."""
    run, built, arms = config.run_dir, config.build_config(), config.arm_names()
    members, judges = [member.name for member in built.zoo], [judge.name for judge in built.judges]
    judge, makes = config.judge(), []
    if config.world is not None:
        clips = ", ".join(f"{n:,} {split}" for split, n in config.world.clips.items())
        makes.append((f"{run}/toy/", f"clips ({clips}), questions and their truth"))
        makes.append((f"{run}/models/", f"base, verifier, zoo/{{{','.join(members)}}}"))
    made = f"answers of {', '.join(members)}; judged by {', '.join(judges)}" if members else "ready-made pairs"
    trained = ", ".join(arm for arm in arms if arm != "base")
    makes += [
        (f"{config.dataset}/", f"preferences, benchmark, responses, questions; {made}; card"),
        (f"{run}/arms/", f"from {config.base}: {trained}; round-N folders, model card in the last"),
        (f"{run}/results/", f"answers and verdicts of {'each of them' if len(arms) > 8 else ', '.join(arms)}"),
    ]
    if judge is not None:
        gold = f"; figures debiased by {', '.join(config.gold)}" if config.gold else ""
        makes.append(
            (f"{run}/evaluator/", f"judge {_name(judge)}: settings, tasks and card, weights of a local one{gold}")
        )
    makes += [(f"{run}/figures/", "PNG and SVG"), (f"{run}/", "run.json, arms.json, report.html, summary.json")]
    where, names = config.namespace or "NAMESPACE", repo_names(config.name, Path(config.dataset).name)
    pushes = [
        ("dataset", f"{where}/{names['dataset']}", f"{config.dataset}/: README.md, figures, Parquet, JSON"),
        ("model", f"{where}/{names['model']}", f"{run}/arms/RELEASE_ARM/round-N/: one tag a round, card on the last"),
    ]
    if judge is not None:
        pushes.append(("evaluator", f"{where}/{names['evaluator']}", f"{run}/evaluator/: judge, weights, tasks, card"))
    left, middle = max(len(path) for path, _ in makes), max(len(repo) for _, repo, _ in pushes)
    if config.namespace:
        seen = "public at the end" if config.push.public else "private"
        title = f"would push, {seen}, tagged {version_tag(config.push.version)}"
    else:
        title = "would push (no namespace is given, so nothing leaves this machine)"
    return "\n".join(
        [
            f"release {config.name}, seed {config.seed}: dry run, nothing is started, written or sent",
            "would make",
            *(f"  {path:<{left}}  {what}" for path, what in makes),
            title,
            *(f"  {kind:<9}  {repo:<{middle}}  {files}" for kind, repo, files in pushes),
            *([] if judge is not None else ["no evaluator repo: the config has no 'evaluator'"]),
        ]
    )


def _name(judge: dict) -> str:
    """What a judge is called, and whose weights it has."""
    said = [judge.get("name"), judge["kind"], judge.get("model")]
    return " ".join(dict.fromkeys(word for word in said if word))


def release(config: ReleaseConfig, overwrite: bool = False, say=print) -> dict:
    """Walk the whole road.

    Args:
        config: see :class:`ReleaseConfig`.
        overwrite: replace a dataset folder that was made from another config.
        say: where headlines and tables go.

    Returns:
        The content of ``summary.json``.
    """
    from cards import steps
    from cards.summary import summary_text, write_summary

    previous = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with StageLog(Path(config.run_dir), say) as log:
            if config.world is not None:
                steps.world(config, log)
                steps.models(config, log)
            steps.dataset(config, log, overwrite)
            if config.control:
                steps.control(config, log)
            steps.arms(config, log)
            run = steps.run_file(config)
            if config.judge() is not None:
                steps.evaluator(config, log, run)
            if config.gold:
                steps.gold(config, log, run)
            steps.figures(config, log, run)
            steps.cards(config, log, run)
            steps.report(config, log, run)
            summary = write_summary(run, log)
            say(summary_text(run, summary))
            return summary
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(*_signal) -> None:
    """Ctrl-C and a polite kill mean the same. Workers end first, or their pool would finish its whole queue."""
    import multiprocessing

    for worker in multiprocessing.active_children():
        worker.terminate()
    raise KeyboardInterrupt
