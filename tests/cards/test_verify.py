"""A stranger's check: an untouched release verifies; a changed row or number is named."""

from __future__ import annotations

import json
import re
import shutil

import duckdb
import pytest

from cards.__main__ import main
from cards.dataset_card import render_dataset_card
from cards.model_card import render_model_card
from cards.run_folder import Run
from cards.stage_log import write_json
from cards.verify.checks import DIFFERS, OK, UNCHECKED, UNCOVERED, as_text, exit_code
from cards.verify.command import check_folder, kind_of
from cards.verify.page import Page
from dataset_builder.errors import KitError
from tests.cards.conftest import ARMS
from tests.hub import Client, LoopbackHub


@pytest.fixture(scope="module")
def released(made_run, tmp_path_factory):
    """The made run's dataset with its card; what the made run makes up is measured first."""
    from dataset_builder.control import measure
    from dataset_builder.selection.balance import length_report
    from dataset_builder.selection.pairs import select_pair

    folder = tmp_path_factory.mktemp("released")
    shutil.copytree(made_run, folder / "run")
    shutil.copytree(Run(made_run).dataset, folder / "mmaip-v")
    info = json.loads((folder / "run" / "run.json").read_text())
    write_json(folder / "run" / "run.json", {**info, "dataset": str(folder / "mmaip-v")})
    run = Run(folder / "run")
    train: dict = {}
    for row in run.rows("responses", split="train"):
        train.setdefault(row["question_id"], []).append(row)
    zoo = measure(train, "reference", 0.1, None)
    sides = {"coverage": {"zoo": zoo.coverage, "single": 0.71}, "chosen_correct": {"zoo": zoo.chosen_correct}}
    write_json(run.folder / "measurements" / "control.json", sides)
    # the made dataset's own account of its drops must be what the rule gives, or this fixture is wrong
    outcomes = [select_pair(q, rows, 0.1) for q, rows in train.items()]
    assert sum(o.drop is not None for o in outcomes) == len(train) - len(run.rows("preferences", ["margin"], "train"))
    import numpy as np

    pairs = run.rows("preferences", ["chosen", "rejected"])
    lengths = [[len(pair[side][-1]["content"][0]["text"]) for pair in pairs] for side in ("chosen", "rejected")]
    spread = [row["disagreement"] for row in run.rows("responses", ["disagreement"])]
    selection = {"length": {"after": length_report(*map(np.array, lengths))}}
    selection["disagreement"] = {"mean": round(sum(spread) / len(spread), 6)}
    write_json(run.dataset / "selection.json", selection)
    card = render_dataset_card(run.dataset, Run(run.folder))
    (run.dataset / "README.md").write_text(card)
    return folder


