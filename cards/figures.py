"""The figures of the cards and the report: one function a figure, one shared sober style, colour-blind safe.

Every figure is drawn once and saved twice: as PNG for the cards, and as SVG whose colours are the page's own, so that
the report reads well in light and in dark. Files carry no times, so the same run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cards.run_folder import DPO_ARMS, Run

# Colours of the light page. report.py swaps the neutral ones for CSS variables, so each is used for one role only.
INK, MUTED, GRID, PAPER = "#1b1f24", "#5d6672", "#dfe3e8", "#ffffff"
# Okabe–Ito, without yellow and black: distinguishable with every common colour blindness, on white and on dark
BLUE, ORANGE, GREEN, SKY, RED, PINK = "#0072b2", "#d98200", "#009e73", "#56b4e9", "#d55e00", "#cc79a7"
MEMBERS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
ARM_COLOURS = {
    "base": "#7f8894",
    "sft_chosen": ORANGE,
    "dpo": SKY,
    "dpo_expo": PINK,
    "iter": BLUE,
    "iter_w2s": GREEN,
}
ARM_MARKERS = {"base": "o", "sft_chosen": "s", "dpo": "^", "dpo_expo": "v", "iter": "D", "iter_w2s": "P"}

HALF, FULL = 5.5, 11.0  # inches; two halves stand side by side in the report at their natural size

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 5,
    "ytick.major.pad": 5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
}


def draw_all(run: Run, folder: Path | None = None) -> list[str]:
    """Draw every figure that the run has measurements for.

    Args:
        run: the run to draw.
        folder: where ``NAME.png`` and ``NAME.svg`` go; default ``figures/`` in the run folder.

    Returns:
        The names of the figures that were drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder = folder or run.folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in FIGURES.items():
        with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
            figure = draw(run, pyplot)
            if figure is None:
                continue
            figure.canvas.draw()
            figure.set_layout_engine("none")  # laid out once: the layout costs more than the drawing
            figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
            figure.savefig(
                folder / f"{name}.svg",
                transparent=True,
                metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
            )
            pyplot.close(figure)
        drawn.append(name)
    return drawn


def score_distributions(run: Run, plt):
    """Scores by judge and member: one row a member, one panel a judge and criterion."""
    judges = run.judge_scores
    if not judges:
        return None
    members = sorted({member for scores in judges.values() for member in scores})
    figure, axes = plt.subplots(1, len(judges), figsize=(FULL, 0.42 * len(members) + 1.1), sharey=True, squeeze=False)
    bins = np.linspace(0, 1, 21)
    members = members[::-1]  # the first one on top
    for axis, (judge, scores) in zip(axes[0], judges.items()):
        parts = {name: np.histogram(values, bins=bins)[0] / len(values) for name, values in scores.items() if values}
        tallest = max(heights.max() for heights in parts.values())  # a panel's rows share one scale
        for place, member in enumerate(members):
            values = np.asarray(scores.get(member, []))
            if len(values) == 0:
                continue
            colour = MEMBERS[(len(members) - 1 - place) % len(MEMBERS)]
            heights = 0.85 * parts[member] / tallest
            axis.bar(bins[:-1] + 0.025, heights, width=0.045, bottom=place, color=colour, linewidth=0)
            axis.plot([values.mean()] * 2, [place, place + 0.85], color=INK, linewidth=1.2)
        axis.set_title(judge, loc="left", color=INK)
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.08, len(members))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_yticks(range(len(members)), members)
        axis.grid(axis="x", visible=False)
        axis.tick_params(axis="y", labelcolor=INK)
        for label in axis.get_yticklabels():
            label.set_verticalalignment("bottom")
    figure.get_layout_engine().set(wspace=0.06)
    figure.supxlabel("score, normalised by its declared range (line: mean)", fontsize=9, color=MUTED)
    return figure


