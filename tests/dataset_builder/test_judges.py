"""Judges: ranges are kept, errors are errors, and the aggregate is what it says."""

from __future__ import annotations

import dataclasses
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.judges import (
    VERIFIER_PROMPT,
    Criterion,
    Judge,
    JudgeItem,
    ReferenceJudge,
    Score,
    VisualJudge,
    aggregate,
    disagreement,
    make_judge,
    make_scores,
    settings_hash,
    without_frames,
)
from dataset_builder.media import sample_frames
from dataset_builder.text import normalise, token_f1, words
from tests.dataset_builder.clips import moving_square, write_clip


def judged(response: str, *answers: str) -> tuple[float, float]:
    match, f1 = ReferenceJudge().score([JudgeItem("q", list(answers), None, response)])[0]
    return match.score, f1.score


@pytest.mark.parametrize(
    ("response", "answer", "match"),
    [
        ("Red.", "red", 1),
        ("the RED ball", "Red ball!", 1),
        ("two", "2", 1),
        ("Ten", "10", 1),
        ("eleven", "11", 0),
        ("A", "a.", 1),  # an option's letter is no article
        ("A", "the", 0),
        ("option A", "option B", 0),
        ("option A", "option", 0),
        ("3.5", "35", 0),
        ("1,000", "1000", 1),
        ("-5", "5", 0),
        ("-5", "−5", 1),
        ("ﬁve", "5", 1),  # a ligature
        ("don't", "dont", 1),
        ("left-right", "left right", 1),
        ("", "red", 0),
        ("?", "?", 1),
        ("?", "!", 0),
        ("", "?", 0),
        ("STRASSE", "Straße", 1),
    ],
)
def test_match(response, answer, match):
    assert judged(response, answer)[0] == match


def test_f1_counts_shared_words_and_takes_the_best_reference():
    assert judged("a red ball", "red cube", "blue") == (0.0, 0.5)
    assert judged("red red", "red") == (0.0, pytest.approx(2 / 3))
    assert judged("猫在睡觉", "猫在跑")[1] == pytest.approx(4 / 7)


def test_without_references_there_are_errors_and_no_scores():
    scores = ReferenceJudge().score([JudgeItem("q", [], None, "red"), JudgeItem("q", ["red"], None, "red")])
    assert [s.score for s in scores[0]] == [None, None] and all("no reference" in s.error for s in scores[0])
    assert [s.score for s in scores[1]] == [1.0, 1.0] and all(s.error is None for s in scores[1])


texts = st.text(max_size=30) | st.text(alphabet=string.ascii_letters + " ',.-!10", max_size=30)


@given(text=texts)
def test_normalisation_is_idempotent(text):
    once = normalise(text)
    assert normalise(once) == once
    assert once == once.strip() and "  " not in once


@given(left=texts, right=texts)
def test_f1_is_symmetric_in_range_and_1_for_a_match(left, right):
    value = token_f1(left, right)
    assert value == token_f1(right, left) and 0 <= value <= 1
    match, f1 = judged(left, right)
    assert match in (0, 1) and f1 >= match and 0 <= f1 <= 1
    if sorted(words(left)) == sorted(words(right)) and words(left):
        assert value == 1


def score(judge: str, value: float | None, low: float = 0.0, high: float = 1.0, criterion: str = "c") -> Score:
    return Score(judge, "r", "h", criterion, value, low, high)


def test_aggregate_normalises_by_range_and_weighs_judges_not_criteria():
    scores = [score("a", 1.0), score("a", 0.0, criterion="d"), score("b", 5, 1, 5)]
    assert aggregate(scores) == 0.75
    assert aggregate(scores, {"a": 3, "b": 1}) == 0.625
    assert aggregate(scores, {"b": 1}) == 0.75  # a judge that is not named weighs 1
    assert aggregate([dataclasses.asdict(s) for s in scores]) == 0.75  # rows of the dataset
    assert disagreement(scores) == 0.5


def test_a_missing_score_gives_no_aggregate_unless_it_does_not_count():
    scores = [score("a", 1.0), score("b", None)]
    assert aggregate(scores) is None and aggregate([]) is None
    assert aggregate(scores, {"a": 1, "b": 0}) == 1.0
    assert aggregate(scores, {"a": 0, "b": 0}) is None
    assert disagreement(scores) is None
    with pytest.raises(KitError, match="judge 'a': weight"):
        aggregate(scores, {"a": -1})


ranged = st.tuples(st.floats(-50, 50), st.floats(0.1, 50), st.floats(0, 1)).map(
    lambda t: (t[0], t[0] + t[1], min(t[0] + t[1], t[0] + t[2] * t[1]))
)


@given(parts=st.lists(st.tuples(st.sampled_from("abc"), ranged), min_size=1, max_size=8), data=st.data())
def test_aggregate_properties(parts, data):
    scores = [score(judge, value, low, high) for judge, (low, high, value) in parts]
    weights = {judge: data.draw(st.floats(0.01, 10)) for judge in "abc"}
    value = aggregate(scores, weights)
    assert 0 <= value <= 1
    assert value == pytest.approx(aggregate(data.draw(st.permutations(scores)), weights), abs=1e-9)
    doubled = {judge: 2 * weight for judge, weight in weights.items()}
    assert value == pytest.approx(aggregate(scores, doubled), abs=1e-9)
    best = [dataclasses.replace(s, score=s.high) for s in scores]
    worst = [dataclasses.replace(s, score=s.low) for s in scores]
    assert aggregate(best, weights) == 1 and aggregate(worst, weights) == 0
    assert aggregate([*scores, score("z", None)], weights) is None
    spread = disagreement(scores)
    assert (spread is None) == (len({judge for judge, _ in parts}) < 2) and (spread is None or 0 <= spread <= 1 + 1e-9)


