"""Readers of ready-made preference rows: a question, what is preferred and what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dataset_builder.errors import RowError
from dataset_builder.settings import PreferenceSource
from dataset_builder.sources.files import FILE_ENDINGS, Item, read_rows
from dataset_builder.sources.hub import stream_dataset
from dataset_builder.sources.readers import ANSWERS, ASKS, plain_text
from dataset_builder.sources.rows import PAIR_FIELDS

Row = dict[str, Any]
Wrong = Callable[[str, str, str], RowError]
# Fields that every shape may have besides its own.
_COMMON = ("answer", "answers", "license", "source", "split", "question_type", *PAIR_FIELDS[2:])
_KINDS = {"question": "missing_question", "chosen": "missing_chosen", "rejected": "missing_rejected"}


def read_preferences(source: PreferenceSource, key: str) -> Iterator[Item]:
    """Rows with ``video``, ``question``, ``chosen`` and ``rejected``, whatever their shape.

    Raises:
        KitError: the file or dataset cannot be read.
    """
    path = Path(source.rows)
    if path.is_dir() or path.suffix.lower() not in FILE_ENDINGS:  # a Hub id may hold a point
        items = stream_dataset(source.rows, source.config, source.split, source.revision, None, f"{key}.rows")
    else:
        items = read_rows(source.rows, f"{key}.rows")
    for item in items:
        if isinstance(item, RowError):
            yield item
            continue
        number, row = item
        try:
            row = {name: value for name, value in row.items() if value is not None}
            shape = source.shape if source.shape != "auto" else detect_shape(row, source.rows, number)
            yield number, _SHAPES[shape](row, _wrong(source.rows, number))
        except RowError as error:
            yield error


def detect_shape(row: Row, file: str, number: int) -> str:
    """``ms_swift``, ``llama_factory``, ``hound`` or ``trl``, by a row's keys.

    Raises:
        RowError: none of these has such keys.
    """
    if "rejected_response" in row or ("messages" in row and "chosen" not in row):
        return "ms_swift"
    if "conversations" in row:
        return "llama_factory" if "videos" in row else "hound"
    if isinstance(row.get("prompt"), str) and isinstance(row.get("video"), str) and isinstance(row.get("chosen"), str):
        return "hound"
    if "chosen" in row or "rejected" in row:
        return "trl"
    raise RowError(
        file,
        number,
        None,
        "is no preference row of a known shape: it needs 'chosen' and 'rejected' with 'prompt' or 'conversations', or "
        "'messages' and 'rejected_response'",
        "unknown_shape",
    )


def _wrong(file: str, number: int) -> Wrong:
    return lambda field, reason, kind: RowError(file, number, field, reason, kind)


def _hound(row: Row, wrong: Wrong) -> Row:
    """LLaVA-Hound DPO: flat, or with ``conversations`` and answers as turns."""
    if "conversations" in row:
        question = _last_question(row["conversations"], "conversations", wrong)
    else:
        question = _text(row, "prompt", "question", wrong)
    return _pair(row, row.get("video"), question, _said(row, "chosen", wrong), _said(row, "rejected", wrong))


def _ms_swift(row: Row, wrong: Wrong) -> Row:
    """ms-swift: ``messages`` end with the preferred answer."""
    if "messages" not in row:
        raise wrong("messages", "is missing", "missing_question")
    turns = _turns(row["messages"], "messages", wrong)
    if len(turns) < 2 or turns[-1][0] not in ANSWERS:
        raise wrong("messages", "must end with the preferred answer of the assistant", "missing_chosen")
    question = _single_question(turns[:-1], "messages", wrong)
    rejected = row.get("rejected_response")
    if isinstance(rejected, list):
        rejected = _last_answer(rejected, "rejected_response", wrong)
    elif rejected is None:
        raise wrong("rejected_response", "is missing", "missing_rejected")
    elif not isinstance(rejected, str):
        raise wrong("rejected_response", f"must be text, not {type(rejected).__name__}", "missing_rejected")
    return _pair(row, _only_video(row, wrong), question, turns[-1][1], rejected)


def _llama_factory(row: Row, wrong: Wrong) -> Row:
    """LLaMA-Factory: ``conversations`` end with the question."""
    if "conversations" not in row:
        raise wrong("conversations", "is missing", "missing_question")
    question = _last_question(row["conversations"], "conversations", wrong)
    chosen, rejected = _said(row, "chosen", wrong), _said(row, "rejected", wrong)
    return _pair(row, _only_video(row, wrong), question, chosen, rejected)


def _trl(row: Row, wrong: Wrong) -> Row:
    """TRL: texts or conversations, with the prompt of its own or in front of both answers; the kit's `preferences`."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if value is None:
            raise wrong(name, "is missing", _KINDS[name])
    prompt = row.get("prompt")
    if prompt is None and isinstance(row.get("question"), str):
        question = plain_text(row["question"])
    elif isinstance(prompt, str):
        question = plain_text(prompt)
    elif prompt is not None:
        question = _last_question(prompt, "prompt", wrong)
    else:
        question, chosen, rejected = _split_prompt(chosen, rejected, wrong)
    if isinstance(chosen, list):
        chosen = _last_answer(chosen, "chosen", wrong)
    if isinstance(rejected, list):
        rejected = _last_answer(rejected, "rejected", wrong)
    return _pair(row, _only_video(row, wrong, "video"), question, chosen, rejected)


