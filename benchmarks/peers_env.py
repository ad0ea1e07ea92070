"""Environments of their own for the programs that a benchmark compares with: their pins exclude ours."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HOME = Path(tempfile.gettempdir()) / "mmaip-v-peers"


def environment(name: str, requirements: list[str], home: Path = HOME) -> Path:
    """Make a virtual environment once and return its Python.

    Args:
        name: of the environment's folder under `home`.
        requirements: as pip takes them; another list makes the environment anew.
        home: where environments are kept between runs.

    Raises:
        subprocess.CalledProcessError: when pip cannot install them.
    """
    folder = home / name
    python, stamp, wanted = folder / "bin" / "python", folder / "requirements.txt", "\n".join(requirements) + "\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making an environment for {name} in {folder} (some minutes)", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    words = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    subprocess.run(words, check=True)
    stamp.write_text(wanted)  # written last: an interrupted installation is made anew
    return python
