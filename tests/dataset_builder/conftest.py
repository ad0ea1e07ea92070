"""Fixtures of the builder's tests: one small world and one finished build of it for the whole session."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dataset_builder.build import build
from dataset_builder.settings import load_build_config
from tests.dataset_builder.clips import moving_square, write_clip, write_frame_folder
from tests.dataset_builder.importing import Reader
from tests.dataset_builder.worlds import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Path of the ``build.yaml`` of a small world; tests must not change its files."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def built(world, tmp_path_factory):
    """A finished build of the small world: ``config, output, work, summary``; tests must not change it."""
    config = load_build_config(world)
    output = tmp_path_factory.mktemp("built") / "mmaip-v"
    work = output.parent / ".mmaip-v-work"
    summary = build(config, output, progress=False)
    return SimpleNamespace(config=config, output=output, work=work, summary=summary)


@pytest.fixture(scope="session")
def named_clips(tmp_path_factory):
    """``a.mp4``, ``v_abc.mkv``, ``v_def.mp4`` and the frame folder ``webvid/10003718``."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("a.mp4", "v_abc.mkv", "v_def.mp4")):
        write_clip(folder / name, moving_square(seed=seed))
    write_frame_folder(folder / "webvid" / "10003718", moving_square(seed=9))
    return folder


@pytest.fixture
def reader(tmp_path, named_clips):
    """Reads files as sources, with ``named_clips`` as their videos."""
    return Reader(tmp_path, named_clips)
