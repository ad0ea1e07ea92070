"""The controls: equal steps, one search, one table; finished runs are kept, whoever did them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dataset_builder.errors import KitError
from eval.results import Results, compare
from eval.stats import holm
from recipes.arms.run import run_arms
from recipes.arms.specs import CONTROLS, DEFAULT_ARMS
from recipes.arms.table import format_table
from recipes.extrapolate import distance
from recipes.rounds import load_state
from recipes.validation import accuracy_at, preference_accuracy_at

ARMS = DEFAULT_ARMS
DPO_ARMS = tuple(arm for arm in ARMS if arm not in CONTROLS)
RATES = [5e-4, 2e-3]
DRAWS = 2_000


@pytest.fixture(scope="module")
def fields(dataset, base) -> dict:
    from tests.recipes.conftest import small_fields

    small = small_fields(dataset, base)
    del small["dataset_name"], small["model_name_or_path"]
    return {**small, "dataset": dataset, "base": base, "rounds": 2, "learning_rates": RATES, "draws": DRAWS, "seed": 1}


@pytest.fixture(scope="module")
def finished(fields, tmp_path_factory) -> tuple[Path, dict, list[str]]:
    """All arms, by two worker processes."""
    output = tmp_path_factory.mktemp("arms") / "run"
    lines: list[str] = []
    return output, run_arms(output, log=lines.append, workers=2, **fields), lines


def test_table(finished, base):
    output, table, _ = finished
    assert json.loads((output / "arms.json").read_text()) == table
    assert table["order"] == list(table["arms"]) == list(ARMS)
    assert (table["test_clips"], table["test_questions"], table["draws"], table["steps"]) == (4, 8, DRAWS, 4)
    results = {arm: Results.load(output / "results" / f"{arm}.json") for arm in ARMS}
    for other in ("base", "dpo"):
        names = [arm for arm in ARMS if arm != other]
        raw = [compare(results[arm], results[other], draws=DRAWS, seed=1) for arm in names]
        for arm, test, p in zip(names, raw, holm([test.p for test in raw]), strict=True):
            assert table["arms"][arm][f"p_vs_{other}"] == p
            assert table["arms"][arm][f"diff_vs_{other}"] == test.difference
        assert table["arms"][other][f"p_vs_{other}"] is None
    start = load_state(base)
    for arm, row in table["arms"].items():
        validated = output / "arms" / arm / f"round-{len(row['alpha']) or 1}" / "validation.json"
        validated = output / "results" / "validation" / "base.json" if arm == "base" else validated
        said = accuracy_at(json.loads(validated.read_text()), row["alpha"][-1] if row["alpha"] else 0.0)
        assert row["validation_accuracy"] == said, "the rows give what is said of them"
        assert row["accuracy"] == results[arm].accuracy.mean
        low, high = row["ci95"]
        assert 0 <= low <= row["accuracy"] <= high <= 1
        if arm == "base":
            assert row["distance"] == 0 and row["lr_search"] == [] and row["alpha"] == []
            continue
        assert [point["learning_rate"] for point in row["lr_search"]] == RATES
        best = max(point["validation_accuracy"] for point in row["lr_search"])
        rates = [point["learning_rate"] for point in row["lr_search"] if point["validation_accuracy"] == best]
        assert row["learning_rate"] == rates[0], "ties go to the smaller learning rate"
        rounds = sorted((output / "arms" / arm).glob("round-*"))
        assert len(rounds) == {"iter": 2, "iter_w2s": 2}.get(arm, 1)
        for path, curve in zip(rounds, row["alpha_curves"]):
            content = json.loads((path / "validation.json").read_text())
            for point in curve:
                assert point["accuracy"] == accuracy_at(content, point["alpha"])
                assert point["preference_accuracy"] == preference_accuracy_at(content, point["alpha"])
        steps = [json.loads((path / "metrics.json").read_text())["steps"] for path in rounds]
        assert sum(steps) == 4, "equal optimizer steps"
        assert row["distance"] == pytest.approx(distance(load_state(rounds[-1]), start)) != 0
        assert len(row["alpha"]) == len(row["alpha_curves"]) == (len(rounds) if arm in DPO_ARMS else 0)
        searched = output / "arms" / ".work" / ("dpo" if arm == "dpo_expo" else arm)
        kept = {path.parent.name for path in searched.glob("lr-*/round-*")}
        assert kept == {f"lr-{row['learning_rate']:g}"}, "weights of the other learning rates are gone"
    assert set(table["arms"]["iter"]["alpha"]) == set(table["arms"]["dpo"]["alpha"]) == {0.0}
    assert [point["alpha"] for point in table["arms"]["dpo_expo"]["alpha_curves"][0]] == [0.0, 0.5]
    validation = {arm: table["arms"][arm]["validation_accuracy"] for arm in DPO_ARMS}
    assert validation[table["release_arm"]] == max(validation.values())
    assert len(format_table(table).splitlines()) == 1 + len(ARMS)


def test_expo_starts_from_the_chosen_dpo_run(finished):
    _, table, _ = finished
    dpo, expo = table["arms"]["dpo"], table["arms"]["dpo_expo"]
    assert expo["learning_rate"] == dpo["learning_rate"]
    assert expo["distance"] == pytest.approx(dpo["distance"] * (1 + expo["alpha"][0]), rel=1e-4)
    assert expo["validation_accuracy"] >= dpo["validation_accuracy"]


def test_again_and_after_a_loss(finished, fields):
    output, table, _ = finished

    def stamps() -> dict[str, int]:
        return {str(p.relative_to(output)): p.stat().st_mtime_ns for p in (output / "arms" / ".work").rglob("*.json")}

    before = stamps()
    lines: list[str] = []
    assert run_arms(output, log=lines.append, workers=2, **fields) == table
    assert not lines, "nothing was left to do"
    work = output / "arms" / ".work"
    (work / "sft_chosen.json").unlink()
    (work / "sft_chosen" / f"lr-{RATES[0]:g}" / "candidate.json").unlink()
    results = (output / "results" / "sft_chosen.json").read_bytes()
    assert run_arms(output, log=lines.append, **fields) == table, "one process gives what two gave"
    assert (output / "results" / "sft_chosen.json").read_bytes() == results
    changed = {name for name, stamp in stamps().items() if before.get(name) != stamp and "job.json" not in name}
    assert changed and all("sft_chosen" in name for name in changed)
    assert re.search(r"parts, [\d.]+ steps/s, \d+ s left", lines[-1])


def test_another_configuration_is_refused(finished, fields):
    output, table, _ = finished
    with pytest.raises(KitError, match=r"arms of another configuration \(beta 0.1 → 0.2\)"):
        run_arms(output, **fields, beta=0.2)
    assert json.loads((output / "arms.json").read_text()) == table


def test_a_learning_rate_that_fails_is_left_out(fields, tmp_path):
    given = {**fields, "learning_rates": [1e-3, 1e30], "rounds": 1, "max_steps": 3, "alphas": [0.0]}
    table = run_arms(tmp_path / "run", log=lambda line: None, **given)
    for arm in ARMS[1:]:
        assert table["arms"][arm]["learning_rate"] == 1e-3
        assert table["arms"][arm]["lr_search"][1]["validation_accuracy"] in (None, 0.0)
