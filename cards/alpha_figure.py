"""The curves of an alpha search: what judged answers gave at each alpha, and what held-out pairs had promised.

Only the front runners of a search are judged (see `recipes.alpha`), so the two have a panel each: accuracy on
validation where it was measured, and below it the preference accuracy that every alpha has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cards.style import HALF, INK, MEMBERS, STYLE

# Rounds are told apart by colour and marker. Both are six; the markers are shifted each time the colours start again.
MARKERS = ("o", "s", "^", "D", "P", "v")


def draw(rounds: Sequence[dict], path: str | Path) -> Path | None:
    """Draw the saved searches of one run's rounds into a picture; the same rounds give the same bytes.

    Args:
        rounds: the rounds' metrics in order, each with ``alpha`` and ``alpha_curve`` (see `recipes.alpha`).
        path: the picture to write; its suffix decides the format (``.png``, ``.svg``).

    Returns:
        The path, or None when no round had a choice between alphas.
    """
    if not searched(rounds):
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    promised = has_promises(rounds)
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": path.stem}):
        figure, axes = pyplot.subplots(
            1 + promised, 1, figsize=(HALF, 4.6 if promised else 2.8), sharex=True, squeeze=False
        )
        panel(axes[0][0], axes[1][0] if promised else None, rounds)
        axes[0][0].set_xticks(sorted({point["alpha"] for r in rounds for point in r.get("alpha_curve") or []}))
        key(figure, [rounds])
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
        figure.savefig(path, dpi=160, metadata=metadata)
        pyplot.close(figure)
    return path


def searched(rounds: Sequence[dict]) -> list[tuple[int, dict]]:
    """The rounds, with their numbers, that had a choice between alphas."""
    return [(n, r) for n, r in enumerate(rounds, 1) if len(r.get("alpha_curve") or []) > 1]


def has_promises(rounds: Sequence[dict]) -> bool:
    """Whether some round measured preference accuracy on held-out pairs."""
    return any(_points(r["alpha_curve"], "preference_accuracy") for _, r in searched(rounds))


def panel(upper, lower, rounds: Sequence[dict], title: str = "", first: bool = True) -> None:
    """Draw one run's curves.

    Args:
        upper: the axes of judged accuracy: only the alphas that were judged have a point; a ring marks the chosen one.
        lower: the axes of preference accuracy, or None.
        rounds: metrics in order.
        title: over the panel.
        first: stands at the left, so that its axes are labelled.
    """
    for number, metrics in searched(rounds):
        curve = metrics["alpha_curve"]
        _line(upper, curve, "accuracy", number)
        chosen = next((p for p in curve if p["alpha"] == metrics.get("alpha")), None)
        if chosen is not None and chosen.get("accuracy") is not None:
            ring = {"markersize": 11, "markerfacecolor": "none", "color": _look(number)["color"]}
            upper.plot(chosen["alpha"], 100 * chosen["accuracy"], "o", **ring)
        if lower is not None:
            _line(lower, curve, "preference_accuracy", number)
    axes = [upper] if lower is None else [upper, lower]
    for axis in axes:
        axis.grid(axis="x", visible=False)
        axis.margins(y=0.14)
    upper.set_title(title, loc="left", color=INK)
    axes[-1].set_xlabel("alpha (ring: chosen)")
    if lower is not None:
        upper.tick_params(axis="x", labelbottom=False)
    if first:
        upper.set_ylabel("validation accuracy, %")
        if lower is not None:
            lower.set_ylabel("held-out pairs, %")


def key(figure, runs: Sequence[Sequence[dict]]) -> None:
    """One legend for all panels, when there is more than one round."""
    from matplotlib.lines import Line2D

    numbers = sorted({number for rounds in runs for number, _ in searched(rounds)})
    if len(numbers) > 1:
        handles = [Line2D([], [], **_look(number), label=f"round {number}") for number in numbers]
        columns = min(len(numbers), 5 if figure.get_figwidth() <= HALF else 10)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=1.4, columnspacing=1.4)


def _line(axis, curve: Sequence[dict], field: str, number: int) -> None:
    """One round's line through the alphas at which the field was measured; light where nothing was judged by it."""
    points = _points(curve, field)
    look = (
        _look(number) if field == "accuracy" else _look(number) | {"linewidth": 1.1, "alpha": 0.75, "markersize": 3.5}
    )
    axis.plot([alpha for alpha, _ in points], [100 * value for _, value in points], **look)


def _look(number: int) -> dict:
    place = (number - 1) % len(MEMBERS)
    shape = MARKERS[(place + (number - 1) // len(MEMBERS)) % len(MARKERS)]
    return {"color": MEMBERS[place], "marker": shape, "markersize": 4.5}


def _points(curve: Sequence[dict], field: str) -> list[tuple[float, float]]:
    return sorted((point["alpha"], point[field]) for point in curve if point.get(field) is not None)
