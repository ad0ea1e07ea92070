"""The slice of the toy world with more than one right answer."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dataset_builder.media import sample_frames
from dataset_builder.toy import COLOURS
from dataset_builder.toy_open import draw_open_scene, generate_open, render_open


def test_both_colours_are_seen_in_every_frame_and_no_other():
    rng = random.Random(0)
    for _ in range(60):
        scene = draw_open_scene(rng)
        assert len(set(scene.colours)) == 2 and scene.reference in scene.colours
        frames = render_open(scene)
        for name, colour in COLOURS.items():
            seen = (frames == np.array(colour, dtype=np.uint8)).all(-1).any((1, 2))  # [8]
            assert seen.all() if name in scene.colours else not seen.any()


def test_clips_are_different_scenes_the_same_for_a_seed_and_readable(tmp_path):
    first, again = generate_open(tmp_path / "a", 30, seed=4), generate_open(tmp_path / "b", 30, seed=4)
    assert [scene for _, scene in first] == [scene for _, scene in again]
    assert [path.read_bytes() for path, _ in first] == [path.read_bytes() for path, _ in again]
    assert len({path.read_bytes() for path, _ in first}) == 30
    assert sample_frames(first[0][0], 8).array.shape == (8, 32, 32, 3)
    with pytest.raises(ValueError, match="from 1 to 1000"):
        generate_open(tmp_path / "c", 1001)
