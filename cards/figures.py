"""The figures of the cards and the report: one function a figure, one shared sober style (`cards.style`).

Every figure is drawn once and saved twice: as PNG for the cards, and as SVG whose colours are the page's own, so that
the report reads well in light and in dark. Files carry no times, so the same run gives the same bytes. Here are the
figures about the data; those about training are in `cards.arm_figures`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cards.arm_figures import accuracy_distance, alpha_curves, arm_accuracies, learning_rates
from cards.dataset_figures import coverage_curves, judges_against_each_other, length_difference
from cards.dataset_samples import draw_strips
from cards.run_folder import Run
from cards.style import BLUE, FULL, HALF, INK, MEMBERS, MUTED, STYLE


def draw_all(run: Run, folder: Path | None = None) -> list[str]:
    """Draw every figure that the run has measurements for, and the strips of the sample pairs.

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
    draw_strips(run, folder)
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
    most = max(1.0, float(np.ceil(max(values))))  # ready-made pairs bring scores on scales of their own
    axis.hist(values, bins=np.linspace(0, most, 41), color=BLUE, rwidth=0.88)
    middle = float(np.median(values))
    axis.axvline(middle, color=INK, linewidth=1.2)
    axis.annotate(
        f"median {middle:.2f}",
        (middle, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8.5,
    )
    axis.set(xlabel="margin = score of chosen − score of rejected", ylabel="pairs", xlim=(-0.01 * most, 1.01 * most))
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


FIGURES: dict[str, Callable] = {
    "arms": arm_accuracies,
    "accuracy-distance": accuracy_distance,
    "alpha-curves": alpha_curves,
    "learning-rates": learning_rates,
    "scores": score_distributions,
    "margins": margins,
    "win-rates": win_rates,
    "coverage": coverage_curves,
    "length": length_difference,
    "agreement": judges_against_each_other,
}
ALT = {
    "arms": "Test accuracy of every arm with its 95 % interval",
    "accuracy-distance": "Test accuracy of every arm against its distance from the base",
    "alpha-curves": "Validation accuracy and preference accuracy against alpha, per round",
    "learning-rates": "Validation accuracy against the learning rate, per arm",
    "scores": "Distribution of scores by judge and member",
    "margins": "Histogram of the margins between chosen and rejected",
    "win-rates": "Share of its pairs in which a member's answer is the chosen one",
    "coverage": "Share of questions with a right answer against the number of answers, zoo and members",
    "length": "Histogram of how much longer the chosen answer is than the rejected one",
    "agreement": "Scores of two judges for the same answers",
}
