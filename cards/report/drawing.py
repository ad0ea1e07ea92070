"""Which pairs the report shows: drawn by a hash, spread over question types and sources, never picked.

DuckDB ranks the pairs where they lie, within a fixed memory; only those that are drawn become Python rows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cards.run_folder import Run

LONGEST_ANSWER = 4_000  # characters of an answer or question that the page holds
LONGEST_NOTE = 600  # characters of a judge's reason

# A pair's place within its question type and source is its rank by hash; every type and source gives its first, then
# every one its second, and so on.
_DRAW = """
CREATE TEMP TABLE drawn AS
WITH keyed AS (
    SELECT p.filename AS file, p.file_row_number AS row, p.question_id, q.question_type, p.source,
           sha256(concat_ws(' ', p.question_id, p.response_id_chosen, p.response_id_rejected)) AS key
    FROM read_parquet($pairs, filename = true, file_row_number = true) p
    LEFT JOIN read_parquet($questions) q USING (question_id)
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY question_type, source ORDER BY key, file, row) AS place FROM keyed
)
SELECT *, row_number() OVER (ORDER BY place, key, file, row) AS number
FROM ranked ORDER BY place, key, file, row LIMIT $most
"""
_PAIRS = """
SELECT d.key, d.file, d.row, d.question_type, p.question_id, p.video_id, p.source, p.license, p.question, p.answer,
       p.response_id_chosen, p.response_id_rejected, p.model_chosen, p.model_rejected,
       array_to_string([part.text FOR part IN p.chosen[-1].content], '') AS text_chosen,
       array_to_string([part.text FOR part IN p.rejected[-1].content], '') AS text_rejected,
       p.score_chosen, p.score_rejected, p.margin
FROM read_parquet($pairs, filename = true, file_row_number = true) p
JOIN drawn d ON p.filename = d.file AND p.file_row_number = d.row
ORDER BY d.number
"""
_ANSWERS = """
SELECT question_id, response_id, model, response, flags, scores, score FROM read_parquet($responses)
WHERE question_id IN (SELECT question_id FROM drawn)
ORDER BY question_id, score DESC NULLS LAST, model, response_id
"""


@dataclass
class Drawing:
    """Pairs for the page.

    Attributes:
        pairs: in the order in which they were drawn, each with an ``id`` of 12 hex digits, ``question_type``, both
            answers' texts (``text_chosen``, ``text_rejected``) and the ``file`` and ``row`` that hold its video.
        answers: every answer to their questions by question id, best first: rows of ``responses``.
        total: pairs in the dataset.
    """

    pairs: list[dict] = field(default_factory=list)
    answers: dict[str, list[dict]] = field(default_factory=dict)
    total: int = 0


def draw(run: Run, most: int) -> Drawing:
    """Draw pairs of a run's dataset; the same dataset gives the same pairs in the same order.

    Args:
        run: the run.
        most: pairs at most.
    """
    from dataset_builder.table import database

    files = {name: _files(run.dataset / name) for name in ("preferences", "questions", "responses")}
    if not files["preferences"] or not files["questions"]:
        return Drawing()
    with (
        tempfile.TemporaryDirectory(prefix="mmaip-v-report-") as scratch,
        database(Path(scratch)) as sql,
    ):
        sql.execute("SET enable_progress_bar = false")
        given = {"pairs": files["preferences"], "questions": files["questions"]}
        sql.execute(_DRAW, {**given, "most": most})
        pairs = _rows(sql.execute(_PAIRS, {"pairs": files["preferences"]}))
        total = sql.execute("SELECT count(*) FROM read_parquet($pairs)", {"pairs": files["preferences"]}).fetchone()[0]
        answers: dict[str, list[dict]] = {}
        if files["responses"]:
            for row in _rows(sql.execute(_ANSWERS, {"responses": files["responses"]})):
                answers.setdefault(row["question_id"], []).append(row)
    for pair in pairs:
        pair["id"] = pair.pop("key")[:12]
    return Drawing(pairs, answers, total)


def page_data(drawing: Drawing, shelves: dict[str, int], reasons: dict[str, str]) -> dict:
    """What the script of the page reads: pairs and answers as plain JSON values, names spelled once.

    Args:
        drawing: the pairs.
        shelves: number of the embedded clip by video id.
        reasons: why a clip is not embedded, by video id.

    Returns:
        ``criteria`` (``[judge, criterion, low, high]``), ``questions`` with their answers, and ``pairs`` that point to
        a question and to two of its answers by number. A score is ``[criterion, value or null, reason or error]``.
    """
    criteria: dict[tuple, int] = {}
    questions: dict[str, dict] = {}
    places: dict[tuple[str, str], int] = {}
    pairs = []
    for pair in drawing.pairs:
        key = pair["question_id"]
        if key not in questions:
            answers = drawing.answers.get(key, [])
            places |= {(key, row["response_id"]): number for number, row in enumerate(answers)}
            questions[key] = {
                "number": len(questions),
                "id": key,
                "text": cut(pair["question"]),
                "type": pair["question_type"] or "",
                "source": pair["source"] or "",
                "license": pair["license"] or "",
                "reference": cut(pair["answer"]),
                "clip": shelves.get(pair["video_id"]),
                "why": reasons.get(pair["video_id"]),
                "answers": [_answer(row, criteria) for row in answers],
            }
        question = questions[key]
        sides = {}
        for side in ("chosen", "rejected"):
            place = places.get((key, pair[f"response_id_{side}"]))
            if place is None:  # the answer itself is not in the dataset, its text is
                place = places[key, pair[f"response_id_{side}"]] = len(question["answers"])
                row = {"model": pair[f"model_{side}"], "response": pair[f"text_{side}"]}
                question["answers"].append(_answer({**row, "score": pair[f"score_{side}"]}, criteria))
            sides |= {side: place, f"score_{side}": finite(pair[f"score_{side}"])}
        pairs.append({"id": pair["id"], "question": question["number"], **sides, "margin": finite(pair["margin"])})
    return {
        "criteria": [list(criterion) for criterion in criteria],
        "questions": [
            {name: value for name, value in question.items() if name != "number"} for question in questions.values()
        ],
        "pairs": pairs,
    }


def _answer(row: dict, criteria: dict[tuple, int]) -> dict:
    scores = []
    for score in row.get("scores") or []:
        criterion = (score["judge"], score["criterion"], finite(score["low"]), finite(score["high"]))
        number = criteria.setdefault(criterion, len(criteria))
        note = score["rationale"] if score["score"] is not None else score["error"]
        scores.append([number, finite(score["score"]), cut(note, LONGEST_NOTE)])
    return {
        "model": row["model"] or "",
        "text": cut(row["response"]) or "",
        "score": finite(row.get("score")),
        "flags": list(row.get("flags") or []),
        "scores": scores,
    }


def cut(text: str | None, most: int = LONGEST_ANSWER) -> str | None:
    """A text of at most so many characters, which says how many it has lost."""
    if text is None or len(text) <= most:
        return text
    return f"{text[:most]} … ({len(text) - most:,} more characters)"


def finite(value: float | None) -> float | None:
    """A number as JSON can hold it; None for NaN and infinities."""
    return value if value is not None and math.isfinite(value) else None


def _files(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.parquet"))]


def _rows(found) -> list[dict]:
    names: Sequence[str] = [column[0] for column in found.description]
    return [dict(zip(names, row)) for row in found.fetchall()]
