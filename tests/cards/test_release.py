"""The release: what it would do, what it refuses, and that done stages stay done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cards.__main__ import main
from cards.release import load_config, plan
from cards.run_folder import Run, choose_release_arm
from cards.stage_log import StageLog, fingerprint, progress_lines
from cards.summary import build_summary, summary_text, write_summary
from dataset_builder.errors import KitError

ROOT = Path(__file__).parents[2]
DEMO = "cards/configs/demo.yaml"


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


def write_config(folder: Path, change: str = "", **values: str) -> Path:
    """The demo's config in a folder of its own, with lines added or values replaced."""
    text = Path(DEMO).read_text().replace("runs/demo", str(folder / "run")).replace("dataset: mmaip-v", "dataset: DATA")
    for old, new in values.items():
        text = text.replace(old, new)
    path = folder / "release.yaml"
    path.write_text(text.replace("DATA", str(folder / "mmaip-v")) + change)
    return path


def test_dry_run_lists_and_starts_nothing(tmp_path, capsys):
    config = write_config(tmp_path)
    assert main(["release", str(config), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for words in ("models/", "arms/", "report.html", "NAMESPACE/mmaip-v", "evaluator", "iter_w2s", "tag a round"):
        assert words in printed, words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release.yaml"]


def test_dry_run_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; from cards.__main__ import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'trl', 'pyarrow'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    words = [sys.executable, "-c", code, "release", DEMO, "--dry-run", "--seed", "3"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "runs/demo-seed-3/mmaip-v" in done.stdout


def test_a_seed_gets_a_folder_of_its_own():
    plain, seeded = load_config(DEMO), load_config(DEMO, seed=0)
    assert (plain.run_dir, plain.dataset) == ("runs/demo", "mmaip-v")
    assert (seeded.run_dir, seeded.dataset) == ("runs/demo-seed-0", "runs/demo-seed-0/mmaip-v")
    built = load_config(DEMO, seed=2).build_config()
    assert built.seed == 2 and built.name == "mmaip-v"
    assert built.sources[0].questions == "runs/demo-seed-2/toy/questions.jsonl"
    fields = load_config(DEMO, seed=2).training_fields()
    assert (fields["base"], fields["seed"]) == ("runs/demo-seed-2/models/base", 2)


@pytest.mark.parametrize(
    ("change", "values", "expected"),
    [
        ("\nwrld: {}\n", {}, "wrld"),
        ("", {"kind: visual": "kind: vizual"}, "vizual"),
        ("", {"min_margin: 0.1": "min_margin: 7"}, "min_margin"),
        ("", {"recipes/configs/toy.yaml": "recipes/configs/none.yaml"}, "none.yaml"),
        ("", {"seed: 0": "seed: zero"}, "seed"),
        ("\n  - : {", {}, "YAML"),
    ],
)
def test_a_bad_config_is_one_line(tmp_path, capsys, change, values, expected):
    config = write_config(tmp_path, change, **values)
    assert main(["release", str(config)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.strip().splitlines()) == 1
    assert printed.err.startswith("error: ") and expected in printed.err
    assert not (tmp_path / "run").exists()


def test_missing_config_and_bad_seed(tmp_path, capsys):
    assert main(["release", str(tmp_path / "none.yaml")]) == 2
    assert main(["release", DEMO, "--seed", "-1", "--dry-run"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_done_stages_are_skipped_until_their_inputs_change(tmp_path):
    ran, said = [], []

    def walk(first: int, second: int = 0) -> list[dict]:
        with StageLog(tmp_path / "run", said.append) as log:

            def stage(name: str, inputs: int) -> dict:
                made = tmp_path / "run" / f"{name}.txt"

                def body() -> dict:
                    ran.append(name)
                    made.write_text(f"{name} {inputs}")
                    return {"inputs": inputs}

                return log.run(name, inputs, [made], body, lambda m: f"inputs {m['inputs']}", owns=[made])

            return [stage("one", first), stage("two", second)]

    assert walk(1) == [{"inputs": 1}, {"inputs": 0}] and ran == ["one", "two"]
    assert walk(1) == [{"inputs": 1}, {"inputs": 0}] and ran == ["one", "two"]
    assert said[-1] == "[two] done already: inputs 0"
    walk(1, 5)
    assert ran == ["one", "two", "two"]  # its own inputs
    walk(2, 5)
    assert ran[3:] == ["one", "two"]  # a later stage depends on the earlier ones
    (tmp_path / "run" / "one.txt").write_text("somebody wrote here")
    walk(2, 5)
    assert ran[5:] == ["one"]  # an output that is not what was made is made again
    assert json.loads((tmp_path / "run" / "measurements" / "two.json").read_text()) == {"inputs": 5}


def test_a_stopped_stage_goes_on_and_its_time_adds_up(tmp_path):
    part = tmp_path / "run" / "part.txt"

    def walk(stop: bool) -> StageLog:
        def body() -> dict:
            kept = part.exists()
            part.write_text("half")
            if stop:
                raise KeyboardInterrupt
            return {"kept": kept}

        with StageLog(tmp_path / "run", lambda _: None) as log:
            assert log.run("one", 1, [part], body, lambda _: "", owns=[part]) == {"kept": True}
        return log

    with pytest.raises(KeyboardInterrupt):
        walk(stop=True)
    path = tmp_path / "run" / "run_log.json"
    entry = json.loads(path.read_text())
    assert entry["stages"]["one"]["done"] is False
    entry["stages"]["one"]["seconds"], entry["wall_seconds"] = 100.0, 200.0
    path.write_text(json.dumps(entry))
    log = walk(stop=False)
    assert 100 <= log.seconds["one"] < 160 and 200 <= log.log["wall_seconds"] < 260


def test_what_other_inputs_made_is_removed_first(tmp_path):
    folder = tmp_path / "run" / "made"

    def walk(inputs: int) -> list[str]:
        def body() -> dict:
            folder.mkdir(exist_ok=True)
            (folder / f"{inputs}.txt").write_text("x")
            return {"files": sorted(p.name for p in folder.iterdir())}

        with StageLog(tmp_path / "run", lambda _: None) as log:
            return log.run("one", inputs, [folder], body, lambda _: "", owns=[folder])["files"]

    assert walk(1) == ["1.txt"]
    assert walk(2) == ["2.txt"]


def test_two_releases_do_not_share_a_folder(tmp_path):
    with StageLog(tmp_path / "run"), pytest.raises(KitError, match="another release"), StageLog(tmp_path / "run"):
        pass


def test_a_stage_that_makes_nothing_is_an_error(tmp_path):
    with StageLog(tmp_path / "run", lambda _: None) as log, pytest.raises(KitError, match="without writing"):
        log.run("one", 1, [tmp_path / "never"], dict, lambda _: "")


def test_summary_has_the_agreed_fields(made_run):
    run = Run(made_run)
    summary = build_summary(run, {"world": 1.5}, 12.0)
    assert list(summary) == [
        *("clips", "questions", "answers", "pairs", "drops", "coverage", "chosen_correct", "arms", "release_arm"),
        *("test_clips", "wall_seconds", "stages"),
    ]
    assert set(summary["coverage"]) == set(summary["chosen_correct"]) == {"zoo", "single"}
    for arm in summary["arms"].values():
        assert set(arm) == {
            *("accuracy", "ci95", "p_vs_base", "p_vs_dpo", "alpha", "distance"),
            *("steps", "samples", "judge_calls", "stopped"),
        }
    assert summary["release_arm"] == "iter_w2s" and summary["questions"] == 72
    assert summary["questions"] == summary["pairs"] + sum(summary["drops"].values())
    text = summary_text(run, summary)
    for words in (
        "clips 24 · questions 72",
        "dropped without a pair: identical answers ",
        "; 12 test questions give no pairs by design",
        "96.4 %",
        "iter_w2s *",
        "65.0 – 71.0 %",
        "0.25, 0.25",
    ):
        assert words in text, words


def test_summary_file_has_the_agreed_types(own_run):
    with StageLog(own_run, lambda _: None) as log:
        log.run("world", 1, [], lambda: {"clips": 24}, lambda _: "")
        returned = write_summary(Run(own_run), log)
    summary = json.loads((own_run / "summary.json").read_text())
    assert summary == returned, "what is printed is what is written"

    def fraction(value) -> bool:
        return isinstance(value, float) and 0 <= value <= 1

    assert all(type(summary[name]) is int for name in ("clips", "questions", "answers", "pairs", "test_clips"))
    assert summary["drops"] and all(type(number) is int for number in summary["drops"].values())
    assert all(fraction(summary[name][side]) for name in ("coverage", "chosen_correct") for side in ("zoo", "single"))
    assert list(summary["arms"]) == ["base", "sft_chosen", "dpo", "dpo_expo", "iter", "iter_w2s"]
    for name, arm in summary["arms"].items():
        low, high = arm["ci95"]
        assert all(map(fraction, (arm["accuracy"], low, high))) and low <= arm["accuracy"] <= high
        for other in ("base", "dpo"):
            assert arm[f"p_vs_{other}"] is None if name == other else fraction(arm[f"p_vs_{other}"])
        assert len(arm["alpha"]) == {"dpo": 1, "dpo_expo": 1, "iter": 3, "iter_w2s": 3}.get(name, 0)
        assert len(arm["alpha"]) == len(list((own_run / "arms" / name).glob("round-*"))), "one alpha per round"
        assert all(isinstance(alpha, float) for alpha in arm["alpha"])
        assert isinstance(arm["distance"], float) and arm["distance"] >= 0
    assert summary["release_arm"] in summary["arms"]
    assert isinstance(summary["wall_seconds"], float)
    assert list(summary["stages"]) == ["world"] and isinstance(summary["stages"]["world"], float)


@pytest.mark.parametrize(
    ("validation", "released"),
    [
        ({"dpo": 0.9, "dpo_expo": 0.9, "iter": 0.9, "iter_w2s": 0.9}, "dpo"),
        ({"iter_w2s": 0.9, "iter": 0.9, "dpo_expo": 0.8, "dpo": 0.8}, "iter"),
        ({"iter_w2s": 0.9, "dpo_expo": 0.9, "dpo": 0.8}, "dpo_expo"),
        ({"dpo": 0.8, "iter_w2s": 0.9, "sft_chosen": 0.99, "base": 1.0}, "iter_w2s"),
        ({"dpo": None, "iter": 0.1}, "iter"),
        ({"base": 0.4, "sft_chosen": 0.9}, None),
    ],
)
def test_the_simpler_arm_is_released_on_a_tie(validation, released):
    arms = {name: {"validation_accuracy": accuracy} for name, accuracy in validation.items()}
    assert choose_release_arm(arms) == released


def test_a_stage_says_one_line_at_its_start_and_one_at_its_end(tmp_path):
    said = []
    for _ in range(2):
        with StageLog(tmp_path / "run", said.append) as log:
            log.run("one", 1, [], lambda: {"clips": 3}, lambda m: f"{m['clips']} clips", doing="drawing")
    assert said == ["[one] drawing …", "[one] done in 0 s: 3 clips", "[one] done already: 3 clips"]


def test_progress_lines_have_rate_and_time_left():
    said = []
    report = progress_lines(said.append, "clips", every=0.0)
    for done in (1, 2, 4):
        time.sleep(0.01)
        report(done, 4)
    assert len(said) == 2, "nothing is left to say at the end"
    assert re.fullmatch(r"  2 of 4 clips, [\d,]+ clips/s, 0 s left", said[1])


def test_fingerprints_do_not_depend_on_key_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})


def test_plan_names_a_namespace_when_there_is_one():
    import dataclasses

    config = dataclasses.replace(load_config(DEMO), namespace="somebody")
    assert "somebody/mmaip-v" in plan(config) and "nothing leaves" not in plan(config)
