"""What a probe found: a number with its interval, clustered by video, and whether it says that a judge is biased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from eval.stats import Estimate, cluster_mean, holm, paired_test, unanimous_width

BIAS, RATE, FIGURE = "bias", "rate", "figure"
CLEAR = 0.05  # level, after Holm's correction over all biases of an audit
_SAME = 1e-12


@dataclass(frozen=True)
class Finding:
    """One number about a judge.

    Attributes:
        probe: name of the probe.
        name: unique in the probe.
        label: what tables call it.
        kind: ``bias`` is a signed difference that an unbiased judge has none of, and is tested; ``rate`` is a share of
            answers for which an ideal judge would have 0, and ``figure`` describes.
        estimate: mean with a 95 % interval clustered by video.
        signed: whether the number can be negative.
        missing: cases without it, because a verdict is missing.
        p: of the per-video sign-flip test (biases only).
        p_holm: the same, corrected for all biases of the audit.
    """

    probe: str
    name: str
    label: str
    kind: str
    estimate: Estimate
    signed: bool = False
    missing: int = 0
    p: float | None = None
    p_holm: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the number is a bias beyond doubt."""
        return self.p_holm is not None and self.p_holm < CLEAR

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "estimate": self.estimate.as_dict(), "clear": self.clear}


@dataclass
class Values:
    """One number per case, with the videos they cluster by.

    Attributes:
        values: of the cases that have it.
        clusters: their videos.
        missing: cases that lack it because a verdict is missing.
        reason: why the first of these has none.
    """

    values: list[float] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)
    missing: int = 0
    reason: str | None = None

    def add(self, video_id: str, value: float | None, reason: str | None = None) -> None:
        """One case's number, or why it has none."""
        if value is None:
            self.missing += 1
            self.reason = self.reason or reason
        else:
            self.values.append(float(value))
            self.clusters.append(video_id)


@dataclass(frozen=True)
class Measure:
    """What a probe hands over: the fields of a :class:`Finding` before anything is computed, with its numbers.

    ``bounds`` are the least and largest possible number; (-1, 1) for a bias and (0, 1) for the rest by default.
    """

    name: str
    label: str
    kind: str
    values: Values
    bounds: tuple[float, float] | None = None


class Unmeasured(Exception):
    """A probe has nothing to say, and says why."""


def finding(probe: str, measure: Measure) -> Finding:
    """A probe's numbers as a finding, without p-values.

    Raises:
        Unmeasured: there is no number, or they are all about one video.
    """
    found = measure.values
    if not found.values:
        raise Unmeasured(found.reason or "no question of this set can show it")
    if len(set(found.clusters)) < 2:
        raise Unmeasured("everything that can show it is about one video; an interval needs two")
    bounds = measure.bounds or ((-1.0, 1.0) if measure.kind == BIAS else (0.0, 1.0))
    estimate = mean_of(found, bounds)
    return Finding(probe, measure.name, measure.label, measure.kind, estimate, bounds[0] < 0, found.missing)


def mean_of(found: Values, bounds: tuple[float, float]) -> Estimate:
    """`eval.stats.cluster_mean`, and where all videos agree an interval as wide as so few of them leave open."""
    estimate = cluster_mean(found.values, found.clusters, bounds)
    if estimate.se > _SAME or estimate.mean in bounds:
        return estimate
    share, mean = unanimous_width(estimate.clusters), estimate.mean  # so many videos may stand at either end
    return replace(estimate, low=mean - share * (mean - bounds[0]), high=mean + share * (bounds[1] - mean))


def with_p_values(found: Sequence[tuple[Finding, Values]], draws: int, seed: int) -> list[Finding]:
    """The findings, those that are biases with their p-values: per-video sign flips, Holm over all of them."""
    tested = {
        place: paired_test(values.values, [0.0] * len(values.values), values.clusters, draws, seed).p
        for place, (one, values) in enumerate(found)
        if one.kind == BIAS
    }
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [replace(one, p=tested.get(place), p_holm=corrected.get(place)) for place, (one, _) in enumerate(found)]
