"""A release without the toy world: one's own clips, models and judge, killed on its way, and a second version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cards.__main__ import main
from cards.push.plan import Options, make_plan
from cards.release_config import load_config
from dataset_builder.errors import KitError
from tests.cards.pushing import ROOT, assert_no_wrong_tag, assert_released
from tests.hub import Client, LoopbackHub

EXAMPLE = "cards/configs/own_release.yaml"
WIDE = {"max_malformed": 1.0, "max_repeated": 1.0, "max_chosen_drop": 1e9, "max_margin": 1e9}  # an untrained base


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_example_says_what_it_would_make(capsys):
    assert main(["release", EXAMPLE, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for words in (
        "from Qwen/Qwen2.5-VL-3B-Instruct: sft_chosen, dpo, iter_w2s+sft",
        "judge referee vqa Qwen/Qwen2-VL-7B-Instruct",
        "debiased by runs/my-model/gold.jsonl",
        "NAMESPACE/my-model-evaluator",
        "nothing leaves this machine",
    ):
        assert words in said, words
    config = load_config(EXAMPLE)
    assert [source.videos for source in config.build_config().sources] == ["my_videos"]
    assert config.build_config().name == "my-dataset" and config.seed == 0 and not config.control
    assert load_config(EXAMPLE, seed=3).gold == ["runs/my-model-seed-3/gold.jsonl"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: vqa ", "kind: vqaa ", "evaluator.judge"),
        ("  weights: both ", "  weights: all ", "push.weights"),
        ("own_videos.yaml", "none.yaml", "none.yaml"),
        ("namespace: null ", "namespace: a/b ", "a/b/my-dataset: is no id"),
        ("  license: apache", "  licence: apache", "licence"),
        ("recipes/configs/qwen2_5_vl_3b_lora.yaml", "recipes/configs/fsdp2.yaml", "model_name_or_path: is missing"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_starts(tmp_path, old, new, said):
    text = Path(EXAMPLE).read_text()
    assert old in text
    (tmp_path / "release.yaml").write_text(text.replace(old, new))
    with pytest.raises(KitError) as error:
        load_config(tmp_path / "release.yaml")
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1


def test_without_an_evaluator_there_is_no_evaluator_repo(tmp_path, capsys):
    content = yaml.safe_load(Path(EXAMPLE).read_text())
    del content["evaluator"]
    content |= {"namespace": "lab", "push": {"version": "1.2.0", "public": True, "base": "lab/base"}}
    (tmp_path / "release.yaml").write_text(yaml.safe_dump(content))
    assert main(["release", str(tmp_path / "release.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "no evaluator repo" in said and "my-model-evaluator" not in said
    assert "would push, public at the end, tagged v1.2.0" in said
    words = load_config(tmp_path / "release.yaml").push.words()
    assert words == ["--weights", "both", "--public", "--version", "1.2.0", "--base", "lab/base"]


def write_release(folder: Path) -> Path:
    """A config of everything of one's own: clips whose bytes stay at home, an untrained zoo, base, verifier, judge."""
    from dataset_builder.toy_models import save_tiny
    from tests.dataset_builder.worlds import changed, make_member, make_world

    build = make_world(folder, {"train": 8, "validation": 3, "test": 22})
    changed(build, build, source={"redistribute": False, "source": "own clips"})
    make_member(folder / "base", "qwen2_vl", 21)
    save_tiny("qwen2_vl", folder / "referee", seed=22)
    recipe = {"model_name_or_path": str(folder / "base"), "rounds": 2, "max_steps": 2, "learning_rate": 1e-3}
    recipe |= {"per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "use_peft": True, "alphas": [0.0, 0.5]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **WIDE}))
    content = {
        **{"name": "own", "run_dir": str(folder / "run"), "dataset": str(folder / "own-pairs"), "workers": 1},
        "build": {"config": str(build)},
        "training": {"config": str(folder / "recipe.yaml"), "arm_names": ["dpo", "iter_w2s"], "draws": 500},
        "evaluator": {
            "judge": {"kind": "visual", "name": "referee", "model": str(folder / "referee")},
            "license": "mit",
            "gold": ["{run}/gold.jsonl"],
        },
        "namespace": "tester",
        "push": {"base": "tester/base"},
    }
    path = folder / "release.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def label(run: Path, arm: str) -> None:
    """Labels by hand of an arm's and the base's answers, as the labelling page writes them."""
    from eval.gold.rows import GoldLabel, LabelFile, response_hash

    file = LabelFile(run / "gold.jsonl")
    for name in ("base", arm):
        rows = json.loads((run / "results" / "evaluator" / f"{name}.json").read_text())["rows"]
        for row in rows[::2]:
            said = "correct" if row["response"] in row["answers"] else "incorrect"
            hashes = (response_hash(row["response"]),)
            file.append(GoldLabel(row["question_id"], row["video_id"], hashes, "ada lovelace", said))


@pytest.mark.slow
def test_the_whole_road_killed_at_every_stage_and_a_second_version(tmp_path):
    config = write_release(tmp_path)
    run = tmp_path / "run"
    with LoopbackHub(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "cards", "release", str(config)]

        def sitting(until: str | None = None, quiet: float = 0.0) -> tuple[int | None, str]:
            """Type the command; with ``until``, kill it when it says so."""
            log = tmp_path / "log.txt"
            with log.open("w") as out:
                work = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
            end = time.monotonic() + 570
            while work.poll() is None and time.monotonic() < end:
                if until is not None and until in log.read_text():
                    time.sleep(quiet)
                    work.kill()
                    break
                time.sleep(0.02)
            work.kill()
            return work.wait(), log.read_text()

        reached = []
        for stage, quiet in (
            *(("[dataset] ", 1.0), ("[arms] ", 3.0), ("round 1/2:", 0.1), ("[evaluator] ", 1.0), ("[cards] ", 0.0)),
            *(("dataset tester/own-pairs: 1 commit", 0.1), ("model tester/own: ", 0.0)),
        ):
            code, said = sitting(stage, quiet)
            reached.append(stage) if code == -9 else None
            assert code in (-9, 0), said
            if hub.repos():
                assert_no_wrong_tag(hub, make_plan(run, Options("tester", base="tester/base")))
        assert len(reached) >= 5, reached
        code, said = sitting()
        assert code == 0, said
        assert "[dataset] done already" in said and "[arms] done already" in said
        assert "[gold] done" in said and "python -m eval label" in said  # nobody has labelled yet
        plan = make_plan(run, Options("tester", base="tester/base"))
        assert_released(hub, plan)
        assert hub.counts()["repeated"] == []
        assert [repo.kind for repo in plan.repos] == ["dataset", "model", "evaluator"]
        judged = json.loads((run / "measurements" / "evaluator.json").read_text())
        assert judged["judge"]["name"] == "referee" and set(judged["arms"]) == {"base", plan.run.release_arm}
        assert judged["sees"].startswith("the frames, the question, the answer")
        assert all(side["unjudged"] == 0 for side in judged["arms"].values())  # clips that the dataset does not hold
        assert plan.run.rows("benchmark", ["video"])[0]["video"] is None
        evaluator = hub.files("tester/own-evaluator")
        assert b"license: mit" in evaluator["README.md"] and "judge/referee/model.safetensors" in evaluator

        label(run, plan.run.release_arm)
        code, said = sitting()
        assert code == 2 and "v0.1.0 is released already" in said and "give another --version" in said
        content = yaml.safe_load(config.read_text())
        content["push"]["version"] = "0.2.0"
        config.write_text(yaml.safe_dump(content))
        code, said = sitting()
        assert code == 0 and "debiased by labels on 22 videos" in said, said
        files = hub.files("tester/own", revision="v0.2.0")
        assert b"annotator-1" in files["results/gold/labels.jsonl"] and b"ada" not in files["results/gold/labels.jsonl"]
        assert hub.refs("tester/own")["tags"]["v0.1.0"] != hub.refs("tester/own")["tags"]["v0.2.0"]
        assert "the same rows, models and scores as v0.1.0" in hub.commits("tester/own")[0]["message"]
        with Client(hub.environment(tmp_path / "other", hub.read_token)) as stranger:
            assert (
                stranger.run("""
                from eval.evaluator import VQAEvaluator
                VQAEvaluator.from_pretrained("tester/own-evaluator", revision="v0.1.0").fingerprint
            """)
                == judged["judge"]["fingerprint"]
            )