def test_settings_hash_is_canonical():
    assert settings_hash({"a": 1, "b": [1, 2]}) == settings_hash({"b": [1, 2], "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2}) and len(settings_hash({})) == 16
    with pytest.raises(ValueError):
        settings_hash({"a": float("nan")})


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf"), None])
def test_a_score_outside_its_range_is_an_error(value):
    first, second = make_scores(ReferenceJudge(), [value, 0.5])
    assert first.score is None and first.error and (second.score, second.error) == (0.5, None)
    with pytest.raises(ValueError, match="low must be below high"):
        Criterion("c", 1, 1)


def test_make_judge():
    judge = make_judge({"kind": "reference", "weight": 2})
    assert isinstance(judge, ReferenceJudge) and isinstance(judge, Judge) and judge.weight == 2.0
    for spec, says in (
        ({"kind": "referee"}, "'referee' is not known; did you mean 'reference'"),
        ({}, "kind: is missing"),
        ({"kind": "reference", "wieght": 1}, "did you mean 'weight'"),
        ({"kind": "visual"}, "model: is missing"),
        ({"kind": "visual", "model": "no/such/folder-here"}, "no/such/folder-here"),
    ):
        with pytest.raises(KitError, match=says.replace("?", r"\?")):
            make_judge(spec)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    from dataset_builder.toy_models import save_tiny

    return save_tiny("qwen2_vl", tmp_path_factory.mktemp("verifier"), seed=0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    video = np.ascontiguousarray(moving_square(16, width=32))
    return sample_frames(write_clip(tmp_path_factory.mktemp("clips") / "a.mp4", video), 8)


def test_visual_judge_scores_what_it_can_and_says_what_it_cannot(verifier, clip):
    judge = make_judge({"kind": "visual", "model": str(verifier), "weight": 0.5, "name": "verifier"})
    assert (
        isinstance(judge, VisualJudge) and isinstance(judge, Judge) and (judge.name, judge.weight) == ("verifier", 0.5)
    )
    question = "what colour is the shape ?"
    items = [
        JudgeItem(question, ["red"], clip, "red"),
        JudgeItem(question, ["red"], None, "red"),
        JudgeItem(question, [], clip, "blue {answer}"),
        JudgeItem(question, ["red"], clip.thin(4), "red"),
        JudgeItem(question, ["red"], clip, "  "),
    ]
    scores = [only for (only,) in judge.score(items)]
    assert [s.error is None for s in scores] == [True, False, True, False, False]
    assert 0 <= scores[0].score <= 1 and 0 <= scores[2].score <= 1 and scores[0].score != scores[2].score
    assert "frames are missing" in scores[1].error and "got 4 of the 8 frames" in scores[3].error
    assert {(s.judge, s.criterion, s.low, s.high) for s in scores} == {("verifier", "correct", 0.0, 1.0)}
    assert {s.settings_hash for s in scores} == {judge.settings_hash}
    assert scores[0].judge_revision == judge.model.revision
    assert judge.score([]) == []


def test_visual_judge_asks_exactly_the_verifier_prompt_and_never_shows_the_reference(verifier, clip):
    from dataset_builder.models import ChatRequest, load_model

    model = load_model(str(verifier))
    judge = VisualJudge(model, num_frames=4)
    prompt = VERIFIER_PROMPT.format(question="what ?", answer="red")
    direct = model.choice_probability([ChatRequest(prompt, clip.thin(4))], ("yes", "no"))[0, 0]
    for references in ([], ["red"], ["blue"]):
        ((only,),) = judge.score([JudgeItem("what ?", references, clip, "red")])
        assert only.score == pytest.approx(direct, abs=1e-6)


def test_visual_judges_with_other_settings_have_other_hashes(verifier):
    from dataset_builder.models import load_model

    model = load_model(str(verifier))
    first, again, other = VisualJudge(model), VisualJudge(model, name="x"), VisualJudge(model, num_frames=4)
    assert first.settings_hash == again.settings_hash != other.settings_hash


def test_a_visual_judge_reads_references_or_sees_nothing_where_it_is_told_to(verifier, clip):
    from dataset_builder.judges.visual import REFERENCE_PROMPT
    from dataset_builder.models import ChatRequest

    spec = {"kind": "visual", "model": str(verifier)}
    frames = clip
    item = JudgeItem("what ?", ["a ring", "ring"], frames, "a cross")
    reading = make_judge({**spec, "use_references": True}, device="cpu")
    asked = REFERENCE_PROMPT.format(question="what ?", references="a ring or ring", answer="a cross")
    expected = reading.model.choice_probability([ChatRequest(asked, frames)])[0, 0]
    assert reading.score([item])[0][0].score == expected
    plain = make_judge(spec, device="cpu")
    without = dataclasses.replace(item, answers=[])
    assert reading.score([without])[0][0].score == plain.score([item])[0][0].score  # no reference: nothing to read
    unseeing = make_judge({**spec, "num_frames": 0}, device="cpu")
    assert not unseeing.needs_frames
    blind = [unseeing.score([dataclasses.replace(item, frames=f)])[0][0].score for f in (None, frames)]
    assert blind[0] == blind[1] is not None
    assert len({reading.settings_hash, plain.settings_hash, unseeing.settings_hash}) == 3
    assert without_frames(plain).settings_hash == unseeing.settings_hash and without_frames(unseeing) is None
    vqa = {"kind": "vqa", "model": str(verifier), "max_new_tokens": 7, "max_retries": 1, "use_references": False}
    told, made = make_judge({**vqa, "num_frames": 0}, device="cpu"), without_frames(make_judge(vqa, device="cpu"))
    assert made.settings_hash == told.settings_hash and without_frames(ReferenceJudge()) is None
