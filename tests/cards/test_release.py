"""The release: what it would do, what it refuses, and that done stages stay done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cards.__main__ import main
from cards.release import load_config, plan
from cards.run_folder import Run
from cards.stage_log import StageLog, fingerprint
from cards.summary import build_summary, summary_text
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
    assert built.source.questions == "runs/demo-seed-2/toy/questions.jsonl"
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
        assert set(arm) == {"accuracy", "ci95", "p_vs_base", "p_vs_dpo", "alpha", "distance"}
    assert summary["release_arm"] == "iter_w2s" and summary["questions"] == 72
    assert summary["questions"] == summary["pairs"] + sum(summary["drops"].values())
    text = summary_text(run, summary)
    for words in (
        "clips 24 · questions 72",
        "identical_answers",
        "96.4 %",
        "iter_w2s *",
        "65.0 – 71.0 %",
        "0.25, 0.25",
    ):
        assert words in text, words


def test_fingerprints_do_not_depend_on_key_order():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})


def test_plan_names_a_namespace_when_there_is_one():
    import dataclasses

    config = dataclasses.replace(load_config(DEMO), namespace="somebody")
    assert "somebody/mmaip-v" in plan(config) and "nothing leaves" not in plan(config)
