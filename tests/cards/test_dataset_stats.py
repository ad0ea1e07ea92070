"""What the dataset card measures, against counting by hand."""

from __future__ import annotations

import itertools

import pytest

from cards import dataset_stats as stats
from cards.dataset_card import render_dataset_card
from cards.run_folder import Run
from cards.verify.checks import DIFFERS, UNCOVERED
from cards.verify.command import check_folder
from tests.cards.conftest import score


def test_coverage_is_the_mean_over_all_draws():
    def answer(model, match):
        scores = [score("reference", "match", match)]
        return {"model": model, "scores": scores, "video_id": model}

    marks = {"q1": [1, 0, 0, 1, 0], "q2": [0, 0, 0, 0, 0], "q3": [0, 1, 0, 0, 0, 0]}
    answers = {
        question: [{**answer("ab"[n % 2], float(mark)), "video_id": question} for n, mark in enumerate(values)]
        for question, values in marks.items()
    }
    found = stats.coverage(answers, "reference")
    assert found["steps"] == [1, 2, 3, 4, 5] and found["questions"] == 3
    for k, point in zip(found["steps"], found["zoo"]):
        shares = []
        for values in marks.values():
            draws = list(itertools.combinations(values, k))
            shares.append(sum(any(drawn) for drawn in draws) / len(draws))
        assert point.mean == pytest.approx(sum(shares) / 3) and point.low <= point.mean <= point.high
    assert [len(curve) for curve in found["members"].values()] == [3, 2]
    assert stats.coverage(answers, None) is None and stats.coverage(answers, "verifier") is None
    many = {"q": [answer("a", 1.0) for _ in range(40)]}
    assert stats.coverage(many, "reference")["steps"] == [1, 2, 4, 8, 16, 40]


def test_lengths_and_judges_that_say_nothing():
    pairs = [
        {"chosen": "a" * c, "rejected": "b" * r, "video_id": v}
        for c, r, v in [(3, 1, 1), (2, 2, 1), (1, 4, 2), (5, 1, 3)]
    ]
    found = stats.length_of_pairs(pairs)
    assert [found[name].mean for name in ("longer", "equal", "shorter")] == [0.5, 0.25, 0.25]
    assert found["longer"].clusters == 3 and stats.length_of_pairs([]) is None
    rows = [
        {"scores": [score("a", "x", 1.0), score("b", "x", v)], "video_id": n, "response": "z" * n}
        for n, v in enumerate((1.0, 1.0, None, 1.0))
    ]
    (agreement,) = stats.judge_agreement(rows)
    assert agreement["answers"] == 3 and agreement["alpha"] is None and agreement["rho"] is None
    assert stats.length_of_judges(rows) == {"a": None, "b": None}
    assert stats.judge_agreement([{"scores": None, "video_id": 1}]) == []


def test_who_knows_the_true_answers_is_told_by_kind_and_prompt_before_any_name():
    judges = [
        {"name": "exact", "kind": "reference", "settings": {"a": {"over_references": "maximum"}}},
        {"name": "reference-free", "kind": "vlm", "settings": {"b": {"example": "{question} {answer}"}}},
        {"name": "large", "kind": "vlm", "settings": {"c": {"example": "{question} {reference} {answer}"}}},
        {"name": "small", "kind": "visual", "settings": {"d": {"prompt_with_references": "{references}"}}},
    ]
    names = ["large", "exact", "reference-free", "small"]
    assert stats.reference_judge({"judges": judges}, names) == "exact"
    assert stats.truth_readers({"judges": judges}, names) == ["large", "exact", "small"]
    assert stats.reference_judge({"judges": judges[1:]}, names[2:]) is None
    assert stats.reference_judge({}, ["verifier", "reference-2"]) == "reference-2"


def test_a_judge_that_is_one_model_under_two_names_is_no_stranger_to_either():
    rows = [
        {"model": model, "model_revision": revision, "scores": [{**score("j", "x", value), "judge_revision": "v-1"}]}
        for model, revision, value in (("a", "v-1", 0.9), ("b", "v-1", 0.7), ("c", "v-2", 0.2))
    ]
    (own,) = stats.self_judged(rows)
    assert (own["member"], own["own"], own["rest"]) == ("a, b", pytest.approx(0.8), 0.2)


def test_what_an_endpoint_served_is_named_whole_and_verifies(own_run):
    """Two revisions of one member, one of them the judge's own, with a name as servers give them."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    run = Run(own_run)
    for path in (run.dataset / "responses").glob("*.parquet"):
        table = parquet.read_table(path)
        rows = table.to_pylist()
        for place, row in enumerate(rows):
            if row["model"] == "ada":
                row["model_revision"] = "large-2024-08-06" if place % 8 else "large-2024-05-13"
            for entry in row["scores"]:
                if entry["judge"] == "verifier":
                    entry["judge_revision"] = "large-2024-08-06"
        parquet.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    card = render_dataset_card(run.dataset, Run(own_run))
    assert "| ada | `large-2024-05-13`, `large-2024-08-06` | 72 |" in card
    assert "is the model of member ada (`large-2024-08-06`)" in card
    (run.dataset / "README.md").write_text(card)
    wrong = [check.name for check in check_folder(run.dataset, "dataset") if check.state in (DIFFERS, UNCOVERED)]
    of_files = ("dataset_info", "content of", "questions with at least", "chosen answers that")  # made up, or not ours
    assert not [name for name in wrong if not name.startswith(of_files)]
