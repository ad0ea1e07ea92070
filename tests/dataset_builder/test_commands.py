"""The command line around a build: every command as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_builder.__main__ import main, parser
from tests.dataset_builder.served_world import make_served_world
from tests.dataset_builder.worlds import changed, environment, tree
from tests.endpoints.stub import StubServer


def test_attach_export_and_reselect_as_typed(built, world, tmp_path, capsys):
    bare = changed(world, tmp_path / "bare.yaml", ids_only=True)
    assert main(["build", str(bare), "--output", str(tmp_path / "bare"), "--quiet"]) == 0
    videos = Path(built.config.sources[0].videos)
    words = ["--output", str(tmp_path / "full"), "--quiet"]
    assert main(["attach", str(tmp_path / "bare"), "--videos", str(videos), *words]) == 0
    assert (
        main(["export", str(tmp_path / "full"), "--shape", "ms_swift", "--output", str(tmp_path / "swift"), "--quiet"])
        == 0
    )
    assert list((tmp_path / "swift").rglob("*.jsonl"))
    (tmp_path / "rules.yaml").write_text("pairs: {min_margin: 0.00001}\njudges: [reference]\n")
    words = ["--config", str(tmp_path / "rules.yaml"), "--output", str(tmp_path / "new"), "--quiet"]
    assert main(["reselect", str(tmp_path / "full"), *words]) == 0
    assert "pairs_changed" in capsys.readouterr().out
    # Rows without a video are named, and the exit code says so.
    words = ["--shape", "hound", "--output", str(tmp_path / "none"), "--quiet"]
    assert main(["export", str(tmp_path / "bare"), *words]) == 2
    assert "video" in capsys.readouterr().err


def test_a_spend_limit_stops_cleanly_and_a_higher_one_goes_on(tmp_path, capsys):
    output = tmp_path / "mmaip-v"
    price = {"prompt": 1000.0, "completion": 1000.0, "frame_tokens": 256}
    with StubServer() as stub:
        config = make_served_world(tmp_path, stub.url, price=price, spend_limit=20.0, concurrency=2)
        words = ["--output", str(output), "--quiet"]
        assert main(["build", str(config), *words]) == 4
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "spend limit 20" in error and "Traceback" not in error
        assert not output.exists()
        paid = stub.calls
        assert 0 < paid < 112
        assert main(["status", str(config), "--output", str(output)]) == 0
        assert "spent" in capsys.readouterr().out
        config = make_served_world(tmp_path, stub.url, price=price, spend_limit=10_000.0, concurrency=2)
        assert main(["build", str(config), *words]) == 0
        assert stub.stats()["repeated"] == 0  # nothing that was paid for is asked again
    with StubServer() as stub:
        config = make_served_world(tmp_path, stub.url)
        assert main(["build", str(config), "--output", str(tmp_path / "free"), "--quiet"]) == 0
    assert tree(tmp_path / "free").keys() == tree(output).keys()


def test_a_wrong_key_is_one_line_and_stops_at_once(tmp_path, capsys, monkeypatch):
    with StubServer(key="right") as stub:
        monkeypatch.setenv("STUB_KEY", "wrong-and-secret")
        config = make_served_world(tmp_path, stub.url, api_key_env="STUB_KEY")
        assert main(["build", str(config), "--output", str(tmp_path / "mmaip-v"), "--quiet"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "401" in error and "wrong-and-secret" not in error
        monkeypatch.setenv("STUB_KEY", "right")
        assert main(["build", str(config), "--output", str(tmp_path / "mmaip-v"), "--quiet"]) == 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"wrong-and-secret" not in data and b"Bearer" not in data, path


def test_status_before_and_after(world, built, tmp_path, capsys):
    assert main(["status", str(world), "--output", str(tmp_path / "none")]) == 0
    said = capsys.readouterr().out
    assert "sampling   0 of" in said and "not written yet" in said
    assert main(["status", str(world), "--output", str(built.output)]) == 0
    assert "complete" in capsys.readouterr().out


def test_dry_run_says_what_it_would_take(tmp_path, capsys):
    config = make_served_world(tmp_path, "http://127.0.0.1:9/v1")
    assert main(["build", str(config), "--output", str(tmp_path / "x"), "--dry-run", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "alpha" in said and "critic" in said and "calls" in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["build", "status", "estimate", "attach", "export", "reselect", "injections"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    assert "usage:" in capsys.readouterr().out


def test_two_processes_under_a_launcher_build_the_same(world, built, tmp_path):
    """Local models data-parallel: ``torchrun`` starts what ``accelerate launch`` starts, on a CPU too."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    output = tmp_path / "mmaip-v"
    done = subprocess.run(
        [*words, "dataset_builder", "build", str(world), "--output", str(output), "--quiet"],
        capture_output=True,
        text=True,
        env={**environment(), "GLOO_SOCKET_IFNAME": "lo"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("dataset  ") == 1  # the first process speaks
    assert json.loads((output.parent / ".mmaip-v-work" / "jobs" / "ranks.json").read_text())["members"]
    assert tree(output) == tree(built.output)
