"""All commands of the README, typed one after the other in one fresh copy of the clone, as a newcomer would.

What is not typed stands in `not_run.yaml`, with reasons. A folder named by MMAIP_V_README_WORK is used and kept, and
what it holds already is not made again: with it, one failed command can be mended and typed once more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.readme import world
from tests.readme.commands import README, REPO, Command, commands_of, table, typed

GUARD = REPO / "tests" / "guard"
LIMIT = 3000  # seconds of one command
LEFT_OUT = {entry["command"]: entry for entry in table("not_run.yaml")}
CODES = table("exit_codes.yaml") or {}
OUTPUTS = ("--output", "--output_dir", "--output-dir", "--png")
pytestmark = pytest.mark.slow


def distinct() -> list[Command]:
    """Each command once, where it stands first; those not typed only if something is done in their place."""
    first: dict[str, Command] = {}
    for page in (README, REPO / "recipes" / "configs" / "README.md"):
        for command in commands_of(page):
            first.setdefault(command.text, command)
    return [c for c in first.values() if c.text not in LEFT_OUT or "instead" in LEFT_OUT[c.text]]


class Clone:
    """The copy of the clone that everything is typed in."""

    def __init__(self, folder: Path):
        self.folder, self.waiting = folder, None
        paths = [str(folder), str(GUARD)]
        self.environment = {
            **os.environ,
            "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(paths),
        }

    def start(self, command: Command) -> subprocess.Popen:
        """Type it; what it says goes to a file."""
        words = ["python", "-c", command.text] if command.kind == "python" else ["bash", "-c", typed(command.text)]
        (self.folder / "said").mkdir(exist_ok=True)
        with open(self.log(command), "wb") as log:
            return subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def log(self, command: Command) -> Path:
        """Where its output goes."""
        return self.folder / "said" / f"{command.line:03}.txt"

    def wait(self, command: Command, running: subprocess.Popen) -> int:
        """Its exit code; it and its children end at the limit."""
        try:
            return running.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            return running.wait()


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Iterator[Clone]:
    """The copy with a person's own data, while the servers that the example configs name are up."""
    kept = os.environ.get("MMAIP_V_README_WORK")
    folder = Path(kept).resolve() if kept else tmp_path_factory.mktemp("readme") / "clone"
    if not (folder / "Makefile").exists():
        world.own_data(world.work_copy(folder))
    with world.servers():
        yield Clone(folder)


def test_the_copy_runs_its_own_code(clone):
    code = "import sys, cards, dataset_builder, eval, recipes; print(cards.__file__, recipes.__file__, sys.prefix)"
    done = subprocess.run(["python", "-c", code], cwd="/", env=clone.environment, capture_output=True, text=True)
    assert [part.startswith(str(clone.folder)) for part in done.stdout.split()] == [True] * 3, done


@pytest.mark.parametrize("command", distinct(), ids=lambda command: f"line{command.line}-{command.text[:60]}")
def test_a_command_of_the_readme(clone, command):
    if command.text in LEFT_OUT:
        getattr(world, LEFT_OUT[command.text]["instead"])(clone.folder)
        return
    began, running = time.monotonic(), clone.start(command)
    if command.words_after("--machine_rank") == "0":  # it waits for the other machine's, the next command
        clone.waiting = command, running
        return
    codes = [(command, clone.wait(command, running))]
    if clone.waiting is not None:
        codes.append((clone.waiting[0], clone.wait(*clone.waiting)))
        clone.waiting = None
    seconds = time.monotonic() - began
    with open(clone.folder / "said" / "typed.jsonl", "a", encoding="utf-8") as record:
        record.write(json.dumps({"line": command.line, "command": command.text, "seconds": round(seconds, 1)}) + "\n")
    for one, code in codes:
        said = clone.log(one).read_text(encoding="utf-8", errors="replace")
        wanted = CODES.get(one.text, {"code": 0})["code"]
        assert code == wanted, f"`{typed(one.text)}` ended with {code}, not {wanted}:\n{said[-4000:]}"
        assert "Traceback (most recent call last)" not in said, said[-4000:]
        for option in OUTPUTS:
            if (made := one.words_after(option)) is not None:
                assert (clone.folder / typed(made)).exists(), f"{option} {made} is not there"
