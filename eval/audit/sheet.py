"""What probes are made of: the set-up they look at before asking, and the sheet of verdicts they read afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

from eval.audit.asking import Ask, Reading
from eval.audit.cases import Case
from eval.audit.findings import Measure, Values


@dataclass(frozen=True)
class Setup:
    """What a probe knows before anything is asked.

    Attributes:
        cases: of the audit.
        needs_frames: whether the judge looks at the video.
        num_frames: how many frames it looks at.
        is_endpoint: whether each answer is a call of its own.
        asked_anew: whether a second asking reaches the model, and not a cache of its first replies.
        own: names of models of the judge's own family.
        blind: whether the same judge without frames can be asked too.
    """

    cases: Sequence[Case]
    needs_frames: bool
    num_frames: int
    is_endpoint: bool = False
    asked_anew: bool = True
    own: frozenset[str] = frozenset()
    blind: bool = False


class Probe(Protocol):
    """One question about a judge."""

    name: str
    title: str

    def problem(self, setup: Setup) -> str | None:
        """Why it cannot be answered for this judge and set, or None."""

    def asks(self, setup: Setup) -> Iterable[Ask]:
        """What has to be judged."""

    def measures(self, sheet: Sheet) -> Iterable[Measure]:
        """What came out."""


@dataclass
class Sheet:
    """All verdicts of an audit.

    Attributes:
        setup: of the audit.
        readings: by what was asked.
    """

    setup: Setup
    readings: dict[Ask, Reading]
    _reason: str | None = field(default=None, repr=False)

    def accept(self, ask: Ask) -> float | None:
        """1 if the answer was taken for right, 0 if not, None without a verdict."""
        return self._read(ask).accept

    def score(self, ask: Ask) -> float | None:
        """The score from 0 to 1, None without one."""
        return self._read(ask).score

    def _read(self, ask: Ask) -> Reading:
        reading = self.readings[ask]
        self._reason = self._reason or reading.error
        return reading

    def gather(
        self, value: Callable[[int, Case], float | None], applies: Callable[[Case], bool] = lambda case: True
    ) -> Values:
        """One number per case.

        Args:
            value: of a case's number and the case; None where a verdict is missing.
            applies: cases for which there is such a number at all.
        """
        found = Values()
        for number, case in enumerate(self.setup.cases):
            if applies(case):
                self._reason = None
                found.add(case.video_id, value(number, case), self._reason)
        return found


def mean_of_answers(texts: Sequence[str], value: Callable[[str], float | None]) -> float | None:
    """Mean of a number over some answers to one question; None if one of them has none."""
    found = [value(text) for text in texts]
    return None if not found or any(one is None for one in found) else fmean(found)


def difference(a: float | None, b: float | None) -> float | None:
    """``a - b``; None if one is None."""
    return None if a is None or b is None else a - b
