"""Replies of judges as they come in real life, each with its one right reading in each mode, or with none."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataset_builder.judges import VQA_SCHEMA, parse_hound, parse_video_chatgpt, parse_vqa
from dataset_builder.judges.legacy_parsing import Match
from dataset_builder.judges.parsing import Refusal, VQAVerdict
from dataset_builder.models import BadReply

REFUSED = object()
YES5 = '{"correct": "yes", "score": 5, "reason": "The ball is red."}'
NO1 = "{'pred': 'no', 'score': 1}"

# (reply, reading): (correct, score); None is no verdict, REFUSED a refusal.
VQA = [
    (YES5, (True, 5)),
    ('{"correct":"no","score":0,"reason":""}', (False, 0)),
    ('{"correct": "yes", "score": 4}', (True, 4)),  # a reason is wanted, not needed
    ('{"correct": "yes", "score": 4.8, "reason": "nearly"}', (True, 4.8)),
    ('{"score": 2.0, "reason": "another colour", "correct": "no"}', (False, 2)),
    ('{"correct": "Yes", "score": 5, "reason": "x"}', (True, 5)),
    (f"```json\n{YES5}\n```", (True, 5)),
    (f"```\n{YES5}\n```", (True, 5)),
    (f"Here is my verdict:\n\n```json\n{YES5}\n```\n\nLet me know!", (True, 5)),
    (f"{YES5}\n\nThe answer names the colour that the frames show, 5 of 5.", (True, 5)),
    (f"The ball is red, so no doubt: {YES5}", (True, 5)),
    ('{"correct": "no", "score": 1, "reason": "It says \\"correct\\": \\"yes\\", which is no answer."}', (False, 1)),
    ('{"correct": "no", "score": 1, "reason": "I cannot see any dog."}', (False, 1)),
    ('{"correct": "yes", "score": 0, "reason": "odd, but said"}', (True, 0)),
    ("{'correct': 'yes', 'score': 5}", None),  # single quotes are no JSON
    ('{"correct": true, "score": 5}', None),
    ('{"correct": True, "score": 5}', None),
    ('{"correct": 1, "score": 5}', None),
    ('{"correct": "yes", "score": "5"}', None),
    ('{"correct": "yes", "score": "5/5"}', None),
    ('{"correct": "yes", "score": 5/5}', None),
    ('{"correct": "yes", "score": 6}', None),
    ('{"correct": "yes", "score": -1}', None),
    ('{"correct": "yes", "score": NaN}', None),
    ('{"correct": "yes", "score": Infinity}', None),
    ('{"correct": "yes", "score": 1e999}', None),
    ('{"correct": "yes", "score": true}', None),
    ('{"correct": "yes", "score": null}', None),
    ('{"correct": "yes", "score": [5]}', None),
    ('{"correct": "yes", "score": ５}', None),
    ('{"correct": "yes", "score": "３"}', None),
    ('{"correct": "yes", "score": 4-5}', None),
    ('{"correct": "yes", "score": 8, "out_of": 10}', None),
    ('{"correct": "yes, but it leaves out the ball", "score": 3}', None),
    ('{"correct": "yes or no", "score": 3}', None),
    ('{"correct": "partially", "score": 3}', None),
    ('{"correct": "ja", "score": 5}', None),
    ('{"correct": "да", "score": 5}', None),
    ('{"correct": "ｙｅｓ", "score": 5}', None),
    ('{"correct": "", "score": 5}', None),
    ('{"correct": "yes", "correct": "no", "score": 5}', None),
    ('{"correct": "yes", "score": 5, "score": 1}', None),
    ('{"verdict": {"correct": "yes", "score": 5}}', None),
    ('{"correct": {"answer": "yes"}, "score": 5}', None),
    ('[{"correct": "yes", "score": 5}, {"correct": "no", "score": 0}]', None),
    (f"{YES5}\n{YES5}", None),
    (f"{YES5} or perhaps " + '{"correct": "no", "score": 0}', None),
    (f"<think>It could be {YES5}</think>{YES5}", None),
    (YES5[:-1], None),
    ('{"correct": "yes", "score": 5, "reason": "The ba', None),
    ('{"correct": "yes", "score"', None),
    ('{"correct": "yes"}', None),
    ('{"score": 5}', None),
    ('{"relevance": 5, "accuracy": 4, "completeness": 3, "clarity": 2, "reason": "x"}', None),
    ('{"correct": "yes", "score": 5, "confidence": 0.9}', None),
    ('{"correct": "yes", "score": 5, "reason": 5}', None),
    ("yes", None),
    ("Yes, 5/5.", None),
    ("**Correct:** yes\n**Score:** 5", None),
    ("0 (out of 1)", None),
    ("Die Antwort ist richtig, 5 Punkte.", None),
    ("", None),
    (" \n\t", None),
    ("{}", None),
    ("null", None),
    ("I'm sorry, but I can't help with that.", REFUSED),
    ("I cannot determine whether the answer is right.", REFUSED),
    ("As an AI language model, I can't watch videos.", REFUSED),
    ("Sorry, I am unable to judge this answer.", REFUSED),
    ("I must decline.", REFUSED),
]
CHATGPT = [
    ("{'pred': 'yes', 'score': 5}", (True, 5)),
    (NO1, (False, 1)),
    ("{'pred': 'yes', 'score': 4.8}", (True, 4.8)),  # the predecessors read 4
    ('{"pred": "yes", "score": 4}', (True, 4)),
    ("{'pred': 'yes', \"score\": 4}", (True, 4)),
    ("{'score': 0, 'pred': 'no'}", (False, 0)),
    ("{'pred': 'Yes', 'score': 3.5}", (True, 3.5)),
    (f"```python\n{NO1}\n```", (False, 1)),
    (f"```json\n{NO1}\n```", (False, 1)),
    (f"Here's the result: {NO1}", (False, 1)),
    (f"{NO1}\nIt's another colour.", (False, 1)),
    ("{'pred': 'no', 'score': 1, 'reason': \"it's blue, not {red}\"}", (False, 1)),
    ("{'pred': 'no', 'score': 1, 'reason': 'blue'}", (False, 1)),
    ("{\n  'pred': 'yes',\n  'score': 5,\n}", (True, 5)),
    ("{'pred': True, 'score': 5}", None),
    ("{'pred': 'True', 'score': 5}", None),
    ("{'pred': yes, 'score': 5}", None),
    ("{pred: 'yes', score: 5}", None),
    ("{'pred': 'yes', 'score': '5'}", None),
    ("{'pred': 'yes', 'score': 5/5}", None),
    ("{'pred': 'yes', 'score': 2+2}", None),
    ("{'pred': 'yes', 'score': float('nan')}", None),
    ("{'pred': 'yes', 'score': nan}", None),
    ("{'pred': 'yes', 'score': 1e999}", None),
    ("{'pred': 'yes', 'score': 4j}", None),
    ("{'pred': 'yes', 'score': ４}", None),
    ("{'pred': 'yes', 'score': 7}", None),
    ("{'pred': 'yes', 'score': -3}", None),
    ("{'pred': 'yes, but only in part', 'score': 3}", None),
    ("{'pred': 'sí', 'score': 5}", None),
    ("{'pred': 'no', 'pred': 'yes', 'score': 5}", None),
    ("{'pred': 'no', 'score': 5, 'score': 1}", None),
    ('{"pred": "no", "pred": "yes", "score": 5}', None),
    (f"{NO1} {NO1}", None),
    ("{'pred': 'no', 'score': 1", None),
    ("{'pred': 'no', 'sco", None),
    ("{'pred': 'no'}", None),
    ("{'result': {'pred': 'no', 'score': 1}}", None),
    ("{**{'pred': 'no'}, 'score': 1}", None),
    ("{'pred', 'score'}", None),
    ("{'pred': 'no' if True else 'yes', 'score': 1}", None),
    ("{'pred': __import__('os').name, 'score': 1}", None),
    ("pred: yes, score: 5", None),
    ("yes 5", None),
    ("{'pred': 'yes', 'score': 5, 'certainty': 1}", None),
    (YES5, None),
    ("", None),
    ("I'm sorry, I can't compare these answers.", REFUSED),
    ("Unable to determine the answer.", REFUSED),
]
HOUND = [
    ("4", 4),
    (" 4 \n", 4),
    ("4.", 4),
    ("4.8", 4.8),  # the predecessors read 4
    ("4.0", 4),
    ("4/5", 4),
    ("2 / 5", 2),
    ("3 out of 5", 3),
    ("Score: 4", 4),
    ("score: 3.5", 3.5),
    ("SCORE = 2", 2),
    ("Score: 4/5.", 4),
    ("**Score**: 2/5", 2),
    ("**Score:** 2", 2),
    ("**Score: 2**", 2),
    ("## Score: 5", 5),
    ("`4`", 4),
    ("```\nScore: 4\n```", 4),
    ("Rating: 1", 1),
    ("Final score: 5", 5),
    ("The score is 4.", 4),
    ('{"score": 4}', 4),
    ("{'score': 4.8}", 4.8),
    ('```json\n{"score": 4, "reason": "misses the colour"}\n```', 4),
    ("Score: 4\n\nThe answer is right but leaves out the colour.", 4),
    ("The answer is right.\nScore: 5", 5),
    ("Score: 4\nThe answer names 2 dogs.", None),  # which of the numbers?
    ("Score: 4\nOr rather five.", None),
    ("4\nThe answer is right.", None),  # a bare number among words
    ("Score: 4, as a detail is missing", None),
    ("I would give this a 4.", None),
    ("Relevance: 4\nAccuracy: 5", None),
    ("Score: 4\nScore: 4", None),
    ("Score: 4\nFinal score: 2", None),
    ("4 5", None),
    ("3-4", None),
    ("Score: 3–4", None),
    ("3 to 4", None),
    ("3 or 4", None),
    ("between 3 and 4", None),
    ("8/10", None),
    ("Score: 4/10", None),
    ("4 out of 10", None),
    ("80%", None),
    ("0", None),
    ("6", None),
    ("-4", None),
    ("Score: -4", None),
    ("10", None),
    ("0 (out of 1)", None),
    ("4,5", None),
    ("4*", None),
    ("0*4*", None),
    ("４", None),
    ("Score: ٤", None),
    ("④", None),
    ("Score：4", None),
    ("four", None),
    ("Score: four", None),
    ("Note : 4", None),
    ("Punktzahl: 4", None),
    ("得分：4", None),
    ("★★★★☆", None),
    ("yes", None),
    ("nan", None),
    ("Score: NaN", None),
    ('{"score": NaN}', None),
    ('{"score": "4"}', None),
    ('{"score": true}', None),
    ('{"score": 4, "score": 5}', None),
    ('{"score": 4} {"score": 4}', None),
    ('{"scores": {"score": 4}}', None),
    ('{"score": 0}', None),
    ('{"score": 4', None),
    ("[4]", None),
    ("", None),
    ("I'm sorry, but I cannot rate this.", REFUSED),
    ("I cannot watch the video.\nScore: 1", REFUSED),  # the predecessors' judges scored their own refusals
    ("Score: 1\nI can't see the video.", REFUSED),
    ("As an AI, I don't rate answers.", REFUSED),
]
assert len(VQA) + len(CHATGPT) + len(HOUND) >= 60


def read(parse, text):
    """What a parser makes of a text: plain values, None or REFUSED."""
    try:
        found = parse(text)
    except Refusal:
        return REFUSED
    except BadReply as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 300
        return None
    return found if isinstance(found, float) else (found.correct, found.score)


@pytest.mark.parametrize(("reply", "reading"), VQA, ids=range(len(VQA)))
def test_vqa(reply, reading):
    assert read(parse_vqa, reply) == reading


@pytest.mark.parametrize(("reply", "reading"), CHATGPT, ids=range(len(CHATGPT)))
def test_video_chatgpt(reply, reading):
    assert read(parse_video_chatgpt, reply) == reading


@pytest.mark.parametrize(("reply", "reading"), HOUND, ids=range(len(HOUND)))
def test_hound(reply, reading):
    assert read(parse_hound, reply) == reading


def test_a_reply_in_one_form_is_none_in_another():
    for reply, reading in VQA:
        if reading is not None and reading is not REFUSED:
            assert read(parse_video_chatgpt, reply) is None and read(parse_hound, reply) is None
    for reply, reading in CHATGPT:
        if reading is not None and reading is not REFUSED:
            assert read(parse_vqa, reply) is None and read(parse_hound, reply) is None


def test_a_reply_is_too_long():
    for parse, reply in ((parse_vqa, YES5), (parse_video_chatgpt, NO1), (parse_hound, "4")):
        with pytest.raises(BadReply, match="characters"):
            parse(reply + " " * 30_000)


pieces = st.sampled_from(
    [
        *("{", "}", "[", "]", '"', "'", ":", ",", "\n", " ", "*", "**", "`", "```", "\\", "/", "-", ".", "#", "\u2028"),
        *("correct", "score", "pred", "reason", "Score: ", "yes", "no", "True", "NaN", "None", "null", "4", "5", "8"),
        *('"correct": "yes"', "'pred': 'no'", '"score": 4', "4/5", "out of 5", "1e400", "４", "\ud800", "\0", "\\x"),
    ]
)
texts = st.text(max_size=60) | st.lists(pieces, max_size=25).map("".join)


@given(text=texts)
@example("{" * 3000)
@example("{'a':" * 3000)
@example("{'score': " + "(" * 500)
@example("{'score': " + "-" * 5000 + "4}")
@example("{'score': " + "9" * 5000 + "}")
@example('{"\\ud800": 1}')
@example("{'\\ud800': 1}")
@example("{[]: 1}")
@example("{{}: 1}")
@example("Score: " * 280)
@example("*`_" * 600)
def test_no_text_breaks_a_parser_or_gives_a_value_out_of_range(text):
    for parse, low in ((parse_vqa, 0), (parse_video_chatgpt, 0), (parse_hound, 1)):
        found = read(parse, text)
        if found is None or found is REFUSED:
            continue
        correct, score = (True, found) if parse is parse_hound else found
        assert type(correct) is bool and type(score) is float and low <= score <= 5
        assert re.search(r"[0-9]", text)  # no number comes from nowhere


scores = st.integers(-2, 7) | st.floats(-1, 6) | st.booleans() | st.text(max_size=3) | st.none()
words = st.sampled_from(["yes", "no", "Yes", "NO", "maybe", "", "yes."]) | st.booleans() | st.integers(0, 1)


@given(word=words, score=scores, reason=st.text(max_size=20) | st.integers() | st.none())
def test_a_verdict_that_is_read_is_the_one_that_was_given(word, score, reason):
    said = isinstance(word, str) and word.lower() in ("yes", "no")
    number = type(score) in (int, float) and 0 <= score <= 5
    fine = said and number and isinstance(reason, str)
    for parse, key, spell in (
        (parse_vqa, "correct", json.dumps),
        (parse_video_chatgpt, "pred", json.dumps),
        (parse_video_chatgpt, "pred", repr),
    ):
        text = spell({key: word, "score": score, "reason": reason})
        assert read(parse, text) == ((word.lower() == "yes", float(score)) if fine else None)


@given(score=st.floats(1, 5).map(lambda value: round(value, 2)) | st.integers(1, 5))
def test_a_score_is_never_rounded(score):
    for form in ("{}", "Score: {}", "**Score**: {}/5", "{} out of 5", '{{"score": {}}}', "{{'score': {}}}"):
        assert parse_hound(form.format(score)) == score


def test_what_a_reading_holds():
    assert parse_vqa(YES5) == VQAVerdict(True, 5.0, "The ball is red.")
    assert parse_video_chatgpt(NO1) == Match(False, 1.0)
    assert parse_vqa('{"correct": "no", "score": 1, "reason": "\\ud800 x"}').reason.encode()


def test_the_schema_asks_for_what_the_parser_takes():
    properties = VQA_SCHEMA["properties"]
    assert set(VQA_SCHEMA["required"]) == set(properties) and VQA_SCHEMA["additionalProperties"] is False
    assert next(iter(properties)) == "correct"  # the word comes before its score and reason
    for word in properties["correct"]["enum"]:
        for score in properties["score"]["enum"]:
            parse_vqa(json.dumps({"correct": word, "score": score, "reason": ""}))
