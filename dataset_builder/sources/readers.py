"""Readers of question sources: each gives numbered rows under the kit's names, whatever the files call them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dataset_builder.errors import RowError
from dataset_builder.settings import ActivityNetQASource, FolderSource, ShareGPTSource, VideoChatGPTSource
from dataset_builder.sources.files import Item, read_rows

_PLACEHOLDERS = re.compile(r"<(?:video|image)>")
ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant", "model")


def plain_text(text: str) -> str:
    """A turn's text without the marks for where the video stands."""
    return _PLACEHOLDERS.sub("", text).strip()


def read_folder(source: FolderSource, key: str) -> Iterator[Item]:
    """Rows of a person's own file, as they are."""
    for item in read_rows(source.questions, f"{key}.questions", source.columns):
        if isinstance(item, RowError):
            yield item
            continue
        number, row = item
        # Says nothing here: where a question comes from is the reader's word.
        yield number, {name: value for name, value in row.items() if name != "origin"}


def read_sharegpt(source: ShareGPTSource, key: str) -> Iterator[Item]:
    """ShareGPTVideo / LLaVA-Hound: every human turn with an answer behind it is a question.

    A row with several questions numbers its id: ``ID-1``, ``ID-2`` …
    """
    for item in read_rows(source.questions, f"{key}.questions"):
        if isinstance(item, RowError):
            yield item
            continue
        number, row = item
        try:
            turns = list(question_turns(row.get("conversations"), source.questions, number))
        except RowError as error:
            yield error
            continue
        for count, (question, answer) in enumerate(turns, start=1):
            own = row.get("id")
            if own is not None and len(turns) > 1:
                own = f"{own}-{count}"
            yield number, _row(row.get("video"), question, answer, own)


def question_turns(turns: Any, file: str, number: int) -> Iterator[tuple[str, str]]:
    """(question, answer) pairs of a conversation.

    Raises:
        RowError: it is no list of turns that ask and answer in turn.
    """

    def wrong(reason: str) -> RowError:
        return RowError(file, number, "conversations", reason, "bad_conversation")

    if turns is None:
        raise RowError(file, number, "conversations", "is missing", "missing_question")
    if not isinstance(turns, list) or not turns:
        raise wrong('must be a list of turns such as {"from": "human", "value": …}')
    spoken = [_turn(turn, wrong) for turn in turns]
    if spoken[0][0] == "system":
        spoken = spoken[1:]
    if not spoken or len(spoken) % 2:
        raise wrong("must end with an answer to the last question")
    for (asks, question), (answers, answer) in zip(spoken[::2], spoken[1::2], strict=True):
        if asks not in ASKS or answers not in ANSWERS:
            raise wrong(f"must be questions and answers in turn, not '{asks}' and '{answers}'")
        yield question, answer


def _turn(turn: Any, wrong) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise wrong(f"a turn must be an object with 'from' and 'value', not {type(turn).__name__}")
    who, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if not isinstance(who, str) or not isinstance(text, str):
        raise wrong("a turn must have 'from' and 'value', both texts")
    return who, plain_text(text)


def read_activitynet(source: ActivityNetQASource, key: str) -> Iterator[Item]:
    """ActivityNet-QA: questions and answers joined by ``question_id``."""
    answers: dict[str, tuple[int, Any, Any]] = {}
    for item in read_rows(source.answers, f"{key}.answers"):
        if isinstance(item, RowError):
            yield item
            continue
        number, row = item
        name = row.get("question_id")
        if not isinstance(name, str) or row.get("answer") is None:
            field = "question_id" if not isinstance(name, str) else "answer"
            yield RowError(source.answers, number, field, "is missing", "missing_answer")
        elif name in answers:
            reason = f"{name!r} already stands in row {answers[name][0]}"
            yield RowError(source.answers, number, "question_id", reason, "duplicate_id")
        else:
            answers[name] = number, row["answer"], row.get("type")
    for item in read_rows(source.questions, f"{key}.questions"):
        if isinstance(item, RowError):
            yield item
            continue
        number, row = item
        name = row.get("question_id")
        answer = answers.pop(name, None) if isinstance(name, str) else None
        if not isinstance(name, str):
            yield RowError(source.questions, number, "question_id", "is missing", "missing_id")
        elif answer is None:
            reason = f"{name!r} has no answer of its own in {source.answers}"
            yield RowError(source.questions, number, "question_id", reason, "missing_answer")
        else:
            yield number, _row(row.get("video_name"), row.get("question"), answer[1], name, answer[2])
    for name, (number, *_) in answers.items():
        reason = f"{name!r} is no question of {source.questions}"
        yield RowError(source.answers, number, "question_id", reason, "unmatched_answer")


def read_video_chatgpt(source: VideoChatGPTSource, key: str) -> Iterator[Item]:
    """Video-ChatGPT: one question a row (``Q``/``A`` or ``question``/``answer``), or two with the same answer
    (``Q1``, ``Q2``, as its consistency test has them)."""
    for item in read_rows(source.questions, f"{key}.questions"):
        if isinstance(item, RowError):
            yield item
            continue
        number, row = item
        fields = [name for name in ("Q", "question", "Q1", "Q2") if row.get(name) is not None]
        if not fields:
            yield RowError(
                source.questions, number, "Q", "is missing ('Q', 'question', or 'Q1' and 'Q2')", "missing_question"
            )
            continue
        answer = row.get("A", row.get("answer"))
        if answer is None:
            yield RowError(source.questions, number, "A", "is missing ('A' or 'answer')", "missing_answer")
            continue
        for name in fields:
            own = row.get("id", row.get("question_id"))
            if own is not None and len(fields) > 1:
                own = f"{own}-{name}"
            yield number, _row(row.get("video_name", row.get("video")), row[name], answer, own)


def _row(video: Any, question: Any, answer: Any, own: Any = None, kind: Any = None) -> dict[str, Any]:
    row = {"video": video, "question": question, "answer": answer, "id": own, "question_type": kind}
    return {name: value for name, value in row.items() if value is not None}
