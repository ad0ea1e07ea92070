"""What ``recipes/iter_w2s.py`` trained by itself becomes a run that can be pushed, with one command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cards.__main__ import main
from cards.finish import arm_name
from cards.push.plan import Options, make_plan
from dataset_builder.errors import KitError
from tests.cards.pushing import ROOT, push
from tests.hub import Client, LoopbackHub


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "iter_w2s"),
        ({"alphas": [0.0]}, "iter"),
        ({"alphas": [0.0], "rounds": 1}, "dpo"),
        ({"pairs": "on_policy", "sft_weight": 0.2}, "iter_w2s_on_policy+sft"),
        ({"judge_names": ["verifier"]}, "iter_w2s+visual"),
        ({"judge_names": ["verifier", "reference"]}, "iter_w2s"),
    ],
)
def test_rounds_are_called_as_the_arm_they_are(fields, name):
    from recipes.arms.specs import parse_arm

    judges = [{"kind": "reference"}, {"kind": "visual", "name": "verifier"}]
    plain = {"alphas": [0.0, 0.5], "rounds": 3, "pairs": "fixed", "sft_weight": 0.0, "judge_names": None}
    settings = SimpleNamespace(script=SimpleNamespace(**{**plain, "judges": judges, **fields}))
    assert arm_name(settings) == name == parse_arm(name).name


def test_what_is_missing_is_one_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rounds.json").write_text("{}")
    assert main(["push", str(tmp_path / "run"), "--namespace", "me"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "python -m cards finish with the words of the training command" in line
    assert main(["finish", "--config", str(tmp_path / "none.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "none.yaml" in line
    (tmp_path / "judge.yaml").write_text("judge: {kind: visaul}\n")
    assert main(["finish", "--evaluator", str(tmp_path / "judge.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "visaul" in line


@pytest.mark.slow
def test_a_lora_run_alone_is_finished_pushed_and_verified(finished, tmp_path):
    """With the dataset of a Hub, an evaluator and the same words; what was done is not done again."""
    from cards.run_folder import Run
    from tests.dataset_builder.worlds import make_member

    base, output, data = make_member(tmp_path / "base", "qwen2_vl", 3), tmp_path / "lora", Run(finished).dataset
    wide = {"max_malformed": 1, "max_repeated": 1, "max_chosen_drop": 1e9, "max_margin": 1e9, "max_length_ratio": "inf"}
    settings = {"config": ROOT / "recipes/configs/toy.yaml", "model_name_or_path": base, "dataset_name": data}
    settings |= {"output_dir": output, "use_peft": "true", "rounds": 2, "max_steps": 1, "stop_early": "false", **wide}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    (tmp_path / "judge.yaml").write_text("judge: {kind: reference, name: strict}\nlicense: mit\n")

    def typed(*command: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command), *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    typed(ROOT / "recipes" / "iter_w2s.py")
    card = (data / "README.md").read_bytes()
    said = typed("-m", "cards", "finish", "--name", "mine", "--evaluator", tmp_path / "judge.yaml")
    assert "iter_w2s+sft: tested" in said and f"python -m cards push {output}" in said
    assert (data / "README.md").read_bytes() == card  # which has its card already
    times = {path: path.stat().st_mtime_ns for path in (output / "results").glob("*.json")}
    assert set(map(lambda path: path.stem, times)) == {"base", "iter_w2s+sft"}
    again = typed("-m", "cards", "finish", "--name", "mine", "--evaluator", tmp_path / "judge.yaml")
    assert ": tested\n" not in again and "[arms] done already" in again
    assert {path: path.stat().st_mtime_ns for path in times} == times
    plan = make_plan(output, Options("tester", base="tester/base"))
    assert [repo.repo_id for repo in plan.repos] == ["tester/mmaip-v", "tester/mine", "tester/mine-evaluator"]
    arms = json.loads((output / "arms.json").read_text())["arms"]
    assert set(arms) == {"base", "iter_w2s+sft"} and arms["iter_w2s+sft"]["p_vs_base"] is not None
    with LoopbackHub(tmp_path / "hub") as hub:
        done = push(output, hub, tmp_path / "home", "--base", "tester/base")
        assert done.code == 0, done.err
        files = hub.files("tester/mine")
        assert {
            f"results/validation/{name}.json" for name in ("base", "iter_w2s+sft-round-1", "iter_w2s+sft-round-2")
        } <= {*files}
        assert json.loads(files["adapter/adapter_config.json"])["base_model_name_or_path"] == "tester/base"
        assert str(Path(tmp_path)).encode() not in b"".join(files.values())
        with Client(hub.environment(tmp_path / "other")) as stranger:
            code = "from cards.__main__ import main; main(['verify', 'tester/mine', '--dataset', 'tester/mmaip-v'])"
            assert stranger.run(code) == 0


def test_arms_that_were_trained_are_not_replaced_by_a_test_of_rounds(tmp_path, capsys):
    """The words of an arms run without ``--arms true`` would train rounds, then put them in the arms' place."""
    output = tmp_path / "run"
    (output / "arms" / ".work").mkdir(parents=True)
    (output / "arms" / ".work" / "job.json").write_text("{}")
    (output / "arms.json").write_text("{}")
    words = ["--model_name_or_path", str(tmp_path), "--dataset_name", str(tmp_path), "--output_dir", str(output)]
    assert main(["finish", "--config", str(ROOT / "recipes/configs/toy.yaml"), *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "holds arms" in line and "--arms true" in line
    assert (output / "arms" / ".work" / "job.json").is_file() and not (output / "rounds.json").exists()


def test_gold_labels_are_not_taken_from_where_they_are_written(tmp_path):
    from cards import steps
    from cards.release_config import EvaluatorConfig, ReleaseConfig

    evaluator = EvaluatorConfig({"kind": "reference"}, ["{run}/results/gold/labels.jsonl"])
    config = ReleaseConfig({}, {}, evaluator=evaluator, run_dir=str(tmp_path))
    kept = tmp_path / "results" / "gold" / "labels.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine\n")
    with pytest.raises(KitError, match="keep your gold labels in a file elsewhere"):
        steps.gold(config, None, SimpleNamespace(folder=tmp_path))
    assert kept.read_text() == "mine\n"
