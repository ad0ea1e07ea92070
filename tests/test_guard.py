"""The guard itself: what leaves this machine is caught, in this process and in children; loopback passes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# TEST-NET-1 (RFC 5737) is routed nowhere, so a guard that failed would still harm nobody.
OUTSIDE = "192.0.2.1"


@pytest.fixture
def planted():
    """Attempts made on purpose: read from the log, then taken out again so that the guard does not fail this test."""
    log = Path(os.environ["MMAIP_V_SOCKET_LOG"])
    before = log.read_text() if log.exists() else ""
    found = []
    yield lambda: found.append(log.read_text()[len(before) :]) or found[-1]
    log.write_text(before)


def test_connection_from_this_process_is_refused(planted):
    with socket.socket() as s, pytest.raises(PermissionError, match="beyond loopback"):
        s.connect((OUTSIDE, 80))
    assert f"socket.connect to {OUTSIDE}:80" in planted()


def test_name_lookup_is_refused(planted):
    with pytest.raises(PermissionError):
        socket.getaddrinfo("huggingface.co", 443)
    assert "huggingface.co" in planted()


def test_connection_from_a_child_is_caught_even_when_the_child_hides_it(planted):
    code = f"import socket\ntry:\n    socket.create_connection(('{OUTSIDE}', 80), timeout=1)\nexcept OSError:\n    pass"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert OUTSIDE in planted()


def test_grandchild_is_caught(planted):
    inner = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{OUTSIDE}', 9))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], capture_output=True)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert OUTSIDE in planted()


@pytest.mark.parametrize(("subnet", "refused"), [("127.9.0.0/16", True), ("192.0.2.0/30", False), ("8.0.0.0/8", True)])
def test_an_exception_names_one_private_subnet(planted, subnet, refused):
    """TEST-NET-1 counts as private; 8.0.0.0/8 does not, and would not contain the address anyway."""
    code = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{OUTSIDE}', 9))"
    environment = {**os.environ, "MMAIP_V_SOCKET_NET": subnet}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ("beyond loopback" in run.stderr) == refused
    assert (OUTSIDE in planted()) == refused


def test_loopback_passes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_a_test_that_leaks_fails(tmp_path):
    """The whole chain in a pytest of its own: the leaking test is reported as failed."""
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(
        (Path(__file__).parent / "guard" / "sitecustomize.py").read_text()
    )
    code = f"import socket; socket.create_connection(('{OUTSIDE}', 80), timeout=1)"
    (tmp_path / "test_leak.py").write_text(
        "import subprocess, sys\n"
        f"def test_leak():\n    subprocess.run([sys.executable, '-c', {code!r}], capture_output=True)\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tmp_path), "-p", "no:cacheprovider", "--rootdir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 1
    assert "reached beyond loopback" in run.stdout