def _split_prompt(chosen: Any, rejected: Any, wrong: Wrong) -> tuple[str, list, list]:
    """The turns that both conversations begin with are the prompt."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise wrong("prompt", "is missing", "missing_question")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        raise wrong(
            "prompt", "is missing, and 'chosen' and 'rejected' do not begin with the same question", "missing_question"
        )
    return _last_question(chosen[:shared], "chosen", wrong), chosen[shared:], rejected[shared:]


_SHAPES: dict[str, Callable[[Row, Wrong], Row]] = {
    "hound": _hound,
    "ms_swift": _ms_swift,
    "llama_factory": _llama_factory,
    "trl": _trl,
}


def _pair(row: Row, video: Any, question: str, chosen: Any, rejected: Any) -> Row:
    """The row under the kit's names; what is still missing or wrong is said when its fields are checked."""
    found = {name: row[name] for name in _COMMON if name in row}
    for name in ("score_chosen", "score_rejected"):  # TRL's name for the same
        short = {"score_chosen": "chosen_score", "score_rejected": "rejected_score"}[name]
        if name not in found and isinstance(row.get(short), (int, float)):
            found[name] = row[short]
    own = row.get("question_id", row.get("id"))
    found.update({"video": video, "question": question, "chosen": chosen, "rejected": rejected, "id": own})
    return {name: value for name, value in found.items() if value is not None}


def _text(row: Row, name: str, kind: str, wrong: Wrong) -> str:
    if name not in row:
        raise wrong(name, "is missing", _KINDS[kind])
    if not isinstance(row[name], str):
        raise wrong(name, f"must be text, not {type(row[name]).__name__}", _KINDS[kind])
    return plain_text(row[name])


def _said(row: Row, name: str, wrong: Wrong) -> str:
    """An answer: a text, a turn, or a list that ends with one."""
    value = row.get(name)
    if isinstance(value, list):
        return _last_answer(value, name, wrong)
    if isinstance(value, dict):
        return _turn(value, name, wrong)[1]
    return _text(row, name, name, wrong)


def _only_video(row: Row, wrong: Wrong, name: str = "videos") -> Any:
    videos = row.get(name, row.get("videos", row.get("video")))
    if videos is None:
        raise wrong(name, "is missing", "missing_video")
    if not isinstance(videos, list):
        return videos
    if len(videos) != 1:
        raise wrong("videos", f"must hold one video, not {len(videos)}", "missing_video")
    return videos[0]


def _turns(value: Any, name: str, wrong: Wrong) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise wrong(name, "must be a list of turns", "bad_conversation")
    return [_turn(turn, name, wrong) for turn in value]


def _turn(turn: Any, name: str, wrong: Wrong) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise wrong(name, f"a turn must be an object, not {type(turn).__name__}", "bad_conversation")
    who, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if isinstance(text, list):  # content parts: the texts among them
        parts = [part.get("text") for part in text if isinstance(part, dict) and part.get("type", "text") == "text"]
        text = "\n".join(part for part in parts if isinstance(part, str))
    if not isinstance(who, str) or not isinstance(text, str):
        raise wrong(name, "a turn must have 'role' and 'content' (or 'from' and 'value')", "bad_conversation")
    return who, plain_text(text)


def _last_question(value: Any, name: str, wrong: Wrong) -> str:
    turns = _turns(value, name, wrong)
    while turns and turns[-1][0] in ANSWERS:  # mirrors of LLaVA-Hound repeat the preferred answer here
        turns = turns[:-1]
    return _single_question(turns, name, wrong)


def _single_question(turns: list[tuple[str, str]], name: str, wrong: Wrong) -> str:
    turns = [turn for turn in turns if turn[0] != "system"]
    if len(turns) != 1 or turns[0][0] not in ASKS:
        raise wrong(name, "must hold one question: conversations of several turns are not read", "bad_conversation")
    return turns[0][1]


def _last_answer(value: Any, name: str, wrong: Wrong) -> str:
    turns = _turns(value, name, wrong)
    if turns[-1][0] not in ANSWERS:
        raise wrong(name, "must end with an answer of the assistant", "bad_conversation")
    return turns[-1][1]
