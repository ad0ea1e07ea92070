"""Do the released rows agree with each other? A figure computed from rows is worth no more than they are."""

from __future__ import annotations

import math

from cards.verify.checks import Checks
from cards.verify.rows import Rows, last_text

_EPS = 1e-8


def check_rows(checks: Checks, rows: Rows) -> None:
    """Check aggregates against single scores, pairs against the answers they are made of, splits against each other."""
    from dataset_builder.judges.base import aggregate, disagreement

    answers = [row for found in rows.by_question.values() for row in found]
    kept = sum(_same(row["score"], aggregate(row["scores"] or [], rows.weights)) for row in answers if row["scores"])
    checks.held("answers whose score is that of their judges", kept, sum(bool(row["scores"]) for row in answers))
    spread = dict(rows.all("SELECT response_id, disagreement FROM responses"))
    kept = sum(_same(spread[row["response_id"]], disagreement(row["scores"] or [])) for row in answers)
    checks.held("answers whose disagreement is that of their judges", kept, len(answers))
    several = rows.one(
        "SELECT count(*) FROM (SELECT 1 FROM questions GROUP BY video_id HAVING count(DISTINCT split) > 1)"
    )
    checks.value("clips in more than one split", 0, several)
    for config in ("responses", *(name for name in ("preferences", "benchmark") if name in rows.configs)):
        told = f"SELECT count(*) FROM {config} c JOIN questions q USING (question_id) WHERE c.question = q.question"
        same = rows.one(f"{told} AND c.video_id = q.video_id AND c.split = q.split")
        checks.held(f"rows of {config} that are of their question", same, rows.one(f"SELECT count(*) FROM {config}"))
    if rows.has_pairs:
        _check_pairs(checks, rows)


def _check_pairs(checks: Checks, rows: Rows) -> None:
    """Texts, models, scores and margins of the pairs."""
    pairs = rows.dicts(f"""
        SELECT question_id, response_id_chosen, response_id_rejected, model_chosen, model_rejected, score_chosen,
               score_rejected, margin, {last_text("chosen")} AS chosen, {last_text("rejected")} AS rejected
        FROM preferences
    """)
    counts = dict.fromkeys(("chosen", "rejected", "model", "score", "margin"), 0)
    scored = 0
    for pair in pairs:
        answers = rows.by_question.get(pair["question_id"], [])
        own = {row["response_id"]: row for row in answers}
        sides = {side: own.get(pair[f"response_id_{side}"]) for side in ("chosen", "rejected")}
        for side, answer in sides.items():
            counts[side] += answer is not None and answer["response"] == pair[side]
        counts["model"] += all(answer and answer["model"] == pair[f"model_{side}"] for side, answer in sides.items())
        if pair["margin"] is None:  # a ready-made pair without scores
            continue
        scored += 1
        values = _common(answers, sides, rows.weights)
        counts["score"] += all(_same(pair[f"score_{side}"], value) for side, value in values.items())
        counts["margin"] += _same(pair["margin"], (pair["score_chosen"] or 0) - (pair["score_rejected"] or 0))
    checks.held("pairs whose chosen text is that of the answer", counts["chosen"], len(pairs))
    checks.held("pairs whose rejected text is that of the answer", counts["rejected"], len(pairs))
    checks.held("pairs whose models are those of the answers", counts["model"], len(pairs))
    checks.held("pairs whose scores are those of the answers", counts["score"], scored)
    checks.held("pairs whose margin is the difference of their scores", counts["margin"], scored)


def _common(answers: list[dict], sides: dict, weights: dict[str, float]) -> dict[str, float | None]:
    """Score of both sides over the judges that scored every answer that was compared, as the selection does."""
    from dataset_builder.selection.pairs import EXCLUDING_FLAGS, common_score, scored_judges

    judges = [scored_judges(row) for row in answers if not EXCLUDING_FLAGS.intersection(row["flags"])]
    common = set.intersection(*(names for names in judges if names)) if any(judges) else set()
    common = {name for name in common if weights.get(name, 1.0) > 0}
    return {side: common_score(row, common, weights) if row and common else None for side, row in sides.items()}


def _same(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=0, abs_tol=_EPS)
