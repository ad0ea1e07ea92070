"""Sets with known truth: what is drawn from a benchmark, what one's own file may hold, and what it may not."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.text import normalise, words
from eval.audit import Known, cases_of_benchmark, draw_cases, read_set, set_fingerprint
from eval.audit.cases import says_otherwise
from eval.runner import BenchmarkItem


def item(
    number: int, answers: list[str], question: str = "what colour ?", kind: str = "colour", video: str | None = None
):
    video = video or f"v{number}"
    return BenchmarkItem(f"q{number}", video, question, tuple(answers), kind, f"{video}.mp4")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_wrong_answers_are_other_questions_references_that_say_something_else():
    items = [item(n, [answer]) for n, answer in enumerate(["red", "The Red", "red ball", "blue", "a blue boat", "two"])]
    items += [item(7, ["dog"], "which animal ?", "animal"), item(8, []), item(9, ["cat"], "which pet ?", "animal")]
    cases = cases_of_benchmark(items, seed=1)
    assert [case.case_id for case in cases] == ["q0", "q1", "q2", "q3", "q4", "q5", "q7", "q9"]
    by_id = {case.case_id: case for case in cases}
    assert by_id["q7"].wrong == ("cat",) and by_id["q7"].other_id == "v9" and by_id["q7"].other == "v9.mp4"
    for case in cases:
        assert case.right == case.answers[:1] and says_otherwise(case.wrong[0], case.answers)
        donor = next(one for one in cases if one.right == case.wrong and one.video_id == case.other_id)
        assert donor.question_type == case.question_type and donor.video_id != case.video_id
    assert {by_id[name].wrong[0] for name in ("q0", "q1", "q2")} <= {"blue", "a blue boat", "two"}


def test_another_wording_is_second_choice_and_the_same_video_none():
    same = cases_of_benchmark([item(1, ["red"]), item(2, ["blue"], video="v1"), item(3, ["teal"])])
    assert [case.wrong[0] for case in same[:2]] == ["teal", "teal"] and same[2].wrong[0] in ("red", "blue")
    other = [item(1, ["red"]), item(2, ["blue"], "which colour has it ?"), item(3, ["red"]), item(4, ["teal"])]
    assert {case.wrong for case in cases_of_benchmark(other) if case.case_id in ("q1", "q3")} == {("teal",)}
    with pytest.raises(KitError, match="--set"):
        cases_of_benchmark([item(1, ["red"]), item(2, ["red"]), item(3, ["dog"], "which ?", "animal")])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12), st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_saying_otherwise_is_mutual_and_never_true_of_equals(text, others):
    assert says_otherwise(text, others) == all(says_otherwise(other, [text]) for other in others)
    if any(normalise(text) == normalise(other) for other in others) or not words(text):
        assert not says_otherwise(text, others)


def test_responses_count_only_where_their_truth_is_sure():
    items = [item(1, ["red", "a red one"]), item(2, ["blue"])]
    said = {"q1": [("m", "Red."), ("m", "blue"), ("n", "a red ball"), ("n", "blue"), ("m", "Red.")]}
    case = cases_of_benchmark(items, responses=said)[0]
    assert case.responses == (Known("m", "Red.", True), Known("m", "blue", False), Known("n", "blue", False))


def test_draws_follow_the_seed_and_not_the_order():
    items = [item(n, [answer], video=f"v{n // 2}") for n, answer in enumerate("abcdefgh" * 4)]
    cases = cases_of_benchmark(items, seed=3)
    shuffled = random.Random(0).sample(items, len(items))
    assert draw_cases(cases_of_benchmark(shuffled, seed=3), None) == draw_cases(cases, None)
    assert set_fingerprint(cases) == set_fingerprint(cases[::-1])
    assert set_fingerprint(cases) != set_fingerprint(cases_of_benchmark(items, seed=4))
    drawn = draw_cases(cases, 7, seed=5)
    assert len(drawn) == 8 and len({case.video_id for case in drawn}) == 4  # whole videos
    assert drawn == draw_cases(cases[::-1], 7, seed=5) != draw_cases(cases, 7, seed=6)
    assert draw_cases(drawn, 100) == drawn


def test_a_set_of_ones_own(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "clips" / name).write_bytes(b"")
    said = [{"model": "m", "response": "an onion", "right": True}]
    path = write(
        tmp_path / "set.jsonl",
        {"id": "q1", "video": "clips/a.mp4", "question": "what is cut ?", "answers": ["an onion"], "wrong": "a leek"}
        | {"right": ["onion", "onions"], "responses": said, "caption": "somebody cooks"},
        {"id": 2, "video": "clips/b.mp4", "question": "what is cut ?", "answer": "bread", "question_type": "food"},
        {"id": "q3", "video_id": "x", "question": "what is eaten ?", "right": "an apple", "question_type": "food"},
    )
    first, second, third = read_set(path)
    assert (first.right, first.wrong, first.video_id) == (("onion", "onions"), ("a leek",), "clips/a.mp4")
    assert first.video == str(tmp_path / "clips/a.mp4") and first.responses == (Known("m", "an onion", True),)
    assert first.caption == "somebody cooks" and first.other_id in ("clips/b.mp4", "x")  # any video that is not its own
    assert (second.case_id, second.answers, second.right) == ("2", ("bread",), ("bread",))
    assert second.wrong == ("an apple",) and third.wrong == ("bread",) and third.answers == () and third.video is None
    assert read_set(path) == [first, second, third]


GOOD = {"id": "q", "question": "what ?", "answers": ["red"], "wrong": ["blue"]}


@pytest.mark.parametrize(
    "row, said",
    [
        ("{", "set.jsonl:2: not valid JSON"),
        ("[1]", "set.jsonl:2: is not a JSON object"),
        ({**GOOD, "id": None}, "field 'id': is missing"),
        ({**GOOD, "id": "first"}, "'first' stands in line 1 too"),
        ({**GOOD, "question": " "}, "field 'question': is missing or not text"),
        ({**GOOD, "answers": []}, "field 'right': is missing"),
        ({**GOOD, "answers": [1]}, "field 'answers': must be a text or a list of texts"),
        ({**GOOD, "wrong": ["..."]}, "field 'wrong': must be a text"),
        ({**GOOD, "wrong": ["The RED"]}, "field 'wrong': 'The RED' is among the right answers"),
        ({**GOOD, "wrong": None}, "field 'wrong': is missing, and no other question of its type"),
        ({**GOOD, "video": "gone.mp4"}, "field 'video': there is no"),
        ({**GOOD, "video_id": "v0", "video": "set.jsonl"}, "field 'video_id': 'v0' is another video"),
        ({**GOOD, "responses": 3}, "field 'responses': must be a list"),
        ({**GOOD, "responses": ["red"]}, "field 'responses': each must be an object"),
        ({**GOOD, "responses": [{"model": "m", "response": "red"}]}, "'right' is missing or not true or false"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, said):
    first = {**GOOD, "id": "first", "question_type": "other", "video_id": "v0"}
    path = write(tmp_path / "set.jsonl", first)
    with path.open("a") as stream:
        stream.write(row if isinstance(row, str) else json.dumps(row))
    with pytest.raises(KitError) as error:
        read_set(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_empty_set(tmp_path):
    with pytest.raises(KitError, match="cannot be read"):
        read_set(tmp_path / "none.jsonl")
    with pytest.raises(KitError, match="holds no question"):
        read_set(write(tmp_path / "empty.jsonl"))
