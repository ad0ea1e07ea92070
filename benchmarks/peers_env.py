"""Environments of their own for the programs that a benchmark compares with: their pins exclude ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HOME = Path(os.environ.get("MMAIP_V_PEERS") or Path(tempfile.gettempdir()) / "mmaip-v-peers")


def environment(name: str, requirements: list[str], home: Path = HOME) -> Path:
    """Make a virtual environment once and return its Python.

    Args:
        name: of the environment's folder under `home`.
        requirements: as pip takes them; another list makes the environment anew.
        home: where environments are kept between runs; ``MMAIP_V_PEERS`` names another.

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
    # What PYTHONPATH brings belongs to the environment that runs this, not to the new one.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(words, check=True, env=variables)
    stamp.write_text(wanted)  # written last: an interrupted installation is made anew
    return python
