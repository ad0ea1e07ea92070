"""Gold labels in a release: debiased figures of the evaluator, and the labels without their makers' names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.gold.rows import GoldLabel, latest, read_gold


def debias_arms(judged: Path, files: Sequence[Path], target: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Debias the evaluator's figures of every arm that has labels, and write the labels that go along.

    Args:
        judged: folder of the evaluator's verdicts, ``ARM.json``.
        files: label files, as ``python -m eval label`` writes them.
        target: where the labels are written, with ``annotator-N`` in the place of names: from these and the verdicts
            ``python -m eval debias`` computes the same figures.
        say: where notes go.

    Returns:
        ``arms`` (by name what :func:`eval.commands.debias.debias_record` says), ``videos`` and ``labels`` (labelled
        videos, labels used); ``{"arms": {}, …}`` when no arm has enough of them.

    Raises:
        KitError: a label file cannot be read.
    """
    from dataset_builder.errors import KitError
    from eval.commands.debias import debias_record
    from eval.results import Results, write_text

    labels = [label for label in latest(label for path in files for label in read_gold(path)) if not label.is_pair]
    arms: dict[str, Any] = {}
    for name in ("base", *sorted(path.stem for path in judged.glob("*.json") if path.stem != "base")):
        if name in ("blind", "without_frames") or not (judged / f"{name}.json").is_file():
            continue  # no arm's answers, or no arm's judge
        try:
            arms[name] = debias_record(Results.load(judged / f"{name}.json"), labels)
        except KitError as error:
            say(f"  {name}: not debiased: {error}")
    write_text(target, "".join(f"{label.as_json()}\n" for label in unnamed(labels)))
    return {"arms": arms, "videos": len({label.video_id for label in labels}), "labels": len(labels)}


def unnamed(labels: Sequence[GoldLabel]) -> list[GoldLabel]:
    """The same labels by ``annotator-1``, ``annotator-2``, … in the order of their names, without times."""
    names = {name: f"annotator-{n}" for n, name in enumerate(sorted({label.annotator for label in labels}), 1)}
    return [dataclasses.replace(label, annotator=names[label.annotator], labelled_at=None) for label in labels]
