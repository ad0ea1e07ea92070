"""The figures about training: how the arms did, how far they went, and what was searched to choose them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cards import alpha_figure
from cards.run_folder import Run
from cards.style import FULL, GRID, HALF, INK, MUTED, arm_colour, arm_key, arm_of, marker
from recipes.arms.specs import CONTROLS

MANY = 10  # arms above which a figure gets more room
COLUMNS = 4  # panels side by side at most


def arm_accuracies(run: Run, plt):
    """Test accuracy of every arm with its 95 % interval; the first arm on top."""
    arms = {name: arm for name, arm in run.arms.items() if arm.get("accuracy") is not None}
    if not arms:
        return None
    figure, axis = plt.subplots(figsize=(HALF, _height(len(arms))))
    names = list(arms)[::-1]
    for place, name in enumerate(names):
        arm = arms[name]
        if arm.get("ci95"):
            ends = [100 * bound for bound in arm["ci95"]]
            axis.plot(ends, [place] * 2, color=arm_colour(name), linewidth=3, alpha=0.55)
        axis.plot(100 * arm["accuracy"], place, **marker(name))
        edge = 100 * (arm["ci95"][1] if arm.get("ci95") else arm["accuracy"])
        text = f"{100 * arm['accuracy']:.1f}"
        axis.annotate(text, (edge, place), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5)
    if "base" in arms:
        axis.axvline(100 * arms["base"]["accuracy"], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    for place in range(1, len(names)):  # a line between groups of variants, when there are any
        above, below = arm_of(names[place]), arm_of(names[place - 1])
        if (above.sft, above.visual) != (below.sft, below.visual):
            axis.axhline(place - 0.5, color=GRID, linewidth=0.8)
    axis.set_yticks(range(len(names)), [f"{name} *" if name == run.release_arm else name for name in names])
    axis.set_ylim(-0.6, len(names) - 0.4)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.09 * (high - low))
    # under the whole figure: long names leave the axis less room than the words need
    figure.supxlabel("accuracy on test, %, with 95 % interval clustered by video (* released)", fontsize=9, color=MUTED)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", labelcolor=INK)
    return figure


def accuracy_distance(run: Run, plt):
    """Does an arm win because it went further? Accuracy against the distance from the base."""
    arms = {name: arm for name, arm in run.arms.items() if arm.get("accuracy") is not None}
    arms = {name: arm for name, arm in arms.items() if arm.get("distance") is not None}
    if len(arms) < 2:
        return None
    many = len(arms) > MANY
    figure, axis = plt.subplots(figsize=(HALF, 0.75 * _height(len(arms)) if many else 3.0))
    # the base is at 0, far from all others: where they are many, they need the room, and it is a line
    shown = [name for name in arms if not (many and name == "base")]
    for name in shown:
        x, y = arms[name]["distance"], 100 * arms[name]["accuracy"]
        if arms[name].get("ci95"):
            ends = [100 * bound for bound in arms[name]["ci95"]]
            axis.plot([x, x], ends, color=arm_colour(name), linewidth=1.4 if many else 1.6, alpha=0.3 if many else 0.5)
        axis.plot(x, y, **marker(name), linestyle="none")
    handles = arm_key(shown)
    if many and "base" in arms:
        dashes = {"color": MUTED, "linewidth": 1, "linestyle": (0, (3, 3)), "label": "base (distance 0)"}
        handles.append(axis.axhline(100 * arms["base"]["accuracy"], **dashes))
    if run.release_arm in arms:
        arm = arms[run.release_arm]
        ring = {"marker": "o", "color": INK, "markerfacecolor": "none", "linestyle": "none", "label": "released"}
        ring = axis.plot(arm["distance"], 100 * arm["accuracy"], markersize=14, markeredgewidth=1, **ring)[0]
        handles.append(ring)
    axis.set(xlabel="distance ‖θ − θ_base‖", ylabel="accuracy on test, %")
    axis.margins(x=0.06)
    if many:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, handletextpad=0.6, columnspacing=1.2)
    else:
        axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.4)
    return figure


def learning_rates(run: Run, plt):
    """The search every arm had: validation accuracy against the learning rate; one panel a kind of variant."""
    searches = {}
    for name, arm in run.arms.items():
        search = [p for p in arm.get("lr_search") or [] if p.get("validation_accuracy") is not None]
        if len(search) > 1 and arm_of(name).searched:  # an arm derived from others shows the search of another
            searches[name] = sorted(search, key=lambda point: point["learning_rate"])
    if not searches:
        return None
    kinds: dict[str, list[str]] = {}
    for name in searches:
        kinds.setdefault(name[len(arm_of(name).scheme) :], []).append(name)
    width = HALF if len(kinds) == 1 else FULL
    figure, axes = plt.subplots(1, len(kinds), figsize=(width, 2.8), sharex=True, sharey=True, squeeze=False)
    for axis, (suffix, names) in zip(axes[0], kinds.items()):
        for name in names:
            axis.plot(
                [point["learning_rate"] for point in searches[name]],
                [100 * point["validation_accuracy"] for point in searches[name]],
                **marker(name, 6),
                linestyle=(0, (4, 2)) if arm_of(name).scheme in CONTROLS else "-",
            )
        if len(kinds) > 1:
            axis.set_title(suffix or "no suffix", loc="left", color=INK)
        axis.set_xlabel("learning rate")
    axis = axes[0][0]
    axis.set_xscale("log")
    ticks = sorted({point["learning_rate"] for search in searches.values() for point in search})
    for axis in axes[0]:
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    axes[0][0].set_ylabel("validation accuracy, %")
    axes[0][-1].legend(
        handles=arm_key(list(searches), 6, lines=True), loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.8
    )
    return figure


def alpha_curves(run: Run, plt):
    """What each alpha brought, one line a round, one panel an arm that chose an alpha; at most four side by side."""
    arms: dict[str, list[dict]] = {}
    for name, arm in run.arms.items():
        chosen = arm.get("alpha") or []
        rounds = [
            {"alpha": chosen[number] if number < len(chosen) else None, "alpha_curve": curve}
            for number, curve in enumerate(arm.get("alpha_curves") or [])
        ]
        if alpha_figure.searched(rounds):
            arms[name] = rounds
    if not arms:
        return None
    columns = min(len(arms), COLUMNS)
    lines = math.ceil(len(arms) / columns)
    promised = any(alpha_figure.has_promises(rounds) for rounds in arms.values())
    figure = plt.figure(figsize=(HALF if columns < 3 else FULL, 0.3 + lines * (3.6 if promised else 2.6)))
    # One grid for all, so that labels are aligned; a thin empty row keeps the lines of panels apart.
    heights = ([1.6, 1, 0.08] if promised else [1, 0.02]) * lines
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    shared: dict[str, object] = {}
    for number, (name, rounds) in enumerate(arms.items()):
        line, column = divmod(number, columns)
        top = line * (len(heights) // lines)
        upper = figure.add_subplot(grid[top, column], sharex=shared.get("upper"), sharey=shared.get("upper"))
        lower = None
        shared.setdefault("upper", upper)
        if promised:
            lower = figure.add_subplot(grid[top + 1, column], sharex=shared["upper"], sharey=shared.get("lower"))
            shared.setdefault("lower", lower)
        alpha_figure.panel(upper, lower, rounds, name, first=column == 0)
    _ticks([axis for axis in figure.axes], arms.values())
    alpha_figure.key(figure, [rounds for rounds in arms.values()])
    return figure


def _ticks(axes: Sequence, arms) -> None:
    alphas = sorted({point["alpha"] for rounds in arms for r in rounds for point in r["alpha_curve"]})
    for axis in axes:
        axis.set_xticks(alphas)


def _height(rows: int) -> float:
    """Inches of a figure with one row an arm; rows move together when there are many."""
    return max(3.0, (0.34 if rows <= MANY else 0.27) * rows + 0.8)
