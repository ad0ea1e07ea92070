"""The push: what it plans, what a stranger finds afterwards, and that it sends nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from cards.push.command import describe, push_leg
from cards.push.notes import changes, measures, models, newest_section, previous
from cards.push.plan import Options, make_plan
from dataset_builder.errors import KitError
from tests.cards.pushing import ROOT, assert_released, command, copy, push, repos
from tests.hub import Client, Fault, LoopbackHub


@pytest.fixture(scope="module")
def plan(finished):
    return make_plan(finished, Options("tester"))


@pytest.fixture(scope="module")
def pushed(finished, tmp_path_factory):
    """A hub that the run was pushed to, and how that went."""
    folder = tmp_path_factory.mktemp("pushed")
    with LoopbackHub(folder / "hub") as hub:
        done = push(finished, hub, folder / "home")
        assert done.code == 0, done.err
        yield hub, done


def test_a_dry_run_names_everything_without_network_or_heavy_imports(finished, plan):
    code = (
        "import sys; from cards.__main__ import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'trl', 'pyarrow', 'httpx'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    words = [sys.executable, "-c", code, *command(finished)[3:], "--dry-run"]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_ENDPOINT": "http://x"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == describe(plan)
    for repo in plan.repos:
        assert f"{repo.kind} {repo.repo_id}" in done.stdout
        for state in repo.states:
            for file in state.files.values():
                assert f"{file.path} " in done.stdout and file.sha256 in done.stdout
    tags = [state.tags for state in plan.repo("model").states]
    assert tags == [("round-1",), ("round-2",), ("round-3",), ("v0.1.0",)]


def test_copies_for_the_hub_carry_its_ids_and_the_run_folder_stays(finished, plan):
    again = make_plan(finished, Options("tester"))
    assert [[s.key for s in repo.states] for repo in again.repos] == [[s.key for s in r.states] for r in plan.repos]
    files = plan.repo("model").final.files
    card = files["README.md"].read().decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["datasets"] == ["tester/mmaip-v"]
    assert front["model-index"][0]["results"][0]["dataset"]["type"] == "tester/mmaip-v"
    assert 'from_pretrained("tester/demo")' in card and "PATH_OR_REPO" not in card
    local = (finished / "arms" / "iter_w2s" / "round-3" / "README.md").read_text()
    assert "PATH_OR_REPO" in local and "tester" not in local
    assert 'load_dataset("tester/mmaip-v"' in plan.repo("dataset").final.files["README.md"].read().decode()
    evaluator = plan.repo("evaluator").final.files["README.md"].read().decode()
    assert 'from_pretrained("tester/demo-evaluator")' in evaluator and "NAME" not in evaluator.replace("MODEL", "")
    (entry,) = yaml.safe_load(files[".eval_results/mmaip-v.yaml"].read())
    task = yaml.safe_load(plan.repo("dataset").final.files["eval.yaml"].read())["tasks"][0]
    assert entry["dataset"] == {"id": "tester/mmaip-v", "task_id": task["id"]} and entry["value"] == 0.68
    assert task["config"] == "benchmark" and task["split"] == "test"
    arguments = yaml.safe_load(files["training_args.yaml"].read())
    assert arguments["arm"] == "iter_w2s" and [each["round"] for each in arguments["rounds"]] == [1, 2, 3]


def test_what_is_tagged_is_what_was_planned_and_all_of_it_is_private(pushed, plan):
    hub, done = pushed
    assert_released(hub, plan)
    assert all(hub.settings(*repo)["private"] for repo in repos(plan))
    (collection,) = hub.collections()
    assert collection["private"] and [(item["id"], item["type"]) for item in collection["items"]] == repos(plan)
    assert hub.counts()["repeated"] == [] and hub.counts()["leaks"] == 0
    assert hub.token not in done.out + done.err
    assert "The first version." in hub.commits("tester/demo")[0]["message"]


def test_a_stranger_loads_it_all(pushed, plan, tmp_path):
    hub, _ = pushed
    with Client(hub.environment(tmp_path / "home", hub.read_token)) as stranger:
        rows = stranger.run("""
            from datasets import Video, load_dataset
            found = {}
            for config in ("preferences", "benchmark", "responses", "questions"):
                data = load_dataset("tester/mmaip-v", config, revision="v0.1.0")
                found[config] = {split: len(rows) for split, rows in data.items()}
            pairs = load_dataset("tester/mmaip-v", split="train", streaming=True)
            assert next(iter(pairs.cast_column("video", Video(decode=False))))["video"]["bytes"][4:8] == b"ftyp"
            found
        """)
        assert rows == plan.run.split_rows
        sums = stranger.run("""
            from transformers import AutoModelForImageTextToText, AutoProcessor
            AutoProcessor.from_pretrained("tester/demo")
            def total(revision):
                model = AutoModelForImageTextToText.from_pretrained("tester/demo", revision=revision)
                return float(sum(weights.double().abs().sum() for weights in model.parameters()))
            [total(revision) for revision in ("round-1", "round-3", "main", "v0.1.0")]
        """)
        assert sums[0] != sums[1] and sums[1] == sums[2] == sums[3]
        assert stranger.run("""
            from eval.evaluator import VQAEvaluator
            VQAEvaluator.from_pretrained("tester/demo-evaluator")(None, "what ?", "a cat", ["a cat"]).correct
        """)


def test_pushing_again_sends_nothing_and_changed_content_needs_a_version(pushed, finished, plan, tmp_path):
    hub, _ = pushed
    hub.clear_counts()
    done = push(finished, hub, tmp_path / "home")
    assert done.code == 0 and done.out.count("all of it is there already") == 3
    counts = hub.counts()
    assert counts["uploaded_bytes"] == 0 and counts["uploads"] == {} and "commit" not in counts["requests"]
    other = copy(finished, tmp_path / "other")
    card = other.parent / "mmaip-v" / "README.md"
    card.write_text(card.read_text() + "\nOne more line.\n")
    done = push(other, hub, tmp_path / "home")
    assert done.code == 2 and "v0.1.0 is released already" in done.err and len(done.err.strip().splitlines()) == 1
    assert hub.counts()["uploads"] == {}
    assert_released(hub, plan)


def test_lost_replies_of_commits_end_in_one_release(finished, plan, tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.plan(Fault("lost", on=["commit"], times=3), Fault("status", on=["tag"], status=500, times=1))
        done = push(finished, hub, tmp_path / "home", "--public", quick=True)
        assert done.code == 0, done.err
        assert "the connection broke" in done.out and hub.counts()["faults"] == {"lost": 3, "status": 1}
        assert_released(hub, plan)
        assert hub.counts()["repeated"] == []
        assert [len(hub.commits(*repo)) for repo in repos(plan)] == [2, 5, 2]  # with the first one of every repo
        assert not any(hub.settings(*repo)["private"] for repo in repos(plan)) and not hub.collections()[0]["private"]


def test_it_says_what_was_verified_and_what_was_not(pushed, plan):
    hub, done = pushed
    files = sum(len({file.sha256 for s in repo.states for file in s.files.values()}) for repo in plan.repos)
    assert f"verified: {files} files in 3 repos" in done.out and "6 tags lead to them" in done.out
    assert f"verified: {hub.endpoint} accepts the YAML block of 3 cards" in done.out
    assert "not verified: the cards by https://huggingface.co itself, which was not asked" in done.out
    assert "not verified: the numbers on the cards; python -m cards verify NAMESPACE/NAME" in done.out
    for path in ("datasets/tester/mmaip-v/tree/v0.1.0", "tester/demo/tree/v0.1.0", "collections/tester/"):
        assert f"{hub.endpoint}/{path}" in done.out
    asked = [entry["kind"] for entry in hub.log()]
    assert asked.index("validate-yaml") < asked.index("create")  # before anything else left


def test_a_card_that_the_hub_refuses_is_told_before_anything_is_sent(finished, tmp_path):
    run = copy(finished, tmp_path / "copy")
    card = run / "arms" / "iter_w2s" / "round-3" / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: Apache Two", 1))
    with LoopbackHub(tmp_path / "hub") as hub:
        done = push(run, hub, tmp_path / "home")
        assert done.code == 2 and hub.repos() == [] and set(hub.counts()["uploads"]) == set()
        (line,) = done.err.strip().splitlines()
        assert "model tester/demo: README.md: the Hub refuses its YAML block" in line and "license" in line
        hub.plan(Fault("status", on=["validate-yaml"], status=400, times=1))  # without a list of errors
        done = push(finished, hub, tmp_path / "home")
        assert done.code == 2 and hub.repos() == [] and "the Hub refuses its YAML block: " in done.err, done.err
        hub.plan(Fault("status", on=["validate-yaml"], status=404, times=3))
        done = push(finished, hub, tmp_path / "home")
        assert done.code == 0 and f"not verified: {hub.endpoint} has no check of cards" in done.out, done.err


def test_a_dataset_that_is_there_already_is_named_and_not_pushed(pushed, finished, tmp_path):
    """Somebody aligns a model on a released dataset: model and evaluator go up beside it."""
    hub, _ = pushed
    hub.clear_counts()
    words = ("--name", "other", "--dataset", "tester/mmaip-v")
    done = push(finished, hub, tmp_path / "home", *words)
    assert done.code == 0 and "verified: " in done.out, done.err
    assert {name.split()[0] for name in hub.counts()["uploads"]} == {
        "model:tester/other",
        "model:tester/other-evaluator",
    }
    card = yaml.safe_load(hub.files("tester/other")["README.md"].decode().split("---\n")[1])
    assert card["datasets"] == ["tester/mmaip-v"]
    run = copy(finished, tmp_path / "copy")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "dataset_repo": "tester/mmaip-v"}))
    plan = make_plan(run, Options("tester", "other"))
    assert [repo.kind for repo in plan.repos] == ["model", "evaluator"] and "no dataset repo" in plan.remarks[0]
    for repo_id, said in (("tester/none", "there is no such dataset"), ("tester/mmaip-v", "is another build")):
        if said == "is another build":
            for name, content in ((run / "run.json", {**info, "dataset_fingerprint": "0" * 16}),):
                name.write_text(json.dumps(content))
            provenance = run.parent / "mmaip-v" / "provenance.json"
            known = json.loads(provenance.read_text())
            provenance.write_text(json.dumps({**known, "fingerprint": "0" * 16}))
        done = push(run, hub, tmp_path / "home", "--name", "third", "--dataset", repo_id)
        assert done.code == 2 and said in done.err and len(done.err.strip().splitlines()) == 1, done.err


def test_a_token_that_may_not_write_is_told_before_anything_is_sent(pushed, finished, tmp_path):
    hub, _ = pushed
    hub.clear_counts()
    for token, words in ((hub.read_token, "may only read"), (hub.add_token("guest"), "may write to guest only")):
        done = push(finished, hub, tmp_path / "home", token=token)
        assert done.code == 2 and words in done.err and len(done.err.strip().splitlines()) == 1
    assert set(hub.counts()["requests"]) == {"whoami"}


def test_the_last_leg_of_a_release_pushes_though_the_release_is_offline(pushed, finished, tmp_path, monkeypatch):
    hub, _ = pushed
    hub.clear_counts()
    for name, value in {**hub.environment(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    assert push_leg(str(finished), "tester", "demo", offline="1") == 2  # a person wanted that
    assert hub.counts()["requests"] == {}
    assert push_leg(str(finished), "tester", "demo", offline=None) == 0
    assert hub.counts()["requests"]["whoami"] == 1 and hub.counts()["uploads"] == {}


def test_a_run_that_is_not_finished_is_one_line(finished, tmp_path):
    with pytest.raises(KitError, match=r"run\.json"):
        make_plan(tmp_path, Options("tester"))
    run = copy(finished, tmp_path / "copy")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "dataset_fingerprint": "0" * 16}))
    with pytest.raises(KitError, match="another build"):
        make_plan(run, Options("tester"))
    (run / "run.json").write_text(json.dumps({**info, "dataset": "elsewhere"}))
    with pytest.raises(KitError, match="elsewhere: holds no dataset"):
        make_plan(run, Options("tester"))


def test_adapters_lead_to_a_base_that_others_have(finished, tmp_path):
    run = copy(finished, tmp_path / "copy")
    base = run / "models" / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    for number in (1, 2, 3):
        adapter = run / "arms" / "iter_w2s" / f"round-{number}" / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps({"r": 4, "base_model_name_or_path": str(base)}))
        (adapter / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    config = "adapter/adapter_config.json"
    model = make_plan(run, Options("tester")).repo("model")
    assert model.states[0].tags == ("base",) and set(model.states[0].files) == {"config.json"}
    known = json.loads(model.states[1].files[config].read())
    assert (known["base_model_name_or_path"], known["revision"]) == ("tester/demo", "base")
    model = make_plan(run, Options("tester", base="lab/base")).repo("model")
    assert json.loads(model.final.files[config].read())["base_model_name_or_path"] == "lab/base"
    front = yaml.safe_load(model.final.files["README.md"].read().decode().split("---\n")[1])
    assert (front["base_model"], front["base_model_relation"]) == ("lab/base", "finetune")
    merged = make_plan(run, Options("tester", weights="merged", base="lab/base")).repo("model").final.files
    assert config not in merged and "model.safetensors" in merged
    alone = make_plan(run, Options("tester", weights="adapter", base="lab/base")).repo("model").final.files
    assert "adapter_config.json" in alone and "model.safetensors" not in alone and "tokenizer.json" in alone
    with pytest.raises(KitError, match="has no adapter"):
        make_plan(finished, Options("tester", weights="adapter"))


def test_release_notes_say_what_changed():
    assert newest_section("# Log\n\n## 2.0\n\n- new\n\n## 1.0\n\n- old\n") == "## 2.0\n\n- new"
    assert previous("v1.10.0", ["v1.9.0", "v1.2.0", "round-1", "v2.0.0", "v1.10.0"]) == "v1.9.0"
    assert previous("v0.1.0", ["v0.1.0", "round-2"]) is None

    def told(rows: int, value: float, base: str = "b") -> dict:
        infos = [{"config_name": "preferences", "splits": [{"name": "train", "num_examples": rows}]}]
        index = [{"name": "demo", "results": [{"metrics": [{"type": "accuracy", "value": value}]}]}]
        return measures({"dataset_info": infos, "model-index": index}) | models("model", {"base": base, "rounds": [{}]})

    class Repo:
        repo_id = "lab/demo"

    assert changes(Repo, "v1.0.0", told(10, 0.5), told(12, 0.5)) == [
        "- lab/demo: rows of preferences/train: 10 in v1.0.0, 12 now"
    ]
    assert changes(Repo, "v1.0.0", told(10, 0.5), told(10, 0.75)) == ["- lab/demo: accuracy: 0.5 in v1.0.0, 0.75 now"]
    assert changes(Repo, "v1.0.0", told(1, 0.5), told(1, 0.5, "c")) == ["- lab/demo: base: b in v1.0.0, c now"]
    assert changes(Repo, "v1.0.0", {}, told(1, 0.5))[0] == (
        "- lab/demo: rows of preferences/train: not there in v1.0.0, 1 now"
    )
    assert "the same rows, models and scores" in changes(Repo, "v1.0.0", told(1, 0.5), told(1, 0.5))[0]
