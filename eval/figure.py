"""The picture of a comparison: accuracies on the left, paired differences on the right, both with intervals."""

from __future__ import annotations

from pathlib import Path

_INK, _SOFT, _MARK, _NULL = "#1d2430", "#8a94a3", "#2f6fde", "#c8452f"


def draw_comparison(record: dict, path: str | Path) -> Path:
    """Draw a record of `eval.report.comparison_record`; the file's ending decides the format (PNG, SVG, PDF)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sides, pairs = record["results"], record["pairs"]
    height = 1.3 + 0.42 * max(len(sides), len(pairs))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, height), dpi=150, layout="constrained")
    accuracies = [(_short(s["name"], s), 100 * s["accuracy"]["mean"], _span(s["accuracy"])) for s in sides]
    _rows(left, accuracies, _MARK)
    left.set_xlabel("accuracy, %")
    _rows(right, [(f"{p['a']} − {p['b']}", 100 * p["difference"], _span(p)) for p in pairs], _NULL)
    right.axvline(0, color=_SOFT, linewidth=1, zorder=0)
    right.set_xlabel("difference, points")
    figure.suptitle("95 % intervals, clustered by video", fontsize=9, color=_SOFT, x=0.01, ha="left")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
    pyplot.close(figure)
    return Path(path)


def _short(name: str, side: dict) -> str:
    return name + (" (no video)" if side["blind"] else "") + (" (self-judged)" if side["self_judged"] else "")


def _span(values: dict) -> tuple[float, float] | None:
    low, high = values["low"], values["high"]
    return None if low is None or high is None else (100 * low, 100 * high)


def _rows(axes, rows: list[tuple], colour: str) -> None:
    """One line of text, one point and one interval for each row, the first on top."""
    for place, (_, value, span) in enumerate(rows):
        if span is not None:
            axes.plot(span, [place, place], color=colour, linewidth=2, alpha=0.55, solid_capstyle="round")
        axes.plot([value], [place], "o", color=colour, markersize=6)
        axes.annotate(f"{value:.1f}", (value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.tick_params(colors=_INK, length=0)
    axes.grid(axis="x", color="#e4e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
