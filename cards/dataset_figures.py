"""Figures of the dataset card on coverage, length and the agreement of judges, in the style of `cards.style`."""

from __future__ import annotations

import numpy as np

from cards.dataset_stats import coverage, judge_agreement, length_of_pairs, reference_judge
from cards.run_folder import Run
from cards.style import BLUE, FULL, GRID, HALF, INK, MEMBERS, MUTED, ORANGE
from dataset_builder.judges.base import judge_values

_PANELS = 3  # pairs of judges that are shown
_CELLS = 11  # of a panel on each side


def coverage_curves(run: Run, plt):
    """Share of questions with a right answer against the number of answers: the zoo and each member."""
    found = coverage(run.train_answers, reference_judge(run.provenance, [judge["name"] for judge in run.judges]))
    if found is None:
        return None
    figure, axis = plt.subplots(figsize=(HALF, 2.9))
    steps = np.array(found["steps"])
    zoo = found["zoo"]
    low, high = (100 * np.array([getattr(point, end) for point in zoo]) for end in ("low", "high"))
    axis.fill_between(steps, low, high, color=BLUE, alpha=0.18, linewidth=0)
    means = [100 * point.mean for point in zoo]
    axis.plot(steps, means, color=BLUE, marker="o", markersize=5, label="zoo, answers drawn at random")
    for place, (name, curve) in enumerate(found["members"].items()):
        colour = MEMBERS[(place + 1) % len(MEMBERS)]
        axis.plot(
            steps[: len(curve)],
            [100 * point.mean for point in curve],
            color=colour,
            marker="D",
            markersize=4.5,
            linestyle="--",
            linewidth=1.2,
            label=name,
        )
    axis.annotate(
        f"{means[-1]:.1f} %",
        (steps[-1], means[-1]),
        xytext=(0, -14),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        color=INK,
    )
    axis.set_xticks(steps)
    axis.set(xlabel="answers to a question", ylabel="questions with a right answer, %", ylim=(None, 102))
    axis.set_xlim(steps[0] - 0.25, steps[-1] + 0.35)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def length_difference(run: Run, plt):
    """How much longer chosen answers are than rejected ones."""
    shares = length_of_pairs(run.pair_texts)
    if shares is None:
        return None
    difference = np.array([len(pair["chosen"]) - len(pair["rejected"]) for pair in run.pair_texts])
    reach = max(3, int(np.ceil(np.quantile(np.abs(difference), 0.99))))
    step = -(-reach // 20)  # one bar a character where they are few
    reach = step * -(-reach // step)
    centres = np.arange(-reach, reach + 1, step)
    counts = np.histogram(np.clip(difference, -reach, reach), bins=np.append(centres - step / 2, reach + step / 2))[0]
    colours = [ORANGE if centre < 0 else BLUE if centre > 0 else MUTED for centre in centres]
    figure, axis = plt.subplots(figsize=(HALF, 2.9))
    axis.bar(centres, counts, width=0.86 * step, color=colours, linewidth=0)
    sides = (("shorter", 0, ORANGE, "left"), ("equal", 0.5, MUTED, "center"), ("longer", 1, BLUE, "right"))
    for name, place, colour, align in sides:
        axis.annotate(
            f"{name} {100 * shares[name].mean:.0f} %",
            (place, 1.02),
            xycoords="axes fraction",
            ha=align,
            va="bottom",
            color=colour,
            fontsize=9,
        )
    axis.set(xlabel="length of chosen − length of rejected, characters", ylabel="pairs")
    axis.set_xlim(-reach - step, reach + step)
    axis.grid(axis="x", visible=False)
    return figure


def judges_against_each_other(run: Run, plt):
    """Where two judges put the same answers: one panel for every two judges."""
    found = judge_agreement(run.responses)[:_PANELS]
    if not found:
        return None
    from matplotlib.colors import to_rgba

    values = [judge_values(row["scores"] or []) for row in run.responses]
    figure, axes = plt.subplots(1, len(found), figsize=(HALF if len(found) == 1 else FULL, 3.1), squeeze=False)
    edges = np.linspace(0, 1, _CELLS + 1)
    for axis, pair in zip(axes[0], found):
        both = [
            (row[pair["a"]], row[pair["b"]]) for row in values if None not in (row.get(pair["a"]), row.get(pair["b"]))
        ]
        counts = np.histogram2d(*np.array(both).T, bins=(edges, edges))[0].T
        shade = 0.06 + 0.94 * np.sqrt(counts / counts.max())  # rare cells stay visible
        for row, column in np.argwhere(counts):
            place, colour = (edges[column], edges[row]), (*to_rgba(BLUE)[:3], shade[row, column])
            axis.add_patch(plt.Rectangle(place, 1 / _CELLS, 1 / _CELLS, facecolor=colour, linewidth=0))
        axis.plot([0, 1], [0, 1], color=GRID, linewidth=1, zorder=0)
        alpha = "not measured" if pair["alpha"] is None else f"{pair['alpha']:.2f}"
        axis.set_title(
            f"{pair['answers']:,} answers, Krippendorff's alpha {alpha}", loc="left", color=INK, fontsize=8.5
        )
        axis.set(xlabel=pair["a"], ylabel=pair["b"], xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    return figure
