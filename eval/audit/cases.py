"""What a judge is audited on: questions about videos with an answer that is right and one that is wrong.

A set of one's own is a JSONL file, one question a line::

    {"id": "q7", "video": "clips/kitchen.mp4", "question": "what is she cutting ?", "answers": ["an onion"],
     "right": ["an onion", "onions"], "wrong": ["a tomato"], "question_type": "object",
     "responses": [{"model": "qwen-7b", "response": "a red onion", "right": true}]}

``id`` and ``question`` are needed. ``video`` is a file or a folder of frames, sought from the JSONL's own folder; a
judge that reads text only needs none. ``answers`` are the references that the judge may read. ``right`` and ``wrong``
(a text or a list) are the truth: by default ``right`` is ``answers``, and ``wrong`` is drawn as it is for a benchmark.
``responses`` (answers of known models, true or not) are needed for self-preference alone. ``video_id`` (by default
``video``), ``question_type`` and ``caption`` may be given.

Of a dataset's ``benchmark``, the right answer of a question is its first reference. The wrong one is a reference of
another question of its type about another video, of the same wording if there is one, that says something else: its
words are neither among any reference's words nor the other way round.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError, RowError
from dataset_builder.stages import fingerprint
from dataset_builder.text import normalise, words

if TYPE_CHECKING:
    from eval.runner import BenchmarkItem

_TRIES = 64  # candidates for a wrong answer that are drawn before all are gone through


@dataclass(frozen=True)
class Known:
    """An answer that a known model gave: ``right`` is the truth."""

    model: str
    text: str
    right: bool


@dataclass(frozen=True)
class Case:
    """One question with its truth.

    Attributes:
        case_id: unique in the set.
        video_id: the video it is about; intervals cluster by it.
        question: text.
        answers: references that the judge may read; may be empty.
        right: answers that are right.
        wrong: answers that are wrong.
        question_type: kind of question, or "".
        video: path, content or frames; None without one.
        caption: what is known of the video in words, for judges that read it.
        other_id: another video, for which the right answers are wrong as far as is known; None if there is none.
        other: that video.
        responses: answers of known models.
    """

    case_id: str
    video_id: str
    question: str
    answers: tuple[str, ...]
    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    question_type: str = ""
    video: Any = field(default=None, repr=False)
    caption: str | None = None
    other_id: str | None = None
    other: Any = field(default=None, repr=False)
    responses: tuple[Known, ...] = ()


def set_fingerprint(cases: Sequence[Case]) -> str:
    """16 hex digits over questions, truth, videos shown and known models' answers, whatever the order of the cases."""
    rows = [
        [c.case_id, c.video_id, c.question, c.answers, c.right, c.wrong, c.caption, c.other_id]
        + [[known.model, known.text, known.right] for known in c.responses]
        for c in cases
    ]
    return fingerprint(sorted(rows, key=lambda row: row[0]))