def margins(run: Run, plt):
    """How far apart chosen and rejected are."""
    values = [pair["margin"] for pair in run.pairs if pair.get("margin") is not None]
    if not values:
        return None
    figure, axis = plt.subplots(figsize=(HALF, 2.7))
    axis.hist(values, bins=np.linspace(0, 1, 41), color=BLUE, rwidth=0.88)
    middle = float(np.median(values))
    axis.axvline(middle, color=INK, linewidth=1.2)
    axis.annotate(
        f"median {middle:.2f}",
        (middle, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if middle > 0.5 else 5, -2),
        textcoords="offset points",
        ha="right" if middle > 0.5 else "left",
        va="top",
        fontsize=8.5,
    )
    axis.set(xlabel="margin = score of chosen − score of rejected", ylabel="pairs", xlim=(-0.01, 1.01))
    axis.grid(axis="x", visible=False)
    return figure


def win_rates(run: Run, plt):
    """Share of its pairs in which a member's answer is the chosen one, with the number of pairs."""
    zoo = [member for member in run.zoo if member["win_rate"] is not None]
    if not zoo:
        return None
    zoo.sort(key=lambda member: member["win_rate"])
    figure, axis = plt.subplots(figsize=(HALF, max(2.7, 0.34 * len(zoo) + 0.8)))
    axis.barh([m["name"] for m in zoo], [100 * m["win_rate"] for m in zoo], color=BLUE, height=0.55)
    for place, member in enumerate(zoo):
        text = f"{100 * member['win_rate']:.0f} % of {member['chosen'] + member['rejected']:,}"
        axis.annotate(text, (100, place), xytext=(8, 0), textcoords="offset points", va="center", annotation_clip=False)
    axis.axvline(50, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axis.set(xlabel="chosen, % of the pairs the member is in", xlim=(0, 100))
    axis.set_xticks(range(0, 101, 25))
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", labelcolor=INK)
    return figure


def arm_accuracies(run: Run, plt):
    """Test accuracy of every arm with its 95 % interval; the first arm on top."""
    arms = {name: arm for name, arm in run.arms.items() if arm.get("accuracy") is not None}
    if not arms:
        return None
    figure, axis = plt.subplots(figsize=(HALF, max(3.0, 0.34 * len(arms) + 0.8)))
    names = list(arms)[::-1]
    for place, name in enumerate(names):
        arm, colour = arms[name], ARM_COLOURS.get(name, BLUE)
        if arm.get("ci95"):
            axis.plot([100 * bound for bound in arm["ci95"]], [place] * 2, color=colour, linewidth=3, alpha=0.55)
        axis.plot(100 * arm["accuracy"], place, ARM_MARKERS.get(name, "o"), color=colour, markersize=7.5)
        edge = 100 * (arm["ci95"][1] if arm.get("ci95") else arm["accuracy"])
        text = f"{100 * arm['accuracy']:.1f}"
        axis.annotate(text, (edge, place), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5)
    if "base" in arms:
        axis.axvline(100 * arms["base"]["accuracy"], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    axis.set_yticks(range(len(names)), [f"{name} *" if name == run.release_arm else name for name in names])
    axis.set_ylim(-0.6, len(names) - 0.4)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.07 * (high - low))
    axis.set_xlabel("accuracy on test, %, with 95 % interval clustered by video (* released)")
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", labelcolor=INK)
    return figure


def alpha_curves(run: Run, plt):
    """Validation accuracy against alpha, one line a round, one panel an arm that chose an alpha."""
    curves = {
        name: [curve for curve in arm.get("alpha_curves") or [] if curve and len(curve) > 1]
        for name, arm in run.arms.items()
    }
    curves = {name: rounds for name, rounds in curves.items() if rounds}
    if not curves:
        return None
    figure, axes = plt.subplots(1, len(curves), figsize=(HALF, 2.8), sharey=True, squeeze=False)
    for axis, (name, rounds) in zip(axes[0], curves.items()):
        chosen = run.arms[name].get("alpha") or []
        for number, curve in enumerate(rounds):
            curve = sorted(curve, key=lambda point: point["alpha"])
            alpha, accuracy = [p["alpha"] for p in curve], [100 * p["accuracy"] for p in curve]
            colour = MEMBERS[number % len(MEMBERS)]
            axis.plot(alpha, accuracy, marker="o", markersize=3.5, color=colour, label=f"round {number + 1}")
            if number < len(chosen) and chosen[number] in alpha:
                best = accuracy[alpha.index(chosen[number])]
                axis.plot(chosen[number], best, "o", markersize=10, markerfacecolor="none", color=colour)
        axis.set_title(name, loc="left", color=INK)
        axis.set_xlabel("alpha (ring: chosen)")
        axis.set_xticks(sorted({point["alpha"] for curve in rounds for point in curve}))
        axis.grid(axis="x", visible=False)
        if len(rounds) > 1:
            axis.legend(loc="best", handlelength=1.2)
    axes[0][0].set_ylabel("validation accuracy, %")
    return figure


def accuracy_distance(run: Run, plt):
    """Does an arm win because it went further? Accuracy against the distance from the base."""
    arms = {name: arm for name, arm in run.arms.items() if arm.get("accuracy") is not None}
    arms = {name: arm for name, arm in arms.items() if arm.get("distance") is not None}
    if len(arms) < 2:
        return None
    figure, axis = plt.subplots(figsize=(HALF, 3.0))
    for name, arm in arms.items():
        x, y, colour = arm["distance"], 100 * arm["accuracy"], ARM_COLOURS.get(name, BLUE)
        if arm.get("ci95"):
            axis.plot([x, x], [100 * bound for bound in arm["ci95"]], color=colour, linewidth=1.6, alpha=0.5)
        marker = ARM_MARKERS.get(name, "o")
        axis.plot(x, y, marker, color=colour, markersize=7.5, linestyle="none", label=name)
    axis.set(xlabel="distance ‖θ − θ_base‖", ylabel="accuracy on test, %")
    axis.margins(x=0.06)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.4)
    return figure


