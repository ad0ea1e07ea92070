"""The embedded toy world: procedural clips of a moving shape as real H.264 files, with questions and their truth.

A clip is 32×32 px, 8 frames at 4 fps. One large shape of one colour drifts across it (questions *colour*, *shape*,
*direction*), white dots stand in the top row (*count*), and a grey lamp at the left and one at the right bottom corner
are switched on one after the other (*order*). Everything follows from a seed, so two people get the same frames.

The videos are real mp4 files because every later stage has to work on files a person brings along.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SIZE = 32  # px, both sides; a multiple of the tiny models' patches
FRAMES = 8
FPS = 4

COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (235, 220, 50),
}
NUMBERS = ("zero", "one", "two", "three")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SHAPES = ("square", "ring", "cross")
SIDES = ("left", "right")

QUESTIONS = {
    "colour": "what colour is the shape ?",
    "count": "how many dots are there ?",
    "direction": "which way does the shape move ?",
    "order": "which lamp is lit first ?",
    "shape": "what shape is it ?",
}
TYPES = tuple(QUESTIONS)
ANSWERS = {
    "colour": tuple(COLOURS),
    "count": NUMBERS,
    "direction": tuple(DIRECTIONS),
    "order": SIDES,
    "shape": SHAPES,
}
SPLITS = ("pretrain", "train", "validation", "test")


@dataclass(frozen=True)
class Scene:
    """What a clip shows. ``lamp_on`` holds the frame at which the left and the right lamp are switched on."""

    colour: str
    shape: str
    direction: str
    dots: int
    start: int  # px, offset of the shape's path across its direction of movement
    background: int  # grey level
    lamp_on: tuple[int, int]

    def truth(self, question_type: str) -> str:
        """The right answer to a question of this type."""
        if question_type == "count":
            return NUMBERS[self.dots]
        if question_type == "order":
            return SIDES[0] if self.lamp_on[0] < self.lamp_on[1] else SIDES[1]
        return getattr(self, question_type)


def draw_scene(rng: random.Random) -> Scene:
    """Draw one scene; every answer of every question type is equally likely."""
    first = rng.randrange(1, 4)
    lamp_on = (first, first + 3)
    return Scene(
        colour=rng.choice(tuple(COLOURS)),
        shape=rng.choice(SHAPES),
        direction=rng.choice(tuple(DIRECTIONS)),
        dots=rng.randrange(len(NUMBERS)),
        start=rng.randint(-3, 3),
        background=rng.randrange(8, 49, 8),  # in steps that survive compression: no two clips are the same file
        lamp_on=lamp_on if rng.random() < 0.5 else lamp_on[::-1],
    )


def stamp(shape: str) -> np.ndarray:
    """The shape as a bool mask of 14×14 px, large enough to be learnable at this resolution."""
    n = 14
    mask = np.ones((n, n), dtype=bool)
    if shape == "ring":
        mask[4:-4, 4:-4] = False
    elif shape == "cross":
        mask[:] = False
        mask[5:-5, :] = True
        mask[:, 5:-5] = True
    return mask


def render(scene: Scene) -> np.ndarray:
    """Render a scene.

    Returns:
        uint8 frames [8, 32, 32, 3], RGB.
    """
    frames = np.full((FRAMES, SIZE, SIZE, 3), scene.background, dtype=np.uint8)
    mask, colour = stamp(scene.shape), np.array(COLOURS[scene.colour], dtype=np.uint8)
    n = mask.shape[0]
    dx, dy = DIRECTIONS[scene.direction]
    centre = (SIZE - n) // 2
    for t in range(FRAMES):
        travelled = 2 * t - FRAMES + 1  # px from the centre
        x = centre + dx * travelled + (scene.start if dx == 0 else 0)
        y = centre + dy * travelled + (scene.start if dy == 0 else 0)
        frames[t, y : y + n, x : x + n][mask] = colour
        for i in range(scene.dots):
            frames[t, 1:4, 3 + 10 * i : 7 + 10 * i] = 255
        for left, on in ((1, scene.lamp_on[0]), (SIZE - 6, scene.lamp_on[1])):
            frames[t, SIZE - 6 : SIZE - 1, left : left + 5] = (255, 255, 255) if t >= on else (70, 70, 70)
    return frames


def write_mp4(path: Path, frames: np.ndarray, fps: int = FPS) -> None:
    """Write uint8 frames [T, H, W, 3] as an H.264 mp4; the same frames give the same bytes."""
    import av

    with av.open(str(path), "w", options={"movflags": "faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12", "preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def generate_toy(
    folder: str | Path,
    seed: int = 0,
    clips: dict[str, int] | None = None,
    types: Iterable[str] = TYPES,
    questions_per_clip: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the toy world: ``videos/SPLIT-NNNNN.mp4``, ``questions.jsonl`` (without pretrain) and ``truth.json``.

    No two clips show the same scene, across all splits. ``pretrain`` clips are what the tiny models learn to see from;
    they stand in ``truth.json`` but not in ``questions.jsonl``, so that nothing in the dataset was a training example.

    Args:
        folder: where to write; files that are already there are replaced.
        seed: everything follows from it.
        clips: clips per split; any of ``pretrain, train, validation, test``.
        types: question types to ask about.
        questions_per_clip: so many of the types, drawn for each clip; all of them by default.
        progress: called with (clips written, clips in all).

    Returns:
        The path of ``questions.jsonl``.
    """
    folder, types = Path(folder), tuple(types)
    clips = clips or {"pretrain": 0, "train": 64, "validation": 16, "test": 16}
    if unknown := [t for t in types if t not in QUESTIONS]:
        raise ValueError(f"unknown question types {unknown}; there are {list(QUESTIONS)}")
    if unknown := [s for s in clips if s not in SPLITS]:
        raise ValueError(f"unknown splits {unknown}; there are {list(SPLITS)}")
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    rng, seen, truth, rows = random.Random(f"toy-world-{seed}"), set(), {}, []
    total = sum(clips.values())
    for split in SPLITS:
        for number in range(clips.get(split, 0)):
            scene = draw_scene(rng)
            while scene in seen:
                scene = draw_scene(rng)
            seen.add(scene)
            name = f"{split}-{number:05d}"
            write_mp4(folder / "videos" / f"{name}.mp4", render(scene))
            truth[name] = {"split": split, **asdict(scene), "answers": {t: scene.truth(t) for t in TYPES}}
            if split != "pretrain":
                asked = set(rng.sample(types, min(questions_per_clip or len(types), len(types))))
                rows += [_row(name, split, scene, kind) for kind in types if kind in asked]
            if progress:
                progress(len(truth), total)
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "truth.json").write_text(json.dumps({"seed": seed, "types": types, "clips": truth}))
    return questions


def _row(name: str, split: str, scene: Scene, question_type: str) -> dict:
    return {
        "id": f"{name}-{question_type}",
        "video": f"{name}.mp4",
        "question": QUESTIONS[question_type],
        "answer": scene.truth(question_type),
        "question_type": question_type,
        "split": split,
        "license": "cc0-1.0",
        "source": "toy-world",
    }


def corpus() -> list[str]:
    """Text of the toy world, from which the tiny models' tokenizer is made."""
    words = [a for answers in ANSWERS.values() for a in answers]
    return [*QUESTIONS.values(), *words, *(" " + word for word in words)]