def says_otherwise(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer surely says something else than each of others: neither holds all words of the other."""
    mine = set(words(text))
    others = [set(words(answer)) for answer in answers]
    return bool(mine) and all(other and not mine <= other and not other <= mine for other in others)


def draw_wrong(cases: Sequence[Case], seed: int = 0) -> list[Case]:
    """The cases with a wrong answer where one was missing, and another video to show, both drawn from other cases.

    A case for which nothing can be drawn stays without.

    Args:
        cases: in any order; what is drawn for one depends on the seed, its id and which cases there are.
        seed: of the draw.
    """
    by_words, by_type = defaultdict(list), defaultdict(list)
    for case in sorted(cases, key=lambda case: case.case_id):
        by_words[case.question_type, normalise(case.question)].append(case)
        by_type[case.question_type].append(case)
    done = []
    for case in cases:
        rng = random.Random(f"audit-{seed}-{case.case_id}")
        pools = (by_words[case.question_type, normalise(case.question)], by_type[case.question_type])
        donor = _draw(rng, case, pools)
        if donor is None and case.wrong:  # for the other video alone, any other will do that is not known to fit
            donor = _draw(rng, case, (list(cases),))
        if donor is not None:
            wrong = case.wrong or (donor.right[0],)
            case = replace(case, wrong=wrong, other_id=donor.video_id, other=donor.video)
        done.append(case)
    return done


def _draw(rng: random.Random, case: Case, pools: Sequence[list[Case]]) -> Case | None:
    for pool in pools:
        for candidates in (rng.sample(pool, min(_TRIES, len(pool))), pool if len(pool) > _TRIES else ()):
            for other in candidates:
                if other.video_id != case.video_id and says_otherwise(other.right[0], (*case.right, *case.answers)):
                    return other
    return None


def draw_cases(cases: Sequence[Case], limit: int | None, seed: int = 0) -> list[Case]:
    """Whole videos at random until there are ``limit`` cases (all with None), ordered by video and id."""
    videos = sorted({case.video_id for case in cases})
    random.Random(f"audit-videos-{seed}").shuffle(videos)
    by_video = defaultdict(list)
    for case in cases:
        by_video[case.video_id].append(case)
    taken: list[Case] = []
    for video in videos:
        if limit is not None and len(taken) >= limit:
            break
        taken += by_video[video]
    return sorted(taken, key=lambda case: (case.video_id, case.case_id))


def cases_of_benchmark(
    items: Sequence[BenchmarkItem], seed: int = 0, responses: Mapping[str, Sequence[tuple[str, str]]] | None = None
) -> list[Case]:
    """Cases out of a ``benchmark`` config; questions without references, or without a wrong answer, are left out.

    Args:
        items: of `eval.runner.load_benchmark`.
        seed: of the wrong answers.
        responses: (model, text) by question id. One is right if it equals a reference after normalisation, wrong if it
            surely says something else than every reference; what is neither is left out.

    Raises:
        KitError: no question can be used.
    """
    cases = [
        Case(
            case_id=item.question_id,
            video_id=item.video_id,
            question=item.question,
            answers=item.answers,
            right=item.answers[:1],
            question_type=item.question_type,
            video=item.video,
            caption=item.caption,
            responses=_known((responses or {}).get(item.question_id, ()), item.answers),
        )
        for item in items
        if item.answers and words(item.answers[0])
    ]
    cases = [case for case in draw_wrong(cases, seed) if case.wrong]
    if not cases:
        raise KitError(
            "audit: no question has a reference and, in another question of its type, one that says something else; "
            "give a set of your own (--set)"
        )
    return cases


def _known(responses: Sequence[tuple[str, str]], answers: Sequence[str]) -> tuple[Known, ...]:
    found = {}
    for model, text in responses:
        right = any(normalise(text) == normalise(answer) for answer in answers)
        if right or says_otherwise(text, answers):
            found[model, text] = Known(model, text, right)
    return tuple(found[key] for key in sorted(found))


def read_responses(dataset: str | Path, split: str) -> dict[str, list[tuple[str, str]]]:
    """(model, text) of a dataset's ``responses``, by question id; refusals and empty answers are left out.

    Raises:
        KitError: the dataset has no such config or split.
    """
    from dataset_builder.loading import dataset_folder, split_files, stream_batches

    files = split_files(dataset_folder(dataset, f"responses/{split}-*.parquet"), "responses").get(split)
    if not files:
        raise KitError(f"{dataset}: its 'responses' config has no split '{split}'")
    found = defaultdict(list)
    for batch in stream_batches(files, ["question_id", "model", "response", "flags"]):
        for row in batch.to_pylist():
            if not {"empty", "refusal"} & set(row["flags"] or ()):
                found[row["question_id"]].append((row["model"], row["response"]))
    return dict(found)


def read_set(path: str | Path, seed: int = 0) -> list[Case]:
    """Read a set of one's own; see the module's description for the fields.

    Raises:
        KitError: the file is missing, a row is wrong (with its line and field), or a row's wrong answer is missing and
            none can be drawn.
    """
    path, cases, videos = Path(path), [], {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KitError(f"{path}: cannot be read as text ({getattr(error, 'strerror', None) or error})") from None
    numbers = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise RowError(path, number, None, f"not valid JSON ({error.msg})") from None
        case = _case(path, number, content)
        if case.case_id in numbers:
            raise RowError(path, number, "id", f"{case.case_id!r} stands in line {numbers[case.case_id]} too")
        if videos.setdefault(case.video_id, case.video) != case.video:
            raise RowError(path, number, "video_id", f"{case.video_id!r} is another video in an earlier line")
        numbers[case.case_id] = number
        cases.append(case)
    if not cases:
        raise KitError(f"{path}: holds no question")
    cases = draw_wrong(cases, seed)
    for case in cases:
        if not case.wrong:
            reason = "is missing, and no other question of its type has an answer that says something else"
            raise RowError(path, numbers[case.case_id], "wrong", reason)
    return cases


def _case(path: Path, number: int, row: Any) -> Case:
    def fail(field: str | None, reason: str) -> RowError:
        return RowError(path, number, field, reason)

    def text(name: str, needed: bool = False) -> str | None:
        value = row.get(name)
        if value is None and not needed:
            return None
        if not isinstance(value, str) or not value.strip():
            raise fail(name, "is missing or not text")
        return value

    def texts(name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        value = row.get(name)
        value = list(default) if value is None else [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(entry, str) and words(entry) for entry in value):
            raise fail(name, "must be a text or a list of texts, none of them empty")
        return tuple(dict.fromkeys(value))

    if not isinstance(row, dict):
        raise fail(None, "is not a JSON object")
    answers = texts("answers", texts("answer"))
    right, wrong = texts("right", answers), texts("wrong")
    if not right:
        raise fail("right", "is missing: give right answers, or references as 'answers'")
    meant = {normalise(answer) for answer in (*right, *answers)}
    if twice := [answer for answer in wrong if normalise(answer) in meant]:
        raise fail("wrong", f"{twice[0]!r} is among the right answers or references too")
    video = text("video")
    if video is not None and not (path.parent / video).exists():
        raise fail("video", f"there is no {path.parent / video}")
    identity, responses = row.get("id"), row.get("responses") or []
    if not isinstance(responses, list):
        raise fail("responses", "must be a list")
    if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity):
        raise fail("id", "is missing or neither text nor a whole number")
    return Case(
        case_id=str(identity),
        video_id=text("video_id") or video or str(identity),
        question=text("question", needed=True),
        answers=answers,
        right=right,
        wrong=wrong,
        question_type=text("question_type") or "",
        video=None if video is None else str(path.parent / video),
        caption=text("caption"),
        responses=tuple(_response(entry, fail) for entry in responses),
    )


def _response(entry: Any, fail: Any) -> Known:
    if not isinstance(entry, dict):
        raise fail("responses", 'each must be an object {"model": …, "response": …, "right": true or false}')
    for name, kind in (("model", str), ("response", str), ("right", bool)):
        if not isinstance(entry.get(name), kind) or entry[name] == "":
            raise fail("responses", f"'{name}' is missing or not {'text' if kind is str else 'true or false'}")
    return Known(entry["model"], entry["response"], entry["right"])
