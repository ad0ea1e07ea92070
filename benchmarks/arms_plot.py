"""Accuracy against distance from the base: does an arm win because it went further?

Each arm has a light point per seed, its mean with the 95 % interval, and its name beside the mean. Colour and marker
tell arms apart; an open marker is the variant with the SFT term, a half-filled one the variant without ground truth.
The base is left out, and every arm that did not move: at distance 0 they would take the room that the others need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cards.style import ARM_COLOURS, ARM_MARKERS, BLUE, FULL, GREEN, INK, PAPER, RED, SKY, STYLE

COLOURS = ARM_COLOURS | {
    "dpo_on_policy": SKY,
    "dpo_matched": RED,
    "iter_on_policy": BLUE,
    "iter_w2s_on_policy": GREEN,
}
MARKERS = ARM_MARKERS | {"dpo_on_policy": "<", "dpo_matched": "X", "iter_on_policy": "h", "iter_w2s_on_policy": "*"}
SIZE = 7.5  # points
DPI = 160
ANGLES = 24
RADII = (9, 15, 22, 30, 40, 52, 66, 82, 100, 125, 150)  # points from a mean to the nearest corner of its name


def draw(table: dict[str, Any], path: str | Path) -> Path:
    """Draw the plot; the same table gives the same bytes.

    Args:
        table: what `benchmarks.arms.summarise` returns.
        path: the picture to write (``.png`` or ``.svg``).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arms = {name: table["arms"][name] for name in table["order"] if table["arms"][name]["distance"]}
    base = 100 * table["arms"]["base"]["accuracy"]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": path.stem}):
        figure, axis = pyplot.subplots(figsize=(FULL, 6.4), dpi=DPI)
        for name, arm in arms.items():
            style = marker_style(name)
            xs = [arm["distance_by_seed"][seed] for seed in arm["by_seed"]]
            ys = [100 * accuracy for accuracy in arm["by_seed"].values()]
            axis.plot(xs, ys, **{**style, "markersize": 4, "markeredgewidth": 0.8}, alpha=0.3, zorder=2)
            ends = [100 * end for end in arm["ci95"]]
            axis.plot([arm["distance"]] * 2, ends, color=style["color"], linewidth=1.4, alpha=0.55, zorder=3)
            axis.plot(arm["distance"], 100 * arm["accuracy"], **style, zorder=4)
        axis.set_title(_key(arms, base), loc="left", color=INK)
        axis.set_xlabel("distance ‖θ − θ_base‖")
        axis.set_ylabel("accuracy on test, %")
        axis.margins(x=0.08, y=0.06)
        figure.canvas.draw()  # the layout is settled now, and names are placed in points of the page
        figure.set_layout_engine("none")
        place_names(axis, {name: (arm["distance"], 100 * arm["accuracy"]) for name, arm in arms.items()})
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
        figure.savefig(path, metadata=metadata)
        pyplot.close(figure)
    return path


def marker_style(name: str) -> dict[str, Any]:
    """Colour and marker of an arm or a variant of it."""
    plain = name.split("+")[0]
    colour = COLOURS.get(plain, INK)
    fill = "left" if "+visual" in name else "full"
    return {
        "color": colour,
        "marker": MARKERS.get(plain, "o"),
        "linestyle": "none",
        "markersize": SIZE,
        "fillstyle": fill,
        "markerfacecolor": PAPER if "+sft" in name and fill == "full" else colour,
        "markerfacecoloralt": PAPER,
        "markeredgecolor": colour,
        "markeredgewidth": 1.4,
    }


def _key(arms: dict[str, Any], base: float) -> str:
    """What the marks mean, in a line."""
    words = ["light: single seeds", "bar: 95 % over seeds and videos"]
    words += ["open: with the SFT term"] if any("+sft" in name for name in arms) else []
    words += ["half: without ground truth"] if any("+visual" in name for name in arms) else []
    return " · ".join([*words, f"base (distance 0, not shown): {base:.1f} %"])


def place_names(axis, points: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float, float, float]]:
    """Write each name near its point, on the first free place of ever wider circles, with a thin line to the point.

    Args:
        axis: whose layout is settled.
        points: name → (x, y) in the axis's data.

    Returns:
        name → the box of its text (left, bottom, right, top) in pixels.
    """
    from matplotlib.patheffects import withStroke

    renderer = axis.figure.canvas.get_renderer()
    dot = axis.figure.dpi / 72  # pixels a point
    spots = {name: tuple(axis.transData.transform(point)) for name, point in points.items()}
    room = axis.get_window_extent(renderer).extents
    half = 0.8 * SIZE * dot
    taken = [(x - half, y - half, x + half, y + half) for x, y in spots.values()]
    boxes = {}
    halo = [withStroke(linewidth=2.5, foreground=PAPER)]  # light points and bars may pass behind a name
    style = {"textcoords": "offset points", "fontsize": 8, "color": INK, "zorder": 6, "path_effects": halo}
    for name, (x, y) in sorted(spots.items(), key=lambda item: (item[1][1], item[1][0])):
        text = axis.annotate(name, points[name], xytext=(0, 0), **style)
        box = text.get_window_extent(renderer)
        place = _free_place((x, y), (box.width + 3 * dot, box.height + 1.5 * dot), taken, room, dot)
        text.set_position(((place[0] - x) / dot + 1.5, (place[1] - y) / dot + 0.75))
        taken.append(place)
        boxes[name] = place
        near = (min(max(x, place[0]), place[2]), min(max(y, place[1]), place[3]))
        start, end = axis.transData.inverted().transform([(x, y), near])
        axis.plot([start[0], end[0]], [start[1], end[1]], color=INK, linewidth=0.7, zorder=3.5)
    return boxes


def _free_place(
    spot: tuple[float, float],
    size: tuple[float, float],
    taken: Sequence[tuple[float, float, float, float]],
    room: Sequence[float],
    dot: float,
) -> tuple[float, float, float, float]:
    """The nearest box (left, bottom, right, top) around a spot that touches no other and stays in the picture."""
    x, y = spot
    width, height = size
    for radius in RADII:
        for step in range(ANGLES):
            # right first, then alternately above and below
            angle = (step + 1) // 2 * (-1) ** step * 2 * math.pi / ANGLES
            dx, dy = math.cos(angle), math.sin(angle)
            left = x + radius * dot * dx - width * (1 - dx) / 2
            bottom = y + radius * dot * dy - height * (1 - dy) / 2
            box = (left, bottom, left + width, bottom + height)
            inside = box[0] >= room[0] and box[1] >= room[1] and box[2] <= room[2] and box[3] <= room[3]
            if inside and not any(overlap(box, other) for other in taken):
                return box
    return (x + RADII[0] * dot, y, x + RADII[0] * dot + width, y + height)  # more names than room


def overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes (left, bottom, right, top) share a part of the page."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
