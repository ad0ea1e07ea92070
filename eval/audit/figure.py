"""The picture of an audit: biases on the left, what the judge gets wrong and how many frames it needs on the right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill, wrap
from typing import Any

from eval.audit.findings import BIAS
from eval.audit.report import not_measured
from eval.audit.run import TITLES

_INK, _SOFT, _GRID = "#1d2430", "#7b8594", "#e4e7ec"
_PLAIN, _CLEAR, _FRAMES = "#0072b2", "#d55e00", "#009e73"  # told apart with every common colour blindness
_BAND = "#f4f6f8"
_ROW = 0.27  # inches
_POINTS = "shift in points; 0 is no bias, orange is clear of it (5 % level after Holm's correction)"
_SHARES = {
    ("errors", "false_negative"),
    ("errors", "false_positive"),
    ("errors", "accuracy"),
    ("other_video", "same"),
    ("blank", "accuracy"),
    ("no_frames", "accuracy"),
    ("retest", "changed"),
    ("order", "changed"),
    ("pairs", "flips"),
    ("pairs", "accuracy"),
}


def draw_audit(audit: Mapping[str, Any], path: str | Path) -> Path:
    """Draw a record of `eval.audit.run.audit`; the file's ending decides the format (PNG, SVG, PDF)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    biases = [one for one in audit["findings"] if one["kind"] == BIAS]
    shares = [one for one in audit["findings"] if (one["probe"], one["name"]) in _SHARES]
    curve = _curve(audit)
    rows = max(len(biases), len(shares) + (9 if curve else 0), 6)
    figure = pyplot.figure(figsize=(13, 1.5 + _ROW * rows), dpi=150, layout="constrained")
    grid = figure.add_gridspec(2 if curve else 1, 2, height_ratios=[max(len(shares), 3), 8] if curve else None)
    _forest(figure.add_subplot(grid[:, 0]), biases, _POINTS, "biases")
    _forest(figure.add_subplot(grid[0, 1]), shares, "%", "shares")
    if curve:
        _frames(figure.add_subplot(grid[1, 1]), curve)
    of = audit["set"]
    title = f"Bias audit of {audit['judge']['name']}: {of['cases']} questions, {of['videos']} videos, 95 % intervals"
    warning = not_measured(audit)
    if warning:
        title += f"\nnot to be quoted: {warning}"
    figure.suptitle(title, fontsize=10, color=_INK, x=0.01, ha="left")
    left_out = [f"{TITLES[name].lower()}: {reason}" for name, reason in audit["not_measured"].items() if name in TITLES]
    if left_out:
        note = "\n".join(wrap("Not measured: " + "; ".join(left_out), 190))
        figure.supxlabel(note, fontsize=8, color=_SOFT, x=0.01, ha="left")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
    pyplot.close(figure)
    return Path(path)


def _forest(axes: Any, found: list[Mapping[str, Any]], label: str, what: str) -> None:
    """One line of text, one point and one interval for each finding, the first on top."""
    if not found:
        axes.text(0.5, 0.5, f"no {what} measured", ha="center", va="center", color=_SOFT, transform=axes.transAxes)
        axes.set_axis_off()
        return
    for start, stop in _groups(found)[1::2]:  # every other probe on a band, so that rows of one stand together
        axes.axhspan(start - 0.5, stop - 0.5, color=_BAND, linewidth=0, zorder=-1)
    for place, one in enumerate(found):
        estimate, colour = one["estimate"], _CLEAR if one["clear"] else _PLAIN
        if estimate["low"] is not None and estimate["high"] is not None:
            span = (100 * estimate["low"], 100 * estimate["high"])
            axes.plot(span, [place, place], color=colour, linewidth=2, alpha=0.5, solid_capstyle="round")
        axes.plot([100 * estimate["mean"]], [place], "o", color=colour, markersize=5)
    axes.set_yticks(range(len(found)), [fill(one["label"], 44) for one in found], fontsize=8)
    for tick, one in zip(axes.get_yticklabels(), found):
        tick.set_color(_CLEAR if one["clear"] else _INK)
    axes.set_ylim(len(found) - 0.4, -0.6)
    signed = found[0]["signed"]
    if signed:
        axes.axvline(0, color=_SOFT, linewidth=1, zorder=0)
        far = max(
            abs(100 * one["estimate"][end])
            for one in found
            for end in ("mean", "low", "high")
            if one["estimate"][end] is not None
        )
        axes.set_xlim(-1.06 * max(far, 5), 1.06 * max(far, 5))
    else:
        axes.set_xlim(-3, 103)
    axes.set_xlabel(label, fontsize=8.5, color=_SOFT)
    _plain(axes, "x")


def _groups(found: list[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """First and behind-the-last place of each probe's rows."""
    starts = [place for place, one in enumerate(found) if place == 0 or one["probe"] != found[place - 1]["probe"]]
    return list(zip(starts, [*starts[1:], len(found)]))


def _curve(audit: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """(number of frames, estimate) of the balanced accuracy; empty if it was not measured."""
    found = [
        (int(one["name"].removeprefix("accuracy_")), one["estimate"])
        for one in audit["findings"]
        if one["probe"] == "frames" and one["name"].startswith("accuracy_")
    ]
    return sorted(found, key=lambda point: point[0])


def _frames(axes: Any, curve: list[tuple[int, Mapping[str, Any]]]) -> None:
    counts, means = [count for count, _ in curve], [100 * estimate["mean"] for _, estimate in curve]
    places = range(len(counts))
    for place, (_, estimate) in zip(places, curve):
        if estimate["low"] is not None and estimate["high"] is not None:
            span = (100 * estimate["low"], 100 * estimate["high"])
            axes.plot([place, place], span, color=_FRAMES, linewidth=2, alpha=0.5, solid_capstyle="round")
    axes.plot(places, means, "o-", color=_FRAMES, markersize=5, linewidth=1.5)
    axes.axhline(50, color=_SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.annotate(
        "guessing", (len(counts) - 0.55, 50), (0, 3), textcoords="offset points", fontsize=8, color=_SOFT, ha="right"
    )
    axes.set_xticks(places, [str(count) for count in counts])
    axes.set_xlim(-0.4, len(counts) - 0.5)
    ends = [100 * e[end] for _, e in curve for end in ("low", "high") if e[end] is not None]
    axes.set_ylim(min([47, *ends, *means]) - 3, max([67, *ends, *means]) + 3)
    axes.set_xlabel("frames shown", fontsize=8.5, color=_SOFT)
    axes.set_ylabel("balanced accuracy, %", fontsize=8.5, color=_SOFT)
    _plain(axes, "y")


def _plain(axes: Any, grid: str) -> None:
    axes.tick_params(colors=_INK, length=0, labelsize=8)
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
