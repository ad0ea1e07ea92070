"""How figures look: one sober style, colour-blind safe, and how a reader tells arms apart.

An arm's scheme gives colour and marker, its suffixes the fill of the marker, so that thirty arms need a key of ten
schemes and three fills instead of thirty lines.
"""

from __future__ import annotations

from typing import Any

from recipes.arms.specs import CONTROLS, Arm, parse_arm

# Colours of the light page. report.py swaps the neutral ones for CSS variables, so each is used for one role only.
INK, MUTED, GRID, PAPER = "#1b1f24", "#5d6672", "#dfe3e8", "#ffffff"
# Okabe–Ito, without yellow and black: distinguishable with every common colour blindness, on white and on dark
BLUE, ORANGE, GREEN, SKY, RED, PINK = "#0072b2", "#d98200", "#009e73", "#56b4e9", "#d55e00", "#cc79a7"
MEMBERS = (BLUE, ORANGE, GREEN, PINK, SKY, RED)
# Six colours are safe: a scheme with pairs of its own answers has the colour of the one without, and another marker.
ARM_COLOURS = {
    "base": "#7f8894",
    "sft_chosen": ORANGE,
    "dpo": SKY,
    "dpo_expo": PINK,
    "dpo_matched": RED,
    "dpo_on_policy": SKY,
    "iter": BLUE,
    "iter_w2s": GREEN,
    "iter_on_policy": BLUE,
    "iter_w2s_on_policy": GREEN,
}
ARM_MARKERS = {
    "base": "o",
    "sft_chosen": "s",
    "dpo": "^",
    "dpo_expo": "v",
    "dpo_matched": "X",
    "dpo_on_policy": "<",
    "iter": "D",
    "iter_w2s": "P",
    "iter_on_policy": "h",
    "iter_w2s_on_policy": "*",
}
LARGER = {"*": 1.4, "h": 1.1, "D": 0.9}  # markers that look smaller or larger than the others at the same size
# (sft, visual): how the marker is filled, and what that means
FILLS = {
    (False, False): ("full", None),
    (True, False): ("none", "open: +sft"),
    (False, True): ("left", "left half: +visual"),
    (True, True): ("bottom", "lower half: +sft+visual"),
}

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


def arm_of(name: str) -> Arm:
    """What an arm's name says; a name that `recipes.arms.specs` does not know is a scheme without suffixes."""
    from dataset_builder.errors import KitError

    try:
        return parse_arm(name)
    except KitError:
        return Arm(name, name, False, False)


def marker(name: str, size: float = 7.5) -> dict[str, Any]:
    """Arguments of ``axis.plot`` for the marks of an arm.

    Args:
        name: of the arm, with suffixes.
        size: in points.
    """
    arm = arm_of(name)
    shape, colour = ARM_MARKERS.get(arm.scheme, "o"), arm_colour(name)
    fill, _ = FILLS[arm.sft, arm.visual]
    return {
        "marker": shape,
        "markersize": size * LARGER.get(shape, 1.0),
        "color": colour,
        "markeredgecolor": colour,
        "markeredgewidth": 1.2,
        "fillstyle": "full" if fill == "none" else fill,
        "markerfacecolor": PAPER if fill == "none" else colour,
        "markerfacecoloralt": PAPER,
    }


def arm_colour(name: str) -> str:
    """The colour of an arm's scheme."""
    return ARM_COLOURS.get(arm_of(name).scheme, BLUE)


def arm_key(names: list[str], size: float = 7.0, lines: bool = False) -> list:
    """Handles of a legend for some arms: their schemes, then what the fills mean, if there is more than one.

    Args:
        names: of the arms.
        size: of the marks in points.
        lines: the arms are drawn as lines; those of the controls are dashed.
    """
    from matplotlib.lines import Line2D

    arms = [arm_of(name) for name in names]
    handles = []
    for scheme in dict.fromkeys(arm.scheme for arm in arms):
        style = ((0, (4, 2)) if scheme in CONTROLS else "-") if lines else "none"
        handles.append(Line2D([], [], **marker(scheme, size), linestyle=style, label=scheme))
    for kind in [kind for kind in FILLS if kind in {(arm.sft, arm.visual) for arm in arms} and any(kind)]:
        fill, meaning = FILLS[kind]
        mark = {"marker": "o", "markersize": size, "color": MUTED, "markerfacecoloralt": PAPER, "linestyle": "none"}
        mark |= {"fillstyle": "full", "markerfacecolor": PAPER} if fill == "none" else {"fillstyle": fill}
        handles.append(Line2D([], [], **mark, label=meaning))
    return handles
