"""Labelling without a page: what comes next for whom, how far people agree, what the command does by itself."""

import os
import sys
from collections import Counter

import pytest

from dataset_builder.errors import KitError
from eval.gold import LabelFile, draw_sample, pair_gold_for, read_gold, response_hash
from eval.gold.agreement import agreement_table, ratings
from eval.gold.command import run
from eval.gold.items import common_videos, items_of, paired_items_of
from eval.gold.rows import VERDICTS
from eval.gold.session import Labelling
from tests.eval.test_gold import choice, results_of, verdict

# Labelling without a page --------------------------------------------------------------------------------------------


def test_labelling_goes_by_video_and_on_where_an_annotator_was(tmp_path):
    results = results_of({f"v{v}-q{q}": "red" for v in range(4) for q in range(3)} | {"v0-q9": None})
    sample = draw_sample(results, 3, seed=1)
    session = Labelling(items_of(results, sample.videos), LabelFile(tmp_path / "g.jsonl"), now=lambda: "then")
    assert [item.video_id for item in session.items] == [v for v in sample.videos for _ in range(3)]
    assert (session.next_after("ada"), session.progress("ada").total) == (0, 9)
    for position in (0, 1, 2, 4):
        session.give("ada", position, "correct")
    again = Labelling(items_of(results, sample.videos), LabelFile(tmp_path / "g.jsonl"))
    assert [again.next_after("ada"), again.next_after("ada", 3), again.next_after("bob")] == [3, 5, 0]
    progress = again.progress("ada")
    assert (progress.done, progress.videos_done, progress.videos, progress.share) == (4, 1, 3, 4 / 9)
    for position in (3, 5, 6, 7, 8):
        again.give("ada", position, "unsure")
    assert (again.next_after("ada"), again.next_after("ada", 8), again.progress("ada").share) == (None, None, 1.0)
    assert (again.given("ada", 0), again.given("ada", 3), again.given("bob", 0)) == ("correct", "unsure", None)
    with pytest.raises(KitError, match="must be one of correct, incorrect, unsure, not 'A'"):
        again.give("ada", 0, "A")


def test_a_look_at_the_reference_stays_on_the_label(tmp_path):
    results = results_of({"v1-q1": "red", "v1-q2": "red"})
    session = Labelling(items_of(results, ["v1"]), LabelFile(tmp_path / "g.jsonl"))
    session.look("ada", 0)
    session.give("ada", 0, "correct")
    session.give("ada", 1, "correct")
    Labelling(items_of(results, ["v1"]), LabelFile(tmp_path / "g.jsonl")).give("ada", 0, "incorrect")
    assert [label.reference_shown for label in read_gold(session.file.path)] == [True, False]


def test_pairs_stand_left_and_right_by_chance_and_equal_answers_are_a_tie_without_asking(tmp_path):
    questions = [f"v{v}-q{q}" for v in range(40) for q in range(3)]
    a = results_of({q: "same" if q.endswith("q1") else f"a {q}" for q in questions}, "a")
    b = results_of({q: "same" if q.endswith("q1") else f"b {q}" for q in questions} | {"v99-q1": "x"}, "b")
    videos = list(dict.fromkeys(common_videos(a, b)))
    session = Labelling(paired_items_of(a, b, videos), LabelFile(tmp_path / "g.jsonl"))
    assert len(session.items) == 80
    left = Counter(item.models[item.order("ada")[0]] for item in session.items)
    assert 20 < left["models/a"] < 60  # 80 coins
    assert any(item.order("ada") != item.order("bob") for item in session.items)
    for position in range(3):  # q0 of v0, q2 of v0, q0 of v1
        side = session.items[position].order("ada").index(0)
        session.give("ada", position, "AB"[side])
    labels = read_gold(session.file.path)
    settled = [label for label in labels if not label.asked]
    assert [label.question_id for label in settled] == ["v0-q1", "v1-q1"]  # not further than the annotator is
    values = dict(zip(questions, pair_gold_for(a, b, labels)))
    assert {q: v for q, v in values.items() if v is not None} == {
        "v0-q0": 1.0,
        "v0-q1": 0.5,
        "v0-q2": 1.0,
        "v1-q0": 1.0,
        "v1-q1": 0.5,
    }
    assert all(label.models[label.responses.index(response_hash(f"a {label.question_id}"))] == "models/a"
               for label in labels if label.asked)  # fmt: skip


