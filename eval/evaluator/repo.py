"""What an evaluator's repo carries besides the evaluator itself: the package, its entry files, requirements, licence.

With these, ``hf download`` and the dependencies are all that a person needs to run the tasks: the kit is not.
"""

from __future__ import annotations

import configparser
import shutil
from functools import cache
from importlib import metadata
from pathlib import Path

from dataset_builder.errors import KitError
from eval.evaluator.closure import Source, closure, data_files, moved, outside
from eval.evaluator.folders import PACKAGE

ROOTS = (
    "eval.evaluator",
    "eval.evaluator.own",
    "eval.launcher",
    "eval.stats",
    "eval.tasks",
    "eval.video_model",
)
REQUIREMENTS, LICENSE = "requirements.txt", "LICENSE"
_IMPORTED_AS = {"pyyaml": "yaml"}  # where a distribution is called otherwise than its module
# Not imported by any module here, but by libraries that are, on the way to an answer.
_INDIRECT = {"accelerate", "num2words", "torchvision", "xxhash"}

_INIT = '''"""What an evaluator's repo needs of the kit that made it: generated, so change it there.

    from mmaip_v_evaluator import VQAEvaluator
"""

from mmaip_v_evaluator.eval.evaluator import Verdict, VQAEvaluator

__all__ = ["VQAEvaluator", "Verdict"]
'''

_HEAD = """import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))  # not resolved: in the Hub's cache this file is a link
if HERE not in sys.path:
    sys.path.insert(0, HERE)

"""

_TASKS = '''"""Tasks about videos, their answers judged by the evaluator in this folder; README.md says how to run them.

name:
{names}

LightEval loads this file by its path:

    lighteval custom MODEL video_model.py mmaip_v --custom-tasks tasks.py
    python run.py custom MODEL video_model.py mmaip_v    # the same, also without a network
"""

{head}from mmaip_v_evaluator.eval.evaluator.own import use_own_judge  # noqa: E402

use_own_judge(HERE)

from mmaip_v_evaluator.eval.tasks import TASKS_TABLE  # noqa: E402

__all__ = ["TASKS_TABLE"]
'''

_VIDEO_MODEL = '''"""A checkpoint that sees the video, for LightEval's ``custom`` command; README.md says how."""

{head}from mmaip_v_evaluator.eval.video_model import VideoModel  # noqa: E402

__all__ = ["VideoModel"]
'''

_RUN = '''"""LightEval's commands on the tasks of this folder, also without a network:

    python run.py custom MODEL video_model.py mmaip_v --save-details
    python run.py tasks list
"""

{head}from mmaip_v_evaluator.eval.evaluator.own import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(HERE))
'''

_SCRIPTS = {"tasks.py": _TASKS, "video_model.py": _VIDEO_MODEL, "run.py": _RUN}


def write_repo(folder: Path) -> None:
    """Write the package and the files around it into a folder; the same kit gives the same bytes.

    Raises:
        KitError: the kit's own files are not complete.
    """
    home = Path(__file__).parents[2]  # holds the kit's rooms: the clone, or the package in a repo
    try:
        if __name__.startswith("eval."):
            _generate(home, folder)
        else:
            _copy_own(home, folder)
    except (OSError, ValueError, SyntaxError) as error:
        raise KitError(f"the evaluator's package cannot be made: {error}") from error


@cache
def package_modules(home: Path) -> dict[str, Source]:
    """The modules of the package, by their name in the kit; read once a process, whose own do not change either."""
    return closure(ROOTS, home)


def requirements(modules: dict[str, Source], pins: list[str]) -> list[str]:
    """Those of the kit's pins that these modules need, in alphabetical order."""
    imported = outside(modules)
    needed = []
    for pin in pins:
        name = _distribution(pin)
        if name in _INDIRECT or _IMPORTED_AS.get(name, name.replace("-", "_")) in imported:
            needed.append(pin)
    return sorted(needed, key=_distribution)


def kit_pins(home: Path) -> list[str]:
    """What the kit itself requires, as its ``setup.cfg`` says, or its metadata where it is installed without it.

    Raises:
        ValueError: neither is there.
    """
    config = configparser.ConfigParser()
    if config.read(home / "setup.cfg", encoding="utf-8") and config.has_option("options", "install_requires"):
        lines = config.get("options", "install_requires").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    try:
        found = metadata.requires("mmaip-v") or []
    except metadata.PackageNotFoundError:
        raise ValueError(f"there is no setup.cfg in {home}") from None
    return [pin for pin in found if ";" not in pin]


def _generate(home: Path, folder: Path) -> None:
    for name, content in _generated(home).items():
        _write(folder / name, content)


@cache
def _generated(home: Path) -> dict[str, bytes]:
    """Content by path in the repo."""
    modules = package_modules(home)
    files = {f"{PACKAGE}/__init__.py": _INIT.encode()}
    for source in modules.values():
        files[f"{PACKAGE}/{source.path.relative_to(home)}"] = moved(source, PACKAGE, home)
    for path in data_files(modules):
        files[f"{PACKAGE}/{path.relative_to(home)}"] = path.read_bytes()
    names = ", ".join(_task_names())
    for name, text in _SCRIPTS.items():
        files[name] = text.format(head=_HEAD, names=names).encode()
    files[REQUIREMENTS] = "\n".join([*requirements(modules, kit_pins(home)), ""]).encode()
    files[LICENSE] = (home / LICENSE).read_bytes()
    return files


def _copy_own(package: Path, folder: Path) -> None:
    """A repo made by the package of another one carries the same."""
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            _write(folder / PACKAGE / path.relative_to(package), path.read_bytes())
    for name in (*_SCRIPTS, REQUIREMENTS, LICENSE):
        shutil.copyfile(package.parent / name, folder / name)


def _task_names() -> list[str]:
    from eval.benchmarks import BENCHMARKS

    return list(BENCHMARKS)


def _distribution(pin: str) -> str:
    """The name in ``name>=1,<2``."""
    end = next((i for i, letter in enumerate(pin) if not (letter.isalnum() or letter in "-_.")), len(pin))
    return pin[:end].lower().replace("_", "-")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
