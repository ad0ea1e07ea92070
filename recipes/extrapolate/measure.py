"""How far weights moved: sums gathered piece by piece, and the JSON that the card reads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from recipes.extrapolate.states import Realised, State

SWALLOWED = 0.95  # a cosine below this is warned about


@dataclass
class Sums:
    """Sums over weights, in fp64; they add up over pieces, tensors and modules.

    Attributes:
        weights: number of weights.
        weak: squares of WEAK's weights.
        strong: squares of STRONG's weights.
        trained: squares of STRONG − WEAK.
        added: squares of what was saved − STRONG.
        dot: products of (saved − STRONG) with (STRONG − WEAK).
        trained_count: weights that differ between WEAK and STRONG.
        added_count: of these, the ones that differ between STRONG and what was saved.
    """

    weights: int = 0
    weak: float = 0.0
    strong: float = 0.0
    trained: float = 0.0
    added: float = 0.0
    dot: float = 0.0
    trained_count: int = 0
    added_count: int = 0

    def __iadd__(self, other: Sums) -> Sums:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self

    @property
    def moved(self) -> float:
        """Squares of what was saved − WEAK."""
        return max(0.0, self.added + 2 * self.dot + self.trained)

    def realised(self, alpha: float) -> Realised:
        """The step STRONG → saved against the one that was meant, alpha · (STRONG − WEAK).

        All fields are NaN when no step was meant.
        """
        if alpha == 0 or self.trained == 0:
            return Realised(math.nan, math.nan, math.nan)
        cosine = math.copysign(1, alpha) * self.dot / math.sqrt(self.added * self.trained) if self.added else 0.0
        ratio = math.sqrt(self.added / self.trained) / abs(alpha)
        return Realised(max(-1.0, min(1.0, cosine)), ratio, self.added_count / self.trained_count)

    def realised_from_weak(self, alpha: float) -> Realised:
        """The step WEAK → saved against (1 + alpha) · (STRONG − WEAK). ``moved`` is not counted here."""
        if alpha == -1 or self.trained == 0:
            return Realised(math.nan, math.nan, math.nan)
        along = self.dot + self.trained
        cosine = math.copysign(1, 1 + alpha) * along / math.sqrt(self.moved * self.trained) if self.moved else 0.0
        ratio = math.sqrt(self.moved / self.trained) / abs(1 + alpha)
        return Realised(max(-1.0, min(1.0, cosine)), ratio, math.nan)

    def summary(self) -> dict[str, Any]:
        """Norms for the JSON: of WEAK's weights, of the training step, of the whole step, and that relative to WEAK."""
        norm, moved = math.sqrt(self.weak), math.sqrt(self.moved)
        return {
            "weights": self.weights,
            "norm": norm,
            "trained": math.sqrt(self.trained),
            "moved": moved,
            "relative": moved / norm if norm else None,
        }


def report(sums: dict[str, Sums], alpha: float, twins: Iterable[str] = (), **more: Any) -> dict[str, Any]:
    """The content of ``extrapolation.json``.

    Args:
        sums: by tensor.
        alpha: of the extrapolation.
        twins: tensors that are second copies of tied weights: listed with their module, not counted in all.
        more: further entries (types, fingerprints).

    Returns:
        ``alpha``, ``realised`` (``added``: STRONG → saved, ``from_weak``: WEAK → saved), ``all`` and by ``modules`` (a
        tensor's name without its last part) and ``kinds`` (modules whose names differ in layer numbers only): number of
        weights, Euclidean norm of WEAK, ``trained`` ‖STRONG − WEAK‖, ``moved`` ‖saved − WEAK‖ and ``relative``, that
        over the norm.
    """
    total, modules, kinds, twins = Sums(), {}, {}, set(twins)
    for name, held in sums.items():
        module = name.rpartition(".")[0] or name
        modules.setdefault(module, Sums()).__iadd__(held)
        if name not in twins:
            kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module), Sums()).__iadd__(held)
            total += held
    added, whole = vars(total.realised(alpha)), vars(total.realised_from_weak(alpha))
    return {
        "alpha": alpha,
        **more,
        "realised": {"added": _plain(added), "from_weak": _plain({k: whole[k] for k in ("cosine", "ratio")})},
        "differing": total.trained_count / total.weights if total.weights else None,
        "all": total.summary(),
        "kinds": {name: held.summary() for name, held in kinds.items()},
        "modules": {name: held.summary() for name, held in modules.items()},
    }


def movement(weak: State, strong: State, saved: State, alpha: float, **more: Any) -> dict[str, Any]:
    """:func:`report` of states in memory: from where a round started, to what training made of it, to what was kept."""
    sums, twins, seen = {}, [], set()
    for name, end in strong.items():
        if not end.is_floating_point():
            continue
        if (end.data_ptr(), end.shape) in seen and end.numel():
            twins.append(name)
        seen.add((end.data_ptr(), end.shape))
        start, kept = weak[name].double(), saved[name].double()
        trained, added = end.double() - start, kept - end.double()
        changed = trained != 0
        sums[name] = Sums(
            weights=end.numel(),
            weak=float((start * start).sum()),
            strong=float((end.double() ** 2).sum()),
            trained=float((trained * trained).sum()),
            added=float((added * added).sum()),
            dot=float((trained * added).sum()),
            trained_count=int(changed.sum()),
            added_count=int((changed & (added != 0)).sum()),
        )
    return report(sums, alpha, twins, **more)


def remarks(content: dict[str, Any], narrow_inputs: bool = False) -> list[str]:
    """What a person should read about the realised step: one line always, a warning where little of it is left.

    Args:
        content: of :func:`report`.
        narrow_inputs: WEAK or STRONG is stored in 16 bits.
    """
    added, whole, dtype = content["realised"]["added"], content["realised"]["from_weak"], content["dtype"]
    if added["cosine"] is None:
        none = "WEAK and STRONG hold the same weights" if not content["all"]["trained"] else "alpha is 0"
        return [f"no step: {none}"]
    from_weak = "" if whole["cosine"] is None else f" (whole step from WEAK: {whole['cosine']:.4f})"
    lines = [
        f"realised step: cosine {added['cosine']:.4f} with the intended one{from_weak}, length {added['ratio']:.4f} "
        f"of it, {100 * added['moved']:.1f} % of its weights moved"
    ]
    if added["cosine"] < SWALLOWED:
        advice = "take a larger alpha" if dtype == "float32" else "save with --dtype float32"
        lines.append(f"warning: {dtype} swallows much of the step (cosine {added['cosine']:.3f}); {advice}")
    if narrow_inputs and content["differing"] < 0.5:
        lines.append(
            f"warning: only {100 * content['differing']:.1f} % of the weights differ between WEAK and STRONG: 16-bit "
            "storage holds little of what was trained; extrapolate from their fp32 copies"
        )
    return lines


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}
