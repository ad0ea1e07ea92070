"""``transformers serve`` on loopback as a real process: an OpenAI-compatible server around checkpoint folders."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

START = 120  # seconds that a server may take to come up
QUIET = {  # one thread, nothing asked of the Hub
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@contextlib.contextmanager
def served(*folders: str | Path, port: int = 0, log: str | Path | None = None) -> Iterator[str]:
    """Serve checkpoints until the block ends.

    Args:
        folders: one is loaded before the first call, each of several at its first call. A call names its model by the
            folder's path.
        port: 0 takes a free one.
        log: file of the server's output.

    Yields:
        The ``base_url``.

    Raises:
        RuntimeError: the server ended, or did not come up in time.
    """
    port = port or _free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve"]
    command += [str(folders[0])] if len(folders) == 1 else []
    command += ["--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(Path(log).open("ab")) if log else subprocess.DEVNULL
        # A session of its own: whatever the server starts ends with it.
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **QUIET}, start_new_session=True
        )
        try:
            _wait(server, port)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _end(server)


def _end(server: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _wait(server: subprocess.Popen, port: int) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"transformers serve ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"transformers serve did not come up within {START} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
