"""How stable a selection is: two selections from the same answers, compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataset_builder.selection.balance import correlation, ranks
from dataset_builder.selection.scored import read_scored
from dataset_builder.table import database


def compare_selections(
    responses: Path,
    before: Path,
    after: Path,
    weights_before: dict[str, float] | None,
    weights_after: dict[str, float] | None,
) -> dict:
    """Compare two selections of the same stored answers.

    Args:
        responses: ``responses.parquet``.
        before, after: ``pairs.parquet`` of both selections.
        weights_before, weights_after: of the judges, by name.

    Returns:
        ``{questions, kendall_tau_b, spearman, pairs_before, pairs_after, pairs_common, pairs_changed}``. The rank
        agreement is the mean over the questions where both weightings can compare two or more answers and neither
        ties them all (``questions`` counts them; None without any). ``pairs_changed`` is the share of all different
        pairs that only one selection has, 0 to 1.
    """
    taus, rhos, count = 0.0, 0.0, 0
    for scored in read_scored(responses):
        fit = scored.candidates()
        sides = []
        for weights in (weights_before, weights_after):
            sides.append(scored.aggregate(weights, scored.common(weights)))
        usable = fit & ~np.isnan(sides[0]) & ~np.isnan(sides[1])
        for index in range(len(scored.questions)):
            rows = slice(scored.starts[index], scored.starts[index + 1])
            left, right = (side[rows][usable[rows]] for side in sides)
            tau = kendall_tau_b(left, right)
            if tau is not None:
                taus, count = taus + tau, count + 1
                rhos += correlation(ranks(left), ranks(right))
    return {
        "questions": count,
        "kendall_tau_b": round(taus / count, 6) if count else None,
        "spearman": round(rhos / count, 6) if count else None,
        **_changed(before, after),
    }


def kendall_tau_b(left: np.ndarray, right: np.ndarray) -> float | None:
    """Kendall's tau-b of two lists of scores, -1 to 1; None when one of them is all ties."""
    if len(left) < 2:
        return None
    one, two = np.triu_indices(len(left), 1)
    x, y = np.sign(left[one] - left[two]), np.sign(right[one] - right[two])
    spread = np.count_nonzero(x) * np.count_nonzero(y)
    return float((x * y).sum() / np.sqrt(spread)) if spread else None


def _changed(before: Path, after: Path) -> dict[str, int | float | None]:
    key = "question_id, response_id_chosen, response_id_rejected"
    with database(after.parent) as connection:

        def count(query: str, *files: Path) -> int:
            return connection.execute(f"SELECT count(*) FROM ({query})", [str(file) for file in files]).fetchone()[0]

        one = f"SELECT {key} FROM read_parquet(?)"
        first, second = count(one, before), count(one, after)
        common = count(f"{one} INTERSECT {one}", before, after)
    union = first + second - common
    return {
        "pairs_before": first,
        "pairs_after": second,
        "pairs_common": common,
        "pairs_changed": round(1 - common / union, 6) if union else None,
    }
