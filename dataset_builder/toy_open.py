"""A slice of the toy world with more than one right answer: two shapes of two colours, "name a colour you see".

The reference names one of the two colours; the other is just as right. A judge that reads the reference only takes it
for wrong, a judge that looks does not: that is what *information-complete* means, at the smallest size that shows it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_builder.toy import COLOURS, FRAMES, SHAPES, SIZE, stamp, write_mp4

QUESTION = "name a colour you see ?"


@dataclass(frozen=True)
class OpenScene:
    """Two shapes, one in the upper and one in the lower half, that drift to opposite sides.

    Attributes:
        colours: of the upper and of the lower shape, two different ones.
        shapes: of the two.
        rightwards: whether the upper one goes right.
        background: grey level.
        reference: the colour that the reference names.
    """

    colours: tuple[str, str]
    shapes: tuple[str, str]
    rightwards: bool
    background: int
    reference: str


def draw_open_scene(rng: random.Random) -> OpenScene:
    """Draw one scene; every colour is equally likely to be seen and to be the reference."""
    colours = tuple(rng.sample(tuple(COLOURS), 2))
    return OpenScene(
        colours=colours,
        shapes=(rng.choice(SHAPES), rng.choice(SHAPES)),
        rightwards=rng.random() < 0.5,
        background=rng.randrange(8, 49, 8),
        reference=rng.choice(colours),
    )


def render_open(scene: OpenScene) -> np.ndarray:
    """Render a scene.

    Returns:
        uint8 frames [8, 32, 32, 3], RGB.
    """
    frames = np.full((FRAMES, SIZE, SIZE, 3), scene.background, dtype=np.uint8)
    for row, (name, shape) in enumerate(zip(scene.colours, scene.shapes)):
        mask = stamp(shape)
        n, way = mask.shape[0], 1 if scene.rightwards == (row == 0) else -1
        top = 1 if row == 0 else SIZE - 1 - n
        for t in range(FRAMES):
            left = (SIZE - n) // 2 + way * (2 * t - FRAMES + 1)
            frames[t, top : top + n, left : left + n][mask] = COLOURS[name]
    return frames


def generate_open(folder: str | Path, clips: int, seed: int = 0) -> list[tuple[Path, OpenScene]]:
    """Write ``open-NNNNN.mp4`` files of different scenes.

    Args:
        folder: where to write; made when it is missing.
        clips: how many, at most 1,000 of the few thousand scenes there are.
        seed: everything follows from it.

    Returns:
        (path, scene) of each clip.
    """
    if not 0 < clips <= 1000:
        raise ValueError("clips must be from 1 to 1000")
    folder, rng = Path(folder), random.Random(f"open-world-{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    made, seen = [], set()
    while len(made) < clips:
        scene = draw_open_scene(rng)
        shown = (scene.colours, scene.shapes, scene.rightwards, scene.background)
        if shown in seen:
            continue
        seen.add(shown)
        path = folder / f"open-{len(made):05d}.mp4"
        write_mp4(path, render_open(scene))
        made.append((path, scene))
    return made
