"""A client of a hub: a Python process of its own, since libraries read ``HF_ENDPOINT`` when they are imported.

with Client(hub.environment(tmp_path / "home")) as client:
    client.run("from huggingface_hub import HfApi; api = HfApi()")
    assert client.run("api.whoami()['name']") == "tester"
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import Any

REPO = Path(__file__).resolve().parents[2]


class ClientError(Exception):
    """What the client's code raised.

    Attributes:
        kind: name of its class.
        kinds: names of its class and of all the classes above.
    """

    def __init__(self, kind: str, kinds: list[str], text: str):
        super().__init__(f"{kind}: {text}")
        self.kind, self.kinds = kind, kinds


class Client:
    """The process; it lives until the block ends, and remembers names from one call to the next.

    Args:
        environment: variables beside the caller's own.
    """

    def __init__(self, environment: dict[str, str]):
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.worker"],
            cwd=REPO,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *rest: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def run(self, code: str, timeout: float = 120.0) -> Any:
        """Run statements.

        Args:
            code: Python; common indentation is taken off.
            timeout: seconds.

        Returns:
            The last statement's value where it is an expression, as JSON can tell it.

        Raises:
            ClientError: the code raised.
            RuntimeError: the process ended, or did not answer in time.
        """
        self._process.stdin.write(json.dumps(dedent(code)) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError(f"the client gave no answer within {timeout} s, or ended:\n{self.log()[-4000:]}")
        reply = json.loads(line)
        if "error" in reply:
            raise ClientError(reply["error"], reply["kinds"], reply["text"])
        return reply["value"]

    def refuses(self, code: str) -> ClientError:
        """Run statements that have to raise.

        Returns:
            What they raised.
        """
        try:
            value = self.run(code)
        except ClientError as error:
            return error
        raise AssertionError(f"this was not refused, and gave {value!r}: {code}")

    def log(self) -> str:
        """What the process has printed so far."""
        descriptor = self._log.fileno()  # shared with the process: its place in the file must not move
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode("utf-8", "replace")
