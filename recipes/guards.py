"""Health of a round: is the model still answering like a model, or has preference training broken it?

Many rounds of pure DPO can raise margins while answers fall apart: they never end, they repeat themselves, they grow
long, and the chosen answers lose probability along with the rejected ones (likelihood displacement, Razin et al., arXiv
2410.08847). Each of these is measured once a round on validation, and a limit stops the run at the last good round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from dataset_builder.errors import KitError
from dataset_builder.text import words

if TYPE_CHECKING:
    from dataset_builder.models.base import ChatReply

TIMES = 3  # an n-gram that stands this often in a row is a repetition; twice happens in good prose ("very, very")


@dataclass(frozen=True)
class GuardLimits:
    """How far a round may go. Infinity switches a limit off (1 does for the shares).

    Attributes:
        malformed: share of answers that are empty or did not end, 0–1.
        repeated: share of answers that repeat themselves, 0–1.
        chosen_logp_drop: nats a sequence that the chosen answers may lose against the base.
        margin: nats that the margin between chosen and rejected may grow against the base.
        length_ratio: mean answer length against the base's, either way; at least 1.
    """

    malformed: float = 0.1
    repeated: float = 0.1
    chosen_logp_drop: float = 5.0
    margin: float = 50.0
    length_ratio: float = 2.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = {"malformed": (0, 1), "repeated": (0, 1), "length_ratio": (1, math.inf)}.get(
                field.name, (0, math.inf)
            )
            if not isinstance(value, (int, float)) or not low <= value <= high:
                raise KitError(f"guards: {field.name} is {value!r}; it must be a number from {low} to {high:g}")


@dataclass(frozen=True)
class RoundHealth:
    """What was measured after a round (or of the base).

    Attributes:
        malformed: share of answers that are empty or did not end, 0–1.
        repeated: share of answers that repeat themselves, 0–1.
        chosen_logp: mean log-prob of held-out chosen answers, nats a sequence.
        margin: mean log-prob of chosen minus that of rejected over held-out pairs, nats a sequence.
        mean_length: words an answer (normalised as in `dataset_builder.text`; Chinese and Japanese characters count as
            words).
    """

    malformed: float
    repeated: float
    chosen_logp: float
    margin: float
    mean_length: float

    def as_dict(self) -> dict[str, float | None]:
        """The fields as JSON values (NaN and infinity become null)."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def health(replies: Sequence[ChatReply], chosen_logp: float, margin: float) -> RoundHealth:
    """Measure one round.

    Args:
        replies: the model's answers to validation questions.
        chosen_logp: mean log-prob of held-out chosen answers, nats a sequence.
        margin: mean log-prob difference chosen − rejected over held-out pairs, nats a sequence.

    Raises:
        KitError: when there are no replies.
    """
    if not replies:
        raise KitError("guards: there are no answers to measure; is the validation split empty?")
    spoken = [words(reply.text) for reply in replies]
    malformed = sum(not said or reply.finish_reason == "length" for said, reply in zip(spoken, replies))
    return RoundHealth(
        malformed=malformed / len(replies),
        repeated=sum(repeats(said) for said in spoken) / len(replies),
        chosen_logp=float(chosen_logp),
        margin=float(margin),
        mean_length=sum(map(len, spoken)) / len(replies),
    )


def repeats(said: Sequence[str], times: int = TIMES) -> bool:
    """Whether some n-gram of words, of any length n, stands `times` times in a row.

    With period n, `times` copies in a row are ``(times - 1) * n`` consecutive positions at which a word equals the one
    n later.

    Args:
        said: the words of an answer.
        times: at least 2.
    """
    for n in range(1, len(said) // times + 1):
        run = 0
        for first, later in zip(said, said[n:]):
            run = run + 1 if first == later else 0
            if run == (times - 1) * n:
                return True
    return False


def violations(now: RoundHealth, base: RoundHealth, limits: GuardLimits | None = None) -> list[str]:
    """What is wrong with a round: one line each with the value and the limit; empty when it may go on.

    A base that is above a share's limit itself (one that was never taught to end, say) raises that limit to its own
    share: a guard looks for damage, and a round that leaves things as they were did none.

    Args:
        now: the health of the round.
        base: the health of the base, measured on the same questions and pairs.
        limits: default limits when None.
    """
    limits = limits or GuardLimits()
    found = [
        f"{name} is not a finite number ({getattr(now, name)}): the weights have diverged"
        for name in ("chosen_logp", "margin")
        if not math.isfinite(getattr(now, name))
    ]
    for name, what in (("malformed", "empty or unfinished answers"), ("repeated", "answers that repeat themselves")):
        share, limit, own = getattr(now, name), getattr(limits, name), getattr(base, name)
        if share > max(limit, own):
            found.append(f"{name}: {100 * share:.1f} % {what}, limit {100 * limit:.1f} % (base {100 * own:.1f} %)")
    drop = base.chosen_logp - now.chosen_logp
    if math.isfinite(drop) and drop > limits.chosen_logp_drop:
        found.append(
            f"chosen_logp: fell by {drop:.1f} nats a sequence from {base.chosen_logp:.1f} to {now.chosen_logp:.1f}, "
            f"limit {limits.chosen_logp_drop:g}"
        )
    growth = now.margin - base.margin
    if math.isfinite(growth) and growth > limits.margin:
        found.append(
            f"margin: grew by {growth:.1f} nats a sequence from {base.margin:.1f} to {now.margin:.1f}, "
            f"limit {limits.margin:g}"
        )
    ratio = _ratio(now.mean_length, base.mean_length)
    if max(ratio, 1 / ratio if ratio else math.inf) > limits.length_ratio:
        found.append(
            f"mean_length: {now.mean_length:.1f} words an answer against the base's {base.mean_length:.1f} "
            f"(ratio {ratio:.2f}), limit {limits.length_ratio:g} either way"
        )
    return found


def _ratio(now: float, base: float) -> float:
    """``now / base``; two models that say nothing are equally long."""
    if base == 0:
        return 1.0 if now == 0 else math.inf
    return now / base
