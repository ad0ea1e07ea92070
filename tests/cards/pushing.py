"""A finished run that can be pushed, and pushes of it in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cards.run_folder import Run
from cards.stage_log import write_json
from tests.hub import LoopbackHub

ROOT = Path(__file__).parents[2]
ROUNDS = 3


def finish(run_folder: Path) -> None:
    """Give a made run what a release leaves: weights of every round, cards, an evaluator."""
    from cards.dataset_card import DATASET_FIGURES, render_dataset_card
    from cards.model_card import MODEL_FIGURES, render_model_card
    from dataset_builder.toy_models import save_tiny
    from eval.evaluator import VQAEvaluator

    run = Run(run_folder)
    for number in range(1, ROUNDS + 1):
        save_tiny("qwen2_vl", run_folder / "arms" / run.release_arm / f"round-{number}", seed=number)
    VQAEvaluator({"kind": "reference"}).save_pretrained(run_folder / "evaluator")
    for folder, names, text in (
        (run.dataset, DATASET_FIGURES, render_dataset_card(run.dataset, run)),
        (run.release_folder, MODEL_FIGURES, render_model_card(run, "demo")),
    ):
        (folder / "figures").mkdir(exist_ok=True)
        for name in names:
            if (run_folder / "figures" / f"{name}.png").is_file():
                shutil.copyfile(run_folder / "figures" / f"{name}.png", folder / "figures" / f"{name}.png")
        (folder / "README.md").write_text(text, encoding="utf-8")


def copy(run_folder: Path, target: Path) -> Path:
    """The run and its dataset in another place, to be changed there."""
    shutil.copytree(run_folder.parent, target, ignore=shutil.ignore_patterns("toy", ".mmaip-v-work"))
    run = target / "run"
    write_json(run / "run.json", {**json.loads((run / "run.json").read_text()), "dataset": str(target / "mmaip-v")})
    return run


@dataclass
class Pushed:
    """How a push ended: exit code and what it printed."""

    code: int
    out: str
    err: str


def command(run: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "cards", "push", str(run), "--namespace", "tester", *words]


def push(run: Path, hub: LoopbackHub, home: Path, *words: str, token: str = "", quick: bool = False) -> Pushed:
    """Type the command.

    Args:
        run: the run folder.
        hub: where to.
        home: the client's ``HF_HOME``.
        words: further options.
        token: instead of the hub's own.
        quick: with hardly any wait before another attempt.
    """
    typed = command(run, *words)
    if quick:
        code = "import sys, cards.push.remote as r; r.WAIT = 0.02; from cards.__main__ import main; sys.exit(main())"
        typed = [sys.executable, "-c", code, *typed[3:]]
    done = subprocess.run(
        typed,
        cwd=ROOT,
        env={**os.environ, **hub.environment(home, token)},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    return Pushed(done.returncode, done.stdout, done.stderr)


def repos(plan) -> list[tuple[str, str]]:
    """Ids and types of a plan's repos."""
    return [(repo.repo_id, repo.repo_type) for repo in plan.repos]


def assert_released(hub: LoopbackHub, plan) -> None:
    """Every state of every repo is on the hub byte for byte, under its tags, and the final one is main."""
    for repo in plan.repos:
        tags = hub.refs(repo.repo_id, repo.repo_type)["tags"]
        assert set(tags) == {tag for state in repo.states for tag in state.tags}
        for state in repo.states:
            for revision in (*state.tags, *(["main"] if state is repo.final else [])):
                assert_holds(hub, repo, state, revision)


def assert_holds(hub: LoopbackHub, repo, state, revision: str) -> None:
    """A revision on the hub is a state of the plan, and nothing more."""
    import hashlib

    there = hub.files(repo.repo_id, repo.repo_type, revision)
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in there.items() if path != ".gitattributes"}
    assert hashes == {path: file.sha256 for path, file in state.files.items()}, (repo.repo_id, revision)


def assert_no_wrong_tag(hub: LoopbackHub, plan) -> None:
    """Whatever is tagged is what the plan means by the tag."""
    made = set(hub.repos())
    for repo in plan.repos:
        if f"{repo.repo_type}:{repo.repo_id}" in made:
            for tag in hub.refs(repo.repo_id, repo.repo_type)["tags"]:
                state = next(state for state in repo.states if tag in state.tags)
                assert_holds(hub, repo, state, tag)
