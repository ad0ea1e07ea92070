"""The doctor names what is wrong and what to do, and never the token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from cards import doctor
from tests.hub import Client, LoopbackHub

REPO = Path(__file__).resolve().parents[2]


def test_every_requirement_of_the_kit_is_met_here():
    wanted = doctor.requirements()
    assert any(line.startswith("huggingface_hub") for line in wanted) and not any("#" in line for line in wanted)
    (finding,) = doctor.packages(wanted)
    assert finding.state == doctor.OK and f"{len(wanted)} of {len(wanted)}" in finding.said


def test_an_old_version_and_a_missing_package_are_named(monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.9.1" if name == "datasets" else real(name))
    old, missing, rest = doctor.packages(["datasets>=5.2,<6", "no-such-package>=1", "numpy"])
    assert (old.state, missing.state, rest.state) == (doctor.PROBLEM, doctor.PROBLEM, doctor.OK)
    assert "0.9.1 is installed" in old.said and "pip install 'datasets<6,>=5.2'" in old.do
    assert missing.said == "is not installed" and "no-such-package" in missing.do
    assert "1 of 3" in rest.said
    assert doctor.python((3, 10, 2)).state == doctor.PROBLEM


def test_an_absent_extra_is_a_note_that_says_what_for(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    found = {finding.name: finding for finding in doctor.extras()}
    assert {finding.state for finding in found.values()} == {doctor.NOTE}
    assert "labelling" in found["extra label"].said and ".[label]" in found["extra label"].do
    assert list(doctor.torchcodec()) == [] and list(doctor.gpu()) == []


@pytest.mark.parametrize(("free", "state"), [(0.5, doctor.PROBLEM), (8, doctor.NOTE), (500, doctor.OK)])
def test_free_disk(monkeypatch, free, state):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**12, 0, int(free * 1e9)))
    found = list(doctor.disks())
    assert [finding.state for finding in found] == [state, state]
    assert all(("free some" in finding.do) == (state != doctor.OK) for finding in found)


def test_codecs_are_tried_not_believed(monkeypatch):
    assert doctor.codecs().state == doctor.OK
    import av

    monkeypatch.setattr(av, "open", lambda *a, **k: (_ for _ in ()).throw(ValueError("no such muxer")))
    broken = doctor.codecs()
    assert broken.state == doctor.PROBLEM and "no such muxer" in broken.said and broken.do


def test_more_threads_than_cpus_is_said(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert doctor.threads().state == doctor.NOTE
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert doctor.threads().state == doctor.OK


def test_the_command_works_offline_without_a_token(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "cards", "doctor", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    found = json.loads((tmp_path / "found.json").read_text())
    problems = [finding for finding in found if finding["state"] == "problem"]
    assert done.returncode == (2 if problems else 0), done.stderr
    assert len(done.stdout.splitlines()) == len(found) + 1
    by_name = {finding["name"]: finding for finding in found}
    assert by_name["token"]["state"] == "note" and "only push needs one" in by_name["token"]["said"]
    assert by_name["GPU"]["state"] == "note" and by_name["python"]["state"] == "ok"
    assert all(finding["do"] for finding in found if finding["state"] != "ok"), "what is not well says what to do"
    assert "recipes.memory" in by_name["memory"]["said"]


def test_a_driver_without_a_gpu_for_torch_is_said(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "torch (build" in list(doctor.gpu())[-1].said and "nvidia-smi" in list(doctor.gpu())[-1].do


def test_a_fine_grained_token_says_what_it_may_write():
    def scope(kind, name, *permissions):
        return {"entity": {"type": kind, "name": name}, "permissions": list(permissions)}

    writes = scope("org", "lab", "repo.content.read", "repo.write")
    some = doctor.fine_grained("ada", {"scoped": [scope("user", "ada", "repo.content.read"), writes]})
    assert some.said.endswith("may write repos of: lab") and "collections" in some.do
    one = doctor.fine_grained("ada", {"scoped": [scope("model", "ada/one", "repo.write")]})
    assert "no namespace" in one.said and "may not push" in one.do
    assert "no namespace" in doctor.fine_grained("ada", {}).said


def test_token_scopes_are_asked_and_the_token_is_never_shown(tmp_path):
    with LoopbackHub(tmp_path / "hub", orgs=("lab",)) as hub:
        environment = hub.environment(tmp_path / "home")
        with Client(environment) as client:
            client.run("import os; from dataclasses import asdict; from cards.doctor import token")
            able = client.run("asdict(token())")
            client.run(f"os.environ['HF_TOKEN'] = '{hub.read_token}'")
            reader = client.run("asdict(token())")
            client.run("os.environ['HF_TOKEN'] = 'hf_wrong'")
            refused = client.run("asdict(token())")
    assert able["state"] == "ok" and "role write" in able["said"] and "tester, lab" in able["said"]
    assert reader["state"] == "note" and "may not push" in reader["do"]
    assert refused["state"] == "problem" and "login" in refused["do"]
    said = json.dumps([able, reader, refused])
    assert not any(secret in said for secret in (hub.token, hub.read_token, "hf_wrong"))
