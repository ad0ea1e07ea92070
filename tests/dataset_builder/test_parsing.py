"""Reading verdicts: a whole one, or a clear refusal to read it; never a number that was not given."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataset_builder.judges.parsing import (
    CHOICE_SCHEMA,
    CRITERIA,
    VERDICT_SCHEMA,
    Choice,
    Refusal,
    Verdict,
    parse_choice,
    parse_verdict,
)
from dataset_builder.models import BadReply

GOOD = {"relevance": 5, "accuracy": 4, "completeness": 3, "clarity": 2, "reason": "fine"}
WHOLE = json.dumps(GOOD)
READ = Verdict((5.0, 4.0, 3.0, 2.0), "fine")


def with_accuracy(raw: str) -> str:
    return WHOLE.replace('"accuracy": 4', f'"accuracy": {raw}')


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        f"  {WHOLE}\n",
        json.dumps(GOOD, indent=2),
        f"```json\n{WHOLE}\n```",
        f"```\n{WHOLE}\n```",
        f"My verdict:\n{WHOLE}\nThank you.",
        f"Here:\n```json\n{WHOLE}\n```\nDone.",
        json.dumps(dict(reversed(GOOD.items()))),
        with_accuracy("4.0"),
    ],
)
def test_a_verdict_is_read(text):
    assert parse_verdict(text) == READ


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "5",
        "[5, 4, 3, 2]",
        "null",
        "relevance: 5, accuracy: 4, completeness: 3, clarity: 2",
        *(
            with_accuracy(raw)
            for raw in (
                '"five"',
                '"4"',
                '"4/5"',
                "4/5",
                "4.5",
                "0",
                "6",
                "7",
                "-1",
                "1e400",
                "NaN",
                "Infinity",
                "true",
                "null",
                "[4]",
                "{}",
                "9" * 5000,
                '4, "accuracy": 5',
            )
        ),
        WHOLE[:-1],
        WHOLE[: len(WHOLE) // 2],
        WHOLE.replace('"clarity": 2, ', ""),
        WHOLE.replace('"fine"', '"fine", "score": 5'),
        WHOLE.replace('"fine"', "7"),
        f"{WHOLE} {WHOLE}",
        f"{WHOLE}\n" + '{"note": "x"}',
        f'{{"verdict": {WHOLE}}}',
        '{"a": ' * 5000 + "1" + "}" * 5000,
        WHOLE + " " * 30_000,
    ],
)
def test_anything_else_is_a_bad_reply_in_one_line(text):
    with pytest.raises(BadReply) as caught:
        parse_verdict(text)
    assert str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["I'm sorry, but I can't help with that.", "I cannot view this.", "As an AI, no."])
def test_a_refusal_is_told_apart(text):
    for parse in (parse_verdict, parse_choice):
        with pytest.raises(Refusal):
            parse(text)


def test_a_refusal_that_comes_with_a_verdict_is_a_verdict():
    assert parse_verdict(f"I'm sorry to say this: {WHOLE}") == READ


@given(text=st.text() | st.text(alphabet='{}[]":,0123456789.eE-+ \n`jsonrelvacymptid', max_size=200))
@example('{"\\ud800": 1}')
@example("{" * 3000)
def test_no_text_breaks_the_parser(text):
    for parse in (parse_verdict, parse_choice):
        try:
            parse(text)
        except BadReply as error:
            assert "\n" not in str(error)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@given(scores=st.tuples(*[st.integers(1, 5) | values] * 4), reason=st.text(max_size=20) | values)
def test_a_score_that_is_read_is_the_one_that_was_given(scores, reason):
    text = json.dumps({**dict(zip(CRITERIA, scores, strict=True)), "reason": reason})
    fine = all(type(score) in (int, float) and score in (1, 2, 3, 4, 5) for score in scores) and isinstance(reason, str)
    if not fine:
        with pytest.raises(BadReply):
            parse_verdict(text)
        return
    assert parse_verdict(text).scores == scores
    parse_verdict(text).reason.encode()  # it can be stored


@given(
    scores=st.tuples(*[st.integers(1, 5)] * 4),
    reason=st.text(st.characters(exclude_categories=["Cs"]), max_size=50).map(str.strip),
    around=st.tuples(*[st.text(alphabet="abc .\n", max_size=10)] * 2),
)
def test_round_trip(scores, reason, around):
    whole = json.dumps({**dict(zip(CRITERIA, scores, strict=True)), "reason": reason})
    assert parse_verdict(whole) == Verdict(tuple(map(float, scores)), reason)
    if "{" not in reason:
        assert parse_verdict(f"{around[0]}{whole}{around[1]}").scores == scores


@pytest.mark.parametrize("better", ["A", "B", "tie"])
def test_a_choice_is_read(better):
    assert parse_choice(json.dumps({"better": better, "reason": "so"})) == Choice(better, "so")
    assert parse_choice(f'```json\n{{"better": "{better}"}}\n```') == Choice(better, "")


@pytest.mark.parametrize(
    "text",
    [
        "A",
        '{"better": "a"}',
        '{"better": "C"}',
        '{"better": "A or B"}',
        '{"better": ["A"]}',
        '{"better": null}',
        '{"reason": "A"}',
        '{"better": "A", "better": "B"}',
        '{"better": "A"} {"better": "B"}',
        WHOLE,
    ],
)
def test_anything_else_is_no_choice(text):
    with pytest.raises(BadReply):
        parse_choice(text)


def test_the_schemas_ask_for_what_the_parsers_take():
    assert set(VERDICT_SCHEMA["required"]) == set(VERDICT_SCHEMA["properties"]) == set(GOOD)
    assert set(CHOICE_SCHEMA["required"]) == set(CHOICE_SCHEMA["properties"])
    assert VERDICT_SCHEMA["additionalProperties"] is CHOICE_SCHEMA["additionalProperties"] is False
    for choice in CHOICE_SCHEMA["properties"]["better"]["enum"]:
        parse_choice(json.dumps({"better": choice, "reason": ""}))