def learning_rates(run: Run, plt):
    """The search every arm had: validation accuracy against the learning rate."""
    searches = {name: arm.get("lr_search") or [] for name, arm in run.arms.items()}
    searches = {name: [p for p in s if p.get("validation_accuracy") is not None] for name, s in searches.items()}
    searches = {name: search for name, search in searches.items() if len(search) > 1}
    if not searches:
        return None
    figure, axis = plt.subplots(figsize=(HALF, 2.8))
    for name, search in searches.items():
        search = sorted(search, key=lambda point: point["learning_rate"])
        axis.plot(
            [point["learning_rate"] for point in search],
            [100 * point["validation_accuracy"] for point in search],
            marker=ARM_MARKERS.get(name, "o"),
            markersize=5.5,
            color=ARM_COLOURS.get(name, BLUE),
            label=name,
            linestyle="-" if name in DPO_ARMS else (0, (4, 2)),
        )
    axis.set_xscale("log")
    ticks = sorted({point["learning_rate"] for search in searches.values() for point in search})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel="learning rate", ylabel="validation accuracy, %")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


FIGURES: dict[str, Callable] = {
    "arms": arm_accuracies,
    "accuracy-distance": accuracy_distance,
    "alpha-curves": alpha_curves,
    "learning-rates": learning_rates,
    "scores": score_distributions,
    "margins": margins,
    "win-rates": win_rates,
}
ALT = {
    "arms": "Test accuracy of every arm with its 95 % interval",
    "accuracy-distance": "Test accuracy of every arm against its distance from the base",
    "alpha-curves": "Validation accuracy against alpha, per round",
    "learning-rates": "Validation accuracy against the learning rate, per arm",
    "scores": "Distribution of scores by judge and member",
    "margins": "Histogram of the margins between chosen and rejected",
    "win-rates": "Share of its pairs in which a member's answer is the chosen one",
}
