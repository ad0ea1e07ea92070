"""Pairs from a model's own mistakes: what is chosen, what is rejected, what is dropped, and who is asked what."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from datasets import Dataset, Video
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.judges import JudgeItem, aggregate
from dataset_builder.models import ChatReply, load_model
from dataset_builder.selection.pairs import select_pair
from dataset_builder.text import normalise
from dataset_builder.toy import ANSWERS
from recipes.on_policy.builder import COUNTS, OnPolicySettings, PairBuilder
from recipes.on_policy.pool import ROW_COLUMNS
from tests.recipes.zoo_world import (
    KNOWN,
    REFERENCE,
    Table,
    always,
    colour_questions,
    copied,
    make_world,
    quiet,
    spied,
    text,
    write,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
DROPS = ("no_own_error", "no_margin", "no_verdict")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """See :func:`~tests.recipes.zoo_world.make_world`."""
    return make_world(tmp_path_factory.mktemp("on-policy") / "mmaip-v")


def test_rejected_is_the_own_worst_and_chosen_the_best_of_all(world):
    builder = PairBuilder(world, "train", replace(KNOWN, samples=3), log=quiet)
    ids = colour_questions(builder)
    built = builder.on_policy(always("zzz", "zz top", "yyy"), ids, seed=0)
    assert built.counts["questions"] == len(ids) == built.counts["pairs"] == len(built.rows)
    assert built.counts["sampled"] == 3 * len(ids)
    for row in built.rows:
        assert text(row["rejected"]) == "yyy"  # as bad as "zzz" and before it
        assert (row["model_rejected"], row["score_rejected"]) == ("policy", 0.0)
        assert (text(row["chosen"]), row["score_chosen"], row["margin"]) == (row["answer"], 1.0, 1.0)
        assert row["model_chosen"] == "right"  # the zoo stands in the row when both said it
        assert row["response_id_chosen"] == f"{row['question_id']}-right"
    assert len(set(built.rows["response_id_rejected"])) == len(ids)


def test_own_answer_is_chosen_where_it_beats_the_zoo(world, tmp_path):
    folder = copied(world, tmp_path)
    rows = Dataset.from_parquet(str(next((folder / "responses").glob("*")))).to_list()
    write(folder, "responses", [row for row in rows if row["model"] != "right"])
    builder = PairBuilder(folder, "train", KNOWN, log=quiet)
    key = builder.question_ids[0]
    truth = builder.pool.questions[key].answer
    built = builder.on_policy(always("zzz", truth), [key], seed=0)
    assert (text(built.rows[0]["chosen"]), built.rows[0]["model_chosen"]) == (truth, "policy")


def test_questions_without_an_own_error_are_dropped(world):
    builder = PairBuilder(world, "train", KNOWN, log=quiet)
    key = builder.question_ids[0]
    truth = builder.pool.questions[key].answer
    built = builder.on_policy(always(truth, truth), [key], seed=0)
    assert built.counts["no_own_error"] == 1 and len(built.rows) == 0
    assert list(built.rows.features) == list(ROW_COLUMNS)
    builder.settings = replace(KNOWN, error_below=1.0)  # below, not at
    assert builder.on_policy(always(truth, truth), [key], seed=0).counts["no_own_error"] == 1


@pytest.mark.parametrize(
    "reply",
    [ChatReply("", "stop", 1, 0), ChatReply("red red", "length", 1, 9), ChatReply("I cannot see it", "stop", 1, 4)],
)
def test_malformed_own_answers_are_errors_that_no_judge_sees(world, reply):
    builder = PairBuilder(world, "train", KNOWN, log=quiet)
    key = builder.question_ids[0]
    truth = builder.pool.questions[key].answer
    built = builder.on_policy(Table(lambda question, turn: reply if turn else truth), [key], seed=0)
    (row,) = built.rows
    assert (text(row["rejected"]), row["score_rejected"], text(row["chosen"])) == (reply.text, 0.0, truth)
    assert built.counts["judge_calls"] == 0
    # Cut, it is an error even where its text is right; and nothing that says the same may be chosen over it.
    cut = ChatReply(truth, "length", 1, 9)
    assert builder.on_policy(Table(lambda question, turn: cut), [key], seed=0).counts["no_margin"] == 1


def test_nothing_better_is_no_margin_and_nothing_judged_no_verdict(world, tmp_path):
    folder = copied(world, tmp_path)
    next((folder / "responses").glob("*")).unlink()  # no zoo at all
    builder = PairBuilder(folder, "train", KNOWN, log=quiet)
    key = builder.question_ids[0]
    assert builder.on_policy(always("zzz", "yyy"), [key], seed=0).counts["no_margin"] == 1
    failed = ChatReply("", "stop", 0, 0, error="refused")
    built = builder.on_policy(Table(lambda question, turn: failed), [key], seed=0)
    assert (built.counts["no_verdict"], built.counts["sampled"]) == (1, 0)
    questions = Dataset.from_parquet(str(next((folder / "questions").glob("*")))).to_list()
    write(folder, "questions", [{**row, "answers": []} for row in questions])
    builder = PairBuilder(folder, "train", KNOWN, log=quiet)
    assert builder.on_policy(always("zzz", "yyy"), [key], seed=0).counts["no_verdict"] == 1


def test_only_judges_common_to_all_candidates_count(world, verifier):
    judges = (REFERENCE, {"kind": "visual", "model": str(verifier)})
    builder = PairBuilder(world, "train", replace(KNOWN, judges=judges), log=quiet)
    reference, visual = builder._judges()
    key = builder.question_ids[0]
    for answer in builder.pool.zoo[key]:
        builder.verdicts.put(visual, key, answer.text, 0.75)
    for said, value in (("zzz", 0.9), ("yyy", 0.25)):
        builder.verdicts.put(visual, key, said, value)
    (row,) = builder.on_policy(always("zzz", "yyy"), [key], seed=0).rows
    assert (text(row["rejected"]), row["score_rejected"], row["score_chosen"]) == ("yyy", 0.125, 0.875)
    builder.verdicts.put(visual, key, "zzz", None)  # missing for one answer, it counts for none
    (row,) = builder.on_policy(always("zzz", "yyy"), [key], seed=0).rows
    assert (text(row["rejected"]), row["score_rejected"], row["score_chosen"]) == ("yyy", 0.0, 1.0)
    builder.verdicts.put(reference, key, "yyy", None)  # now no judge scored all of them
    assert builder.on_policy(always("zzz", "yyy"), [key], seed=0).counts["no_verdict"] == 1


def test_broken_clip_is_one_dropped_question(world, tmp_path):
    folder = copied(world, tmp_path)
    path = next((folder / "preferences").glob("train-*"))
    rows = Dataset.from_parquet(str(path)).cast_column("video", Video(decode=False))
    broken = [{**row, "video": {"bytes": b"x", "path": "x.mp4"}} if not i else row for i, row in enumerate(rows)]
    write(folder, "preferences", broken)
    notes: list[str] = []
    builder = PairBuilder(folder, "train", KNOWN, log=notes.append)
    built = builder.on_policy(always("zzz", "yyy"), builder.question_ids, seed=0)
    assert built.counts["no_verdict"] == sum(q.video_id == rows[0]["video_id"] for q in builder.pool.questions.values())
    assert any("cannot be read" in note for note in notes)


words = st.sampled_from(["red", "blue", "red blue", "2", "two", "", "the red", "zzz", "Red."])
reply = st.one_of(words, words.map(lambda said: ChatReply(said, "length", 1, 9)))


@settings(max_examples=40, deadline=None)
@given(answers=st.lists(reply, min_size=3, max_size=3), below=st.sampled_from([0.25, 0.5, 0.75, 1.0]), data=st.data())
def test_every_question_is_a_pair_or_one_drop(shared_builder, answers, below, data):
    builder = shared_builder
    builder.settings = replace(builder.settings, samples=3, error_below=below)
    ids = data.draw(st.lists(st.sampled_from(builder.question_ids), min_size=1, max_size=6, unique=True))
    built = builder.on_policy(always(*answers), ids, seed=0)
    counts = built.counts
    assert list(counts) == list(COUNTS)
    assert counts["pairs"] + sum(counts[drop] for drop in DROPS) == counts["questions"] == len(ids)
    assert len(built.rows) == counts["pairs"] and set(built.rows["question_id"]) <= set(ids)
    own = {a if isinstance(a, str) else a.text for a in answers}
    for row in built.rows:
        assert row["model_rejected"] == "policy" and text(row["rejected"]) in own
        assert row["score_rejected"] < below and row["score_rejected"] < row["score_chosen"] <= 1
        assert row["margin"] == pytest.approx(row["score_chosen"] - row["score_rejected"])
        assert normalise(text(row["chosen"])) not in ("", normalise(text(row["rejected"])))
        assert row["model_chosen"] != "cut"


@pytest.fixture(scope="module")
def shared_builder(world):
    """One builder for many examples; its verdicts add up."""
    return PairBuilder(world, "train", KNOWN, log=quiet)


def test_order_of_questions_batch_size_and_memory_change_nothing(world, base):
    policy = load_model(base)
    built = []
    for order, size in ((1, 64), (-1, 3)):
        builder = PairBuilder(world, "train", replace(KNOWN, samples=4), batch_size=size, log=quiet)
        built.append(builder.on_policy(policy, builder.question_ids[::order], seed=3))
    again = builder.on_policy(policy, builder.question_ids * 2, seed=3)
    assert built[0].pairs == built[1].pairs == again.pairs
    assert built[0].rows._fingerprint == built[1].rows._fingerprint
    # What was asked before is not asked again, but it was needed: a run's cost does not depend on what ran before it.
    assert built[0].counts == built[1].counts == again.counts and again.counts["judge_calls"] > 0
    other = builder.on_policy(policy, builder.question_ids, seed=4)
    assert [p["text_rejected"] for p in other.pairs] != [p["text_rejected"] for p in again.pairs]


def test_real_parts_with_two_judges(world, base, verifier):
    judges = (REFERENCE, {"kind": "visual", "model": str(verifier), "weight": 0.5})
    notes: list[str] = []
    builder = PairBuilder(world, "train", replace(KNOWN, judges=judges, max_new_tokens=4), log=notes.append)
    ids = builder.question_ids[:8]
    built = builder.on_policy(load_model(base), ids, seed=0)
    assert sum("judge 'visual'" in note for note in notes) == 1  # no stored verdict is of this judge
    assert built.counts["sampled"] == 16 and built.counts["judge_calls"] > 0
    assert built.counts["pairs"]
    reference, visual = builder._judges()
    for row in built.rows:
        frames = builder.pool.clips.frames(row["video_id"], 8)
        item = JudgeItem(row["question"], [row["answer"]], frames, text(row["chosen"]))
        both = [*reference.score([item])[0], *visual.score([item])[0]]
        assert row["score_chosen"] == pytest.approx(aggregate(both, {"visual": 0.5}), abs=1e-5)


@pytest.fixture(scope="session")
def verifier(tmp_path_factory) -> Path:
    """An untrained checkpoint as visual judge."""
    from dataset_builder.toy_models import save_tiny

    return save_tiny("qwen2_vl", tmp_path_factory.mktemp("on-policy") / "verifier", seed=7)


def test_without_the_reference_judge_no_judge_sees_a_reference(world, verifier):
    judges = (REFERENCE, {"kind": "visual", "model": str(verifier)})
    for names in (("visual",), ("reference", "visual")):
        builder = PairBuilder(world, "train", replace(KNOWN, judges=judges, judge_names=names), log=quiet)
        seen = spied(builder)
        builder.on_policy(always("zzz", "yyy"), builder.question_ids[:6], seed=0)
        assert {name for name, _ in seen} == set(names)
        for name, item in seen:
            assert bool(item.answers) == (name == "reference")
            assert (item.frames is not None) == (name == "visual")


def test_each_verdict_is_asked_once_and_the_zoo_lends_its_own(world):
    builder = PairBuilder(world, "train", replace(KNOWN, samples=4), log=quiet)
    ids = colour_questions(builder)
    seen = spied(builder)
    lent = [a for key in ids for a in builder.pool.zoo[key] if not a.malformed]
    first = builder.on_policy(always("zzz", "zzz", "yyy", ANSWERS["colour"][0]), ids, seed=0)
    asked = [(item.question, tuple(item.answers), item.response) for _, item in seen]
    known = sum(a.text == ANSWERS["colour"][0] for a in lent)
    assert first.counts["judge_calls"] == len(asked) == 3 * len(ids) - known
    assert first.counts["judge_reused"] == known > 0
    second = builder.on_policy(always("zzz", "zzz", "yyy", ANSWERS["colour"][0]), ids, seed=1)
    assert second.counts == first.counts, "as many verdicts were needed"
    assert len(seen) == len(asked), "and none was asked again"


def test_verdicts_of_another_judge_by_the_same_name_are_not_lent(world, tmp_path):
    folder = copied(world, tmp_path)
    rows = Dataset.from_parquet(str(next((folder / "responses").glob("*")))).to_list()
    for row in rows:
        row["scores"] = [{**score, "judge_revision": "0", "score": 1.0} for score in row["scores"]]
    write(folder, "responses", rows)
    builder = PairBuilder(folder, "train", KNOWN, log=quiet)
    built = builder.on_policy(always("zzz", "yyy"), builder.question_ids[:2], seed=0)
    assert built.counts["judge_calls"] == 2 * 4 and built.counts["pairs"] == 2  # two own and two of the zoo's texts


def test_zoo_pairs_by_stored_scores_of_the_named_judges(world, tmp_path):
    built = PairBuilder(world, "train", KNOWN, log=quiet).from_zoo()
    assert built.counts["pairs"] == built.counts["questions"] == 24
    assert (built.counts["sampled"], built.counts["judge_calls"]) == (0, 0)
    assert all((row["model_chosen"], row["model_rejected"]) == ("right", "wrong") for row in built.rows)
    folder = copied(world, tmp_path)
    rows = Dataset.from_parquet(str(next((folder / "responses").glob("*")))).to_list()
    for row in rows:  # a second judge that sees it the other way round
        other = {**row["scores"][0], "judge": "visual", "criterion": "correct"}
        row["scores"].append({**other, "score": 0.9 - 0.5 * row["scores"][0]["score"]})
    write(folder, "responses", rows)
    visual = PairBuilder(folder, "train", replace(KNOWN, judges=(), judge_names=("visual",)), log=quiet)
    built = visual.from_zoo(visual.question_ids[:5])
    assert {row["model_chosen"] for row in built.rows} == {"wrong"}
    assert built.rows["margin"][:] == [0.5] * 5
    assert visual.from_zoo(min_margin=0.6).counts["no_margin"] == 24
    both = PairBuilder(folder, "train", replace(KNOWN, judges=()), log=quiet)
    mine = [row for row in rows if row["question_id"] == both.question_ids[0]]
    pair = select_pair(both.question_ids[0], mine, 0.1).pair
    row = both.from_zoo(both.question_ids[:1]).rows[0]
    assert (row["score_chosen"], row["score_rejected"]) == (pair.score_chosen, pair.score_rejected)
    with pytest.raises(KitError, match="'visual' shall judge own answers, but no entry describes it"):
        visual.on_policy(always("zzz"), visual.question_ids, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judges": ({"kind": "pairwise", "model": "x"},)}, "'pairwise' judge gives no score"),
        ({"judges": ({"kind": "reference", "wieght": 1},)}, "wieght"),
        ({"judges": (REFERENCE, REFERENCE)}, "two of them are called 'reference'"),
        ({"judge_names": ()}, "judge_names is empty"),
        ({"samples": 0}, "samples is 0"),
        ({"error_below": 0.0}, "error_below is 0.0"),
        ({"temperature": -1.0}, "decoding out of range"),
    ],
)
def test_wrong_settings_are_one_line(fields, message):
    with pytest.raises(KitError, match=message) as caught:
        OnPolicySettings(**{**asdict(KNOWN), **fields})
    assert "\n" not in str(caught.value)


def test_unknown_names_are_one_line(world):
    with pytest.raises(KitError, match="no judge is called 'visula'; there are: reference"):
        PairBuilder(world, "train", replace(KNOWN, judge_names=("visula",)), log=quiet)
    with pytest.raises(KitError, match="split 'dev'"):
        PairBuilder(world, "dev", KNOWN, log=quiet)
    builder = PairBuilder(world, "train", KNOWN, log=quiet)
    with pytest.raises(KitError, match="no question 'q-1' with a video"):
        builder.on_policy(always("zzz"), ["q-1"], seed=0)
    free = PairBuilder(world, "train", replace(KNOWN, judges=({"kind": "reference", "weight": 0.0},)), log=quiet)
    with pytest.raises(KitError, match="at least one judge with a weight above 0"):
        free.on_policy(always("zzz"), free.question_ids, seed=0)
