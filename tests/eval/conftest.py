"""A small real dataset and untrained checkpoints, made once for the evaluator's tests."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """``world.dataset``, ``world.bare`` (no videos inside), its ``world.media``, untrained ``world.checkpoints``."""
    from dataset_builder.build import build
    from dataset_builder.settings import BuildConfig, FolderSource, Member, ReferenceJudgeConfig
    from dataset_builder.toy import generate_toy
    from dataset_builder.toy_models import save_tiny

    root = tmp_path_factory.mktemp("eval-world")
    questions = generate_toy(
        root / "toy", seed=5, clips={"train": 3, "validation": 2, "test": 6}, types=("colour", "count")
    )
    checkpoints = {a: save_tiny(a, root / "checkpoints" / a, seed=1) for a in ("qwen2_vl", "llava_onevision")}

    def dataset(name: str, redistribute: bool) -> Path:
        source = FolderSource(
            kind="folder",
            videos=str(root / "toy" / "videos"),
            questions=str(questions),
            license="cc0-1.0",
            redistribute=redistribute,
        )
        zoo = [Member(a, str(folder)) for a, folder in checkpoints.items()]
        config = BuildConfig(sources=[source], zoo=zoo, judges=[ReferenceJudgeConfig("reference")])
        build(config, root / name, progress=False)
        return root / name

    return SimpleNamespace(
        root=root,
        dataset=dataset("embedded", True),
        bare=dataset("bare", False),
        media=root / ".bare-work" / "media.json",
        checkpoints=checkpoints,
    )


@pytest.fixture
def run_eval(world, tmp_path):
    """Run Python with ``arguments`` in a fresh process whose caches and working folder are the test's own."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "HF_HOME": str(tmp_path / "hf"),
            "MMAIP_V_DATA": str(world.dataset),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        environment.pop("HF_HUB_OFFLINE", None)  # that nothing is asked of the network has to be our own doing
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    return run
