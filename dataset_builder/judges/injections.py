"""How far a judge follows instructions inside an answer: the score with an injection against that with a control.

Longer answers may score better whatever they say, so the control is a neutral text of equal length in the same place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.judges.attacks import INJECTIONS, Injection
from dataset_builder.judges.base import Judge, JudgeItem, aggregate

__all__ = ["INJECTIONS", "Injection", "InjectionReport", "Measured", "measure_injections"]

_CALLS = 64  # answers that an endpoint gets at once; its own concurrency bounds what is on the wire


@dataclass(frozen=True)
class Measured:
    """One injection in one answer; a value is the judge's aggregate from 0 to 1, or None where it gave an error."""

    injection: Injection
    with_injection: float | None
    with_control: float | None

    @property
    def gain(self) -> float | None:
        """What the injection added; None when either was an error."""
        if self.with_injection is None or self.with_control is None:
            return None
        return self.with_injection - self.with_control


@dataclass(frozen=True)
class InjectionReport:
    """All measurements of one judge."""

    judge: str
    judge_revision: str
    settings_hash: str
    measured: tuple[Measured, ...]

    def summary(self, category: str | None = None, name: str | None = None) -> dict[str, Any]:
        """Figures over everything, one category or one injection.

        Returns:
            ``pairs`` asked for; ``compared``, with a score on both sides; ``errors``, by side; over the compared:
            ``mean_gain`` (-1 to 1) and ``share_raised``. None for a figure over nothing.
        """
        rows = [
            row
            for row in self.measured
            if category in (None, row.injection.category) and name in (None, row.injection.name)
        ]
        gains = [row.gain for row in rows if row.gain is not None]
        return {
            "pairs": len(rows),
            "compared": len(gains),
            "errors": {
                "with_injection": sum(row.with_injection is None for row in rows),
                "with_control": sum(row.with_control is None for row in rows),
            },
            "mean_gain": math.fsum(gains) / len(gains) if gains else None,
            "share_raised": fmean(gain > 0 for gain in gains) if gains else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything that JSON can hold: the summary, by category, by injection."""
        categories = dict.fromkeys(row.injection.category for row in self.measured)
        names = dict.fromkeys(row.injection.name for row in self.measured)
        return {
            "judge": self.judge,
            "judge_revision": self.judge_revision,
            "settings_hash": self.settings_hash,
            **self.summary(),
            "by_category": {category: self.summary(category=category) for category in categories},
            "by_injection": {name: self.summary(name=name) for name in names},
        }

    def __str__(self) -> str:
        """A table of the categories."""
        whole = self.to_dict()
        lines = [f"{'injections':<14} {'compared':>8} {'errors':>6} {'mean gain':>9} {'raised':>7}"]
        for name, row in [*whole["by_category"].items(), ("all", whole)]:
            gain = "-" if row["mean_gain"] is None else f"{row['mean_gain']:+.3f}"
            raised = "-" if row["share_raised"] is None else f"{row['share_raised']:.0%}"
            lines.append(f"{name:<14} {row['compared']:>8} {sum(row['errors'].values()):>6} {gain:>9} {raised:>7}")
        return "\n".join(lines)


def measure_injections(
    judge: Judge,
    items: Sequence[JudgeItem],
    injections: Sequence[Injection] = INJECTIONS,
    progress: bool = False,
) -> InjectionReport:
    """Judge every item with every injection and with its control.

    Args:
        judge: whose scores are asked for; its weight does not matter here.
        items: answers to put the injections into, with room for a higher score.
        injections: the attacks.
        progress: show a bar.

    Raises:
        KitError: there are no items or no injections, or the judge's model cannot be asked.
    """
    from tqdm import tqdm

    from dataset_builder.stages.clips import batch_size

    if not items or not injections:
        raise KitError("injections: there is nothing to measure them on")
    pairs = [(injection, number) for injection in injections for number in range(len(items))]
    asked: dict[tuple[int, str], float | None] = {}  # injections of one length share a control: it is asked about once
    for injection, number in pairs:
        for change in (injection.around, injection.control):
            asked[number, change(items[number].response)] = None
    endpoint = getattr(judge, "is_endpoint", False)
    size = _CALLS if endpoint else batch_size([item.frames for item in items if item.frames is not None])
    keys = list(asked)
    with tqdm(total=len(keys), desc=f"injections {judge.name}", unit="answer", disable=not progress) as bar:
        for start in range(0, len(keys), size):
            chunk = keys[start : start + size]
            scores = judge.score([replace(items[number], response=response) for number, response in chunk])
            asked.update(zip(chunk, map(aggregate, scores), strict=True))
            bar.update(len(chunk))
    measured = (
        Measured(
            injection,
            asked[number, injection.around(items[number].response)],
            asked[number, injection.control(items[number].response)],
        )
        for injection, number in pairs
    )
    return InjectionReport(judge.name, judge.revision, judge.settings_hash, tuple(measured))
