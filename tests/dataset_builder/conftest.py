"""Fixtures of the builder's tests: one small world and one finished build of it for the whole session."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dataset_builder.build import build
from dataset_builder.settings import load_build_config
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
