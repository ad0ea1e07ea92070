"""What every test of the kit runs under: no network beyond loopback, one thread per process, caches of its own."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

GUARD = Path(__file__).parent / "guard"

# Set before any library is imported. Children inherit it: PYTHONPATH brings the socket guard into every Python child.
_SCRATCH = tempfile.mkdtemp(prefix="mmaip-v-tests-")
os.environ.update(
    HF_HOME=f"{_SCRATCH}/hf",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_OFFLINE="1",
    MMAIP_V_SOCKET_LOG=f"{_SCRATCH}/sockets.log",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    GLOO_SOCKET_IFNAME="lo",
    PYTHONPATH=os.pathsep.join(filter(None, [str(GUARD), os.environ.get("PYTHONPATH")])),
)

_spec = importlib.util.spec_from_file_location("mmaip_v_socket_guard", GUARD / "sitecustomize.py")
_spec.loader.exec_module(importlib.util.module_from_spec(_spec))  # the test process itself


@pytest.fixture(autouse=True)
def _no_network():
    """Fail the test during which anything, a child process included, tried to leave this machine."""
    log = Path(os.environ["MMAIP_V_SOCKET_LOG"])
    before = log.stat().st_size if log.exists() else 0
    yield
    if log.exists() and log.stat().st_size > before:
        attempts = log.read_text(encoding="utf-8")[before:].strip()
        pytest.fail(f"the test reached beyond loopback:\n{attempts}", pytrace=False)


def pytest_collection_modifyitems(items):
    """Skip GPU checks where there is no GPU, and say so."""
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.cuda.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="GPU check skipped: there is no GPU here"))


def pytest_sessionfinish():
    import shutil

    shutil.rmtree(_SCRATCH, ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    import torch

    if not torch.cuda.is_available():
        terminalreporter.write_line("no GPU here: nothing in this run was checked on one")
