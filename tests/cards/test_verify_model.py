"""A stranger's check of model and evaluator repos: a changed row, label or digit is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import pytest

from cards.__main__ import main
from cards.stage_log import write_json
from cards.verify.checks import DIFFERS, OK, UNCHECKED, UNCOVERED, as_text, exit_code
from cards.verify.command import check_folder, kind_of
from cards.verify.page import Page
from tests.cards.measured import measure, repo
from tests.cards.pushing import copy


@pytest.fixture(scope="module")
def repos(finished, tmp_path_factory):
    """The repos of a run in which everything was measured, as the plan would push them."""
    folder = tmp_path_factory.mktemp("measured")
    run = measure(copy(finished, folder / "place"))
    for kind in ("model", "evaluator"):
        repo(run, kind, folder / kind)
    return folder


@pytest.fixture
def model(repos, tmp_path):
    return shutil.copytree(repos / "model", tmp_path / "model")


@pytest.fixture
def evaluator(repos, tmp_path):
    return shutil.copytree(repos / "evaluator", tmp_path / "evaluator")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("arms.json", "[]"),
        ("extrapolation.json", "[1]"),
        ("training_args.yaml", "rounds: [1"),
        (".eval_results/other.yaml", "[1]"),
        ("results/iter_w2s.json", '{"rows": []}'),
    ],
)
def test_a_file_that_holds_something_else_is_one_clear_line(model, file, text, capsys):
    (model / file).parent.mkdir(exist_ok=True)
    (model / file).write_text(text)
    assert main(["verify", str(model), "--kind", "model"]) == 2
    said = capsys.readouterr().err.strip()
    assert "its files are not as the kit writes them" in said and said.count("\n") == 0


def states(checks, state) -> set[str]:
    return {check.name for check in checks if check.state == state}


def test_an_untouched_model_verifies(repos):
    folder = repos / "model"
    assert kind_of(folder) == "model" and not list(folder.rglob("*.safetensors"))
    checks = check_folder(folder, "model", str(repos / "place" / "mmaip-v"))
    assert exit_code(checks) == 0, as_text(checks, "model")
    named = states(checks, OK)
    assert {
        "accuracy of iter_w2s",
        "p of iter_w2s against dpo",
        "pairs of the dataset",
        "fingerprint of the test judge",
        "decoding: max_new_tokens",
        "setting: beta",
        "gold videos",
        "debiased with 40 gold videos, base, by the evaluator",
        "the judge without frames",
        "no video shown, interval",
        "debiased by people, iter_w2s",
        "labels by hand",
        "headline: this model, `verifier`, put right with labels by people",
    } <= named
    open_ones = {check.name: check.why for check in checks if check.state == UNCHECKED}
    assert "no row" in open_ones["rounds: distance"]
    assert {
        "alpha curve: alpha 0.25, 2",
        "rounds: validation accuracy, 3",
        "what each arm took: validation, base",
    } <= named
    assert not any("validation" in name or "alpha curve" in name for name in open_ones)
    assert not any("evaluator" in name or "judge" in name.replace("judge calls", "") for name in open_ones)


def flip(path: Path, row: int = 0) -> None:
    """Turn one verdict round."""
    content = json.loads(path.read_text())
    content["rows"][row]["correct"] = 1 - content["rows"][row]["correct"]
    write_json(path, content)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("iter_w2s", {"accuracy of iter_w2s", "iter_w2s − base", "its verdicts are wrong, iter_w2s, by the evaluator"}),
        ("base", {"accuracy of base", "iter_w2s − base", "headline: the base, `reference`"}),
        ("evaluator/iter_w2s", {"its verdicts say, iter_w2s, by the evaluator", "debiased by people, iter_w2s"}),
        ("evaluator/without_frames", {"the judge without frames", "headline: this model, `verifier`, shown no frames"}),
        ("evaluator/blind", {"no video shown", "headline: this model, shown no video, `reference`"}),
    ],
)
def test_a_changed_verdict_names_the_number(model, file, named):
    flip(model / "results" / f"{file}.json")
    checks = check_folder(model, "model")
    assert exit_code(checks) == 5 and named <= states(checks, DIFFERS)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("simulated", {"debiased with 40 gold videos, iter_w2s, by the evaluator"}),
        (
            "labels",
            {"debiased by people, iter_w2s", "headline: this model, `verifier`, put right with labels by people"},
        ),
    ],
)
def test_a_changed_label_names_the_number(model, kind, named):
    path = model / "results" / "gold" / f"{kind}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    answers = {(row["question_id"], row["response_sha256"]) for row in map(json.loads, path.read_text().splitlines())}
    own = json.loads((model / "results" / "evaluator" / "iter_w2s.json").read_text())["rows"]
    from eval.gold.rows import response_hash

    mine = {(row["question_id"], response_hash(row["response"])) for row in own}
    for line in lines:
        if (line["question_id"], line["response_sha256"]) in mine & answers:
            line["label"] = "incorrect" if line["label"] == "correct" else "correct"
            break
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert named <= states(check_folder(model, "model"), DIFFERS)
    rest = [line for line in lines if line["video_id"] != lines[0]["video_id"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in rest))
    number = {"simulated": "gold videos", "labels": "videos labelled by hand"}[kind]
    assert number in states(check_folder(model, "model"), DIFFERS)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("base", {"what each arm took: validation, base"}),
        ("dpo-round-1", {"what each arm took: validation, dpo"}),
        ("iter_w2s-round-2", {"rounds: validation accuracy, 2", "alpha curve: alpha 0.25, 2"}),
    ],
)
def test_a_changed_answer_on_validation_names_the_number(model, file, named):
    path = model / "results" / "validation" / f"{file}.json"
    content = json.loads(path.read_text())
    for kept in content["answers"][0]["by_alpha"].values():
        kept["correct"] = 1 - kept["correct"]
    write_json(path, content)
    checks = check_folder(model, "model")
    assert exit_code(checks) == 5 and named <= states(checks, DIFFERS)


def test_a_changed_margin_names_the_number(model):
    path = model / "results" / "validation" / "iter_w2s-round-1.json"
    content = json.loads(path.read_text())
    content["pairs"][0]["margin"]["1.0"] *= -1
    write_json(path, content)
    assert states(check_folder(model, "model"), DIFFERS) == {"alpha curve: alpha 1, 1"}


def test_figures_without_rows_are_named_as_such(model, capsys):
    for path in (model / "results" / "evaluator").glob("*.json"):
        path.unlink()
    shutil.rmtree(model / "results" / "gold")
    shutil.rmtree(model / "results" / "validation")
    checks = check_folder(model, "model")
    why = {check.name: check.why for check in checks if check.state == UNCHECKED}
    assert why["the judge without frames"] == "without_frames.json is not released"
    assert "results/gold/labels.jsonl is not released" in why["debiased by people, iter_w2s"]
    assert "not kept row by row" in why["alpha curve: alpha 0.25"] and "what each arm took: validation" in why
    assert not states(checks, UNCOVERED)


def test_what_training_logged_is_compared_with_the_log(model):
    card = (model / "README.md").read_text()
    for old, new, named in (
        ("| 2 | 15 | 48 |", "| 2 | 15 | 49 |", "rounds: pairs, 2"),
        ("| 1,000 | 3.00 |", "| 1,000 | 3.01 |", "how far modules moved: norm before, `model.layers.*.q_proj`"),
        ("has cosine 0.9876", "has cosine 0.9877", "cosine of the saved step"),
        ("| gradient accumulation | 2 |", "| gradient accumulation | 4 |", "setting: gradient accumulation"),
        ("(500 draws)", "(600 draws)", "draws of the paired tests"),
    ):
        assert old in card, old
        (model / "README.md").write_text(card.replace(old, new, 1))
        assert states(check_folder(model, "model"), DIFFERS) == {named}


def every_digit(folder: Path, kind: str, step: int, **options) -> list[str]:
    """Numbers whose last digit may be another one without anybody saying so."""
    text = (folder / "README.md").read_text()
    page = Page(text)
    head, spans, missed = text[: len(text) - len(page.body)], page.left_over(), []
    for span in spans[::step]:
        place = span.start + max(n for n, letter in enumerate(span.text) if letter.isdigit())
        other = str((int(page.body[place]) + 5) % 10)
        (folder / "README.md").write_text(head + page.body[:place] + other + page.body[place + 1 :])
        checks = check_folder(folder, kind, **options)
        if not states(checks, DIFFERS) | states(checks, UNCOVERED):
            missed.append(page.context(span))
    (folder / "README.md").write_text(text)
    assert len(spans) > 40
    return missed


@pytest.mark.parametrize("step", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_a_changed_digit_of_the_models_card_is_named(repos, model, step):
    assert every_digit(model, "model", step, dataset=str(repos / "place" / "mmaip-v")) == []


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_changed_digit_of_the_evaluators_card_is_named(evaluator, step):
    assert every_digit(evaluator, "evaluator", step) == []


def test_an_untouched_evaluator_verifies_and_a_changed_row_is_named(evaluator, capsys):
    assert main(["verify", str(evaluator)]) == 0
    assert "0 differ, 1 not checkable" in capsys.readouterr().out  # the revision of its weights
    path = evaluator / "results" / "verdicts.parquet"
    for role, named in (
        ("evaluator", "iter_w2s beside the truth: same verdict"),
        ("truth", "verdicts on iter_w2s: truth"),
        ("gold", "verdicts on iter_w2s: debiased"),
        ("without_frames", "verdicts on iter_w2s: shown no frames"),
    ):
        kept = path.read_bytes()
        which = f"role = '{role}' AND answers_of = 'iter_w2s' AND question_id = 'v03-1'"
        changed = f"CASE WHEN {which} THEN CAST(1 - correct AS TINYINT) ELSE correct END AS correct"
        if role == "gold":  # one of those that were drawn
            changed = changed.replace(
                "question_id = 'v03-1'", f"question_id = (SELECT min(question_id) FROM '{path}' WHERE role = 'gold')"
            )
        new = path.with_suffix(".new")
        duckdb.sql(f"COPY (SELECT * REPLACE ({changed}) FROM read_parquet('{path}')) TO '{new}' (FORMAT parquet)")
        new.replace(path)
        assert any(name.startswith(named) for name in states(check_folder(evaluator, "evaluator"), DIFFERS)), role
        path.write_bytes(kept)
    path.unlink()
    assert "results/verdicts.parquet" in states(check_folder(evaluator, "evaluator"), DIFFERS)


def test_bias_is_computed_from_the_audits_rows(tmp_path):
    from eval.audit import audit
    from eval.audit.rows import NAME, write_rows
    from eval.evaluator import VQAEvaluator
    from tests.eval.planted_judges import planted_cases

    kept: list = []
    judge = VQAEvaluator({"kind": "reference"}).judge
    record = audit(judge, planted_cases(30), probes=["errors", "length"], draws=100, rows=kept)
    write_json(tmp_path / "audit" / "audit.json", record)
    write_rows(tmp_path / "audit" / NAME, kept)
    folder = tmp_path / "E"
    VQAEvaluator({"kind": "reference"}, audit=tmp_path / "audit").save_pretrained(folder)
    checks = check_folder(folder, "evaluator")
    assert exit_code(checks) == 0, as_text(checks, "evaluator")
    assert sum(name.startswith("bias: ") for name in states(checks, OK)) > 5
    changed = json.loads((folder / NAME).read_text())
    row = changed["findings"][0]  # wrong verdicts, of which this judge gives none
    row["values"][0] = 1.0 - row["values"][0]
    write_json(folder / NAME, changed)
    assert any(name.startswith("bias: ") for name in states(check_folder(folder, "evaluator"), DIFFERS))
    (folder / NAME).unlink()
    checks = check_folder(folder, "evaluator")
    assert any(NAME in check.why for check in checks) and exit_code(checks) == 0