@pytest.fixture
def dataset(released, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(released / "mmaip-v", tmp_path / "mmaip-v")


def rewrite(file, select: str) -> None:
    """Write a Parquet file again with some of its columns replaced (``SELECT * REPLACE (…)``)."""
    new = file.with_suffix(".new")
    duckdb.sql(f"COPY (SELECT * REPLACE ({select}) FROM read_parquet('{file}')) TO '{new}' (FORMAT parquet)")
    new.replace(file)


def differing(checks) -> set[str]:
    return {check.name for check in checks if check.state == DIFFERS}


def test_an_untouched_dataset_verifies(released, capsys):
    folder = released / "mmaip-v"
    assert kind_of(folder) == "dataset"
    assert main(["verify", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "0 differ" in said and "0 not covered" in said
    checks = check_folder(folder, "dataset")
    by_name = {check.name: check for check in checks}
    assert by_name["pairs"].found == str(len(Run(released / "run").pairs)) and by_name["pairs"].line
    assert by_name["rows of responses, train"].found == "192"
    assert by_name["disagreement of the judges (0–1), mean"].state == OK
    assert by_name["questions without a pair: identical answers"].state == OK
    alone = by_name["questions with at least one right answer, single member"]
    assert alone.state == UNCHECKED and "extra samples" in alone.why and alone.shown == "71.0 %"


@pytest.mark.parametrize(
    ("file", "select", "named"),
    [
        (
            "responses",
            "CASE WHEN response_id = (SELECT min(response_id) FROM read_parquet('{file}')) THEN 0.123 ELSE score END"
            " AS score",
            {"answers whose score is that of their judges", "content of responses"},
        ),
        (
            "preferences",
            "CASE WHEN question_id = (SELECT min(question_id) FROM read_parquet('{file}')) THEN [{{'role': 'assistant',"
            " 'content': [{{'type': 'text', 'text': 'another'}}]}}] ELSE chosen END AS chosen",
            {"pairs whose chosen text is that of the answer", "content of preferences"},
        ),
        (
            "preferences",
            "CASE WHEN question_id = (SELECT min(question_id) FROM read_parquet('{file}')) THEN"
            " (CASE model_chosen WHEN 'dot' THEN 'ada' ELSE 'dot' END) ELSE model_chosen END AS model_chosen",
            {"chosen, dot", "pairs whose models are those of the answers"},
        ),
        ("preferences", "margin + 0.05 AS margin", {"mean margin", "smallest margin"}),
        (
            "responses",
            "list_transform(scores, lambda s: struct_update(s, score := NULL)) AS scores",
            {"scores, verifier", "errors, verifier", "disagreement of the judges (0–1), mean"}
            | {"answers of reference, verifier", "verifier · correct of ada", "length against score, verifier"},
        ),
        ("questions", "'cc-by-4.0' AS license", {"licences of the clips", "sources and licences", "license"}),
        ("questions", "'other' AS question_type", {"question types", "questions of the sample pairs"}),
        (
            "responses",
            "CASE WHEN model = 'dot' THEN list_transform(scores, lambda s: struct_update(s, score := CASE s.judge WHEN"
            " 'reference' THEN 1 - s.score ELSE s.score END)) ELSE scores END AS scores",
            {
                "alpha of reference, verifier",
                "interval of alpha, reference, verifier",
                "Spearman of reference, verifier",
            }
            | {"coverage of zoo with 1", "coverage of zoo, 95 % interval with 2", "coverage of dot with 1"},
        ),
        (
            "preferences",
            "[{{'role': 'assistant', 'content': [{{'type': 'text', 'text': 'a very long one'}}]}}] AS chosen",
            {"chosen is longer, share of pairs", "chosen is longer, interval", "chosen is equal, share of pairs"},
        ),
        ("preferences", "margin + 0.05 AS margin", {"margin of sample 1", "margin of sample 2"}),
        ("preferences", "upper(question) AS question", {"question of sample 1", "question of sample 2"}),
        ("preferences", "NULL AS video", {"clips that come as ids", "embedded of toy-world, cc0-1.0"}),
    ],
)
def test_a_changed_row_makes_it_name_the_number(dataset, file, select, named, capsys):
    path = dataset / file / "train-00000-of-00001.parquet"
    rewrite(path, select.format(file=path))
    assert named <= differing(check_folder(dataset, "dataset"))
    assert main(["verify", str(dataset)]) == 5
    said = capsys.readouterr().out
    assert all(f"differs: {name}: the card says" in said for name in named)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (" preference pairs over 72 questions", " preference pairs over 73 questions", "questions"),
        ("| `responses` | 192 |", "| `responses` | 191 |", "rows of responses, train"),
        ("num_examples: 192", "num_examples: 190", "dataset_info: rows of responses, train"),
        ("the benchmark by design | 12 |", "the benchmark by design | 13 |", "questions without a pair, all reasons"),
        ("match (0–1)", "match (0–5)", "criteria of reference"),
        ("at least 0.1 apart", "at least 0.9 apart", "least margin of a pair"),
    ],
)
def test_a_changed_number_of_the_card_is_named(dataset, old, new, named):
    card = (dataset / "README.md").read_text()
    assert old in card
    (dataset / "README.md").write_text(card.replace(old, new, 1))
    checks = check_folder(dataset, "dataset")
    assert named in differing(checks) and exit_code(checks) == 5


@pytest.mark.parametrize("steps", [12, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_figure_of_the_body_is_under_a_rule(dataset, steps):
    """Each number of the card, changed one at a time, is named, or was said to be not checkable."""
    text = (dataset / "README.md").read_text()
    page = Page(text)
    head = text[: len(text) - len(page.body)]
    untouched = check_folder(dataset, "dataset")
    said = {check.line for check in untouched if check.state == UNCHECKED}
    spans = page.left_over()
    missed = []
    for span in spans[:: max(1, len(spans) // steps) if steps else 1]:
        if re.fullmatch(r"\d\. \*\*", page.body[span.start : span.end + 4]):
            continue  # of a list
        digit = span.end - 1
        other = str((int(page.body[digit]) + 5) % 10)
        (dataset / "README.md").write_text(head + page.body[:digit] + other + page.body[digit + 1 :])
        # a constant of the wording that is another one is no constant any more, and nothing covers it
        if exit_code(check_folder(dataset, "dataset")) == 0 and page.line(span.start) not in said:
            missed.append(page.context(span))
    assert len(spans) > 150 and not missed


def test_a_number_without_a_rule_is_reported_not_skipped(dataset, capsys):
    with (dataset / "README.md").open("a") as file:
        file.write("\nThis dataset makes models 37.5 % better, see `run-12` and [paper 3](https://example.org/4).\n")
    assert main(["verify", str(dataset)]) == 2
    (check,) = [check for check in check_folder(dataset, "dataset") if check.state == UNCOVERED]
    assert check.shown == "37.5" and "makes models" in check.name and "not covered" in capsys.readouterr().out


def test_what_is_no_release_is_one_clear_line(tmp_path, dataset, capsys):
    assert main(["verify", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["verify", str(dataset), "--revision", "v1"]) == 2
    assert "has no revision" in capsys.readouterr().err
    (dataset / "responses" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    assert main(["verify", str(dataset)]) == 2
    assert "responses" in capsys.readouterr().err
    (dataset / "README.md").unlink()
    with pytest.raises(KitError, match="no card"):
        check_folder(dataset, "dataset")


def make_model(made_run, folder):
    """A model repo's card and rows, whose arms are measured from the rows as recipes do it."""
    from eval.stats import cluster_mean, holm, paired_test

    run = shutil.copytree(made_run, folder / "run")
    table = json.loads((run / "arms.json").read_text())
    rows = {arm: json.loads((run / "results" / f"{arm}.json").read_text())["rows"] for arm in ARMS}
    sides = {arm: [row["correct"] for row in found] for arm, found in rows.items()}
    videos = [row["video_id"] for row in rows["base"]]
    for arm, values in sides.items():
        mean = cluster_mean(values, videos)
        table["arms"][arm] |= {"accuracy": mean.mean, "ci95": [mean.low, mean.high]}
    for other in ("base", "dpo"):
        names = [arm for arm in sides if arm != other]
        tests = [paired_test(sides[arm], sides[other], videos, 2000, 0) for arm in names]
        for arm, test, p in zip(names, tests, holm([test.p for test in tests])):
            table["arms"][arm] |= {f"diff_vs_{other}": test.difference, f"p_vs_{other}": p}
    write_json(run / "arms.json", {**table, "draws": 2000, "test_clips": 10, "test_questions": 30})
    model = folder / "model"
    shutil.copytree(run / "results", model / "results")
    shutil.copy(run / "arms.json", model)
    (model / "README.md").write_text(render_model_card(run))
    return model


def test_a_models_figures_come_from_its_rows(made_run, released, tmp_path):
    model = make_model(made_run, tmp_path)
    assert kind_of(model) == "model"
    checks = check_folder(model, "model", str(released / "mmaip-v"))
    assert exit_code(checks) == 0, as_text(checks, "model")
    names = {check.name for check in checks if check.state == OK}
    assert {"p of iter_w2s against base", "pairs of the dataset", "model-index: accuracy", "test clips"} <= names
    file = model / "results" / "iter_w2s.json"
    content = json.loads(file.read_text())
    content["rows"][0]["correct"] = 1 - content["rows"][0]["correct"]
    write_json(file, content)
    changed = differing(check_folder(model, "model"))
    assert {"accuracy, iter_w2s", "iter_w2s − base", "model-index: accuracy", "interval of iter_w2s"} <= changed
    file.unlink()
    with pytest.raises(KitError, match=r"has no results/iter_w2s\.json"):
        check_folder(model, "model")


def test_an_evaluators_hashes_are_made_again(tmp_path):
    from eval.evaluator import VQAEvaluator

    folder = tmp_path / "evaluator"
    VQAEvaluator({"kind": "reference"}).save_pretrained(folder)
    assert kind_of(folder) == "evaluator"
    checks = check_folder(folder, "evaluator")
    assert exit_code(checks) == 0, as_text(checks, "evaluator")
    config = json.loads((folder / "config.json").read_text())
    config["record"]["settings"]["over_references"] = "minimum"
    write_json(folder / "config.json", config)
    named = differing(check_folder(folder, "evaluator"))
    assert named == {"settings (hash)", "fingerprint (hash)", "setting over_references"}


def test_a_repo_on_the_hub_verifies_in_a_clean_process(released, tmp_path):
    folder = str(released / "mmaip-v")
    with LoopbackHub(tmp_path / "hub") as hub:
        with Client(hub.environment(tmp_path / "home")) as client:
            client.run(f"""
                from huggingface_hub import HfApi
                api = HfApi()
                api.create_repo("tester/pairs", repo_type="dataset", private=True)
                api.upload_folder(folder_path={folder!r}, repo_id="tester/pairs", repo_type="dataset")
                api.create_tag("tester/pairs", tag="v1", repo_type="dataset")
            """)
        with Client(hub.environment(tmp_path / "clean")) as client:
            client.run("from cards.__main__ import main")
            assert client.run("main(['verify', 'tester/pairs', '--revision', 'v1'])") == 0
            assert client.run("main(['verify', 'tester/nothing'])") == 2
            assert client.run("main(['verify', 'tester/pairs', '--revision', 'v9'])") == 2
