"""The command line around a build: every command as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dataset_builder.__main__ import main, parser
from dataset_builder.stages import ShardStore
from tests.dataset_builder.served_world import make_served_world
from tests.dataset_builder.worlds import changed, environment, tree
from tests.endpoints.serving import Response
from tests.endpoints.stub import StubServer, play


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


def test_status_counts_each_member_and_its_failed_calls_while_another_process_builds(tmp_path, capsys):
    def beta_is_down(body: dict) -> str | Response:
        return Response.json({"error": {"message": "down"}}, 500) if body["model"] == "beta" else play(body)

    output = tmp_path / "mmaip-v"
    with StubServer(reply=beta_is_down) as stub:
        config = make_served_world(tmp_path, stub.url, max_retries=0)
        assert main(["build", str(config), "--output", str(output), "--quiet"]) == 0
        capsys.readouterr()
        calls = stub.calls
        work = tmp_path / ".mmaip-v-work"
        with ShardStore(work).lock():
            assert main(["status", str(config), "--output", str(output)]) == 0
        said = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert stub.calls == calls
    questions = json.loads((output / "provenance.json").read_text())["summary"]["questions"]
    each, everything = 2 * questions, 4 * questions
    assert ["sampling", str(everything), "of", str(everything), "answers", "are", "done"] in said
    assert ["alpha", str(each), "of", str(each)] in said
    assert ["beta", str(each), "of", f"{each},", str(each), "calls", "failed"] in said
    assert any(line[:3] == ["critic", str(everything), "of"] for line in said)


def test_looking_at_a_build_asks_no_model_for_questions(tmp_path, capsys):
    """Questions that a model writes cost money: a dry run, an estimate and a status leave that to the build."""

    def reply(body: dict) -> str:
        return '["What moves in the video?", "Which colour is it?"]' if body["model"] == "asker" else play(body)

    output = tmp_path / "mmaip-v"
    with StubServer(reply=reply) as stub:
        config = make_served_world(tmp_path, stub.url)
        plain = yaml.safe_load(config.read_text())
        served = {"name": "asker", "model": "asker", "endpoint": plain["zoo"][0]["endpoint"]}
        videos = plain["sources"][0]["videos"]
        plain["sources"] = [{"kind": "generated", "videos": videos, "member": served, "per_video": 2}]
        plain["judges"] = plain["judges"][1:]  # questions that a model wrote have no references
        config.write_text(yaml.safe_dump(plain))
        words = [str(config), "--output", str(output)]
        for look in (["build", *words, "--dry-run", "--quiet"], ["estimate", str(config)], ["status", *words]):
            assert main(look) == 0
        said = capsys.readouterr().out
        assert stub.calls == 0 and list(tmp_path.glob(".mmaip*")) == []
        assert "questions  at most 28" in said and "asker" in said and "not written yet" in said
        assert main(["build", *words, "--quiet"]) == 0
        calls = stub.calls
        assert main(["status", *words]) == 0
        assert stub.calls == calls and "complete" in capsys.readouterr().out


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


@pytest.mark.slow
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