def test_pairs_of_different_benchmarks_are_refused():
    a, b = results_of({"v1-q1": "red"}, "a"), results_of({"v1-q1": "blue"}, "b")
    b.rows[0]["question"] = "another ?"
    with pytest.raises(KitError, match="disagree about field 'question' of question v1-q1"):
        paired_items_of(a, b, ["v1"])
    with pytest.raises(KitError, match="share no question"):
        common_videos(a, results_of({"v2-q1": "red"}, "c"))
    with pytest.raises(KitError, match="nothing to label"):
        Labelling(paired_items_of(a, results_of({"v1-q1": "red"}, "c"), ["v1"]), None)


# Agreement -----------------------------------------------------------------------------------------------------------


def test_agreement_has_known_values_and_leaves_unsure_out():
    said = {"ada": "cccciiiicu", "bob": "ccciiiiiuc", "eve": ""}
    words = {word[0]: word for word in VERDICTS}
    labels = [
        verdict(f"v{n}-q1", "red", words[letter], who)
        for who, letters in said.items()
        for n, letter in enumerate(letters)
    ]
    header, rows, note = agreement_table(labels)
    assert header[3] == "Cohen's κ"
    # 8 items in common, 7 equal; chance agreement (4*3 + 4*5) / 64 = 0.5
    assert [row[:4] for row in rows] == [["ada, bob", "8", "88 %", "0.75"]]
    assert "ada: 10 labelled, 1 unsure; bob: 10 labelled, 1 unsure" in note
    assert "α over all annotators: 0.76" in note  # 7 c and 9 i: 1 - (2 / 16) / (2 * 7 * 9 / (16 * 15))
    table = ratings(labels)
    assert table.annotators == ("ada", "bob")
    assert table.table[0][9] is None


def test_agreement_of_choices_does_not_depend_on_side():
    labels = []
    for n, label in enumerate(["A", "B", "tie", "A"]):
        labels.append(choice(f"v{n}-q1", f"l{n}", f"r{n}", label))
        labels.append(choice(f"v{n}-q1", f"r{n}", f"l{n}", {"A": "B", "B": "A"}.get(label, label), "bob"))
    labels += [choice("v9-q1", "x", "x", "tie", who, asked=False) for who in ("ada", "bob")]
    _, rows, _ = agreement_table(labels)
    assert rows[0][1:3] == ["4", "100 %"]


# The command, as far as it needs no page -----------------------------------------------------------------------------


def test_agreement_command_prints_the_table_over_own_files(tmp_path, capsys):
    results = results_of({f"v{n}-q1": "red" for n in range(6)})
    results.save(tmp_path / "r.json")
    for who, said in (("ada", ["correct", "incorrect"] * 3), ("bob", ["correct"] * 4 + ["incorrect"] * 2)):
        file = LabelFile(tmp_path / f"{who}.jsonl")
        for n, label in enumerate(said):
            file.append(verdict(f"v{n}-q1", "red", label, who))
            file.append(verdict(f"v{n}-q1", "an answer of other results", "correct", who))
    files = ["--output", str(tmp_path / "ada.jsonl"), "--labels", str(tmp_path / "bob.jsonl")]
    assert run([str(tmp_path / "r.json"), "--agreement", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["annotators", "items", "equal"]
    assert lines[1].split()[:4] == ["ada,", "bob", "6", "50"]
    assert run([str(tmp_path / "r.json"), "--agreement", *files[:2]]) == 0
    assert "no two annotators" in capsys.readouterr().out


def test_without_gradio_one_line_says_what_to_install(tmp_path, monkeypatch):
    results_of({"v1-q1": "red"}).save(tmp_path / "r.json")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(KitError, match=r'needs gradio: pip install -e "\.\[label\]"$'):
        run([str(tmp_path / "r.json"), "--output", str(tmp_path / "gold.jsonl")])
    assert os.listdir(tmp_path) == ["r.json"]
