"""Which rows of saved results have a gold label, and what it says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataset_builder.errors import KitError
from eval.gold.rows import GoldLabel, latest, response_hash

if TYPE_CHECKING:
    from eval.results import Results

_VALUES = {"correct": 1.0, "incorrect": 0.0}


@dataclass(frozen=True)
class Matched:
    """Gold labels beside the rows they are about.

    Attributes:
        values: [rows] 1.0, 0.0 (0.5 for a tie of two answers), or None.
        labelled: rows with a value.
        undecided: rows that were labelled and have none: annotators unsure, or as many for as against.
        other_response: labels left out because the results hold another answer to the question by now.
        unknown: labels left out because the results hold no such question about this video.
    """

    values: list[float | None]
    labelled: int
    undecided: int
    other_response: int
    unknown: int


def gold_for(results: Results, labels: Iterable[GoldLabel]) -> list[float | None]:
    """Gold verdicts aligned with ``results.rows``: see :func:`match_gold`, which also counts what was left out."""
    return match_gold(results, labels).values


def match_gold(results: Results, labels: Iterable[GoldLabel]) -> Matched:
    """Match verdicts with rows by question and answer.

    The label that more than half of an answer's annotators gave is the gold one: 1.0 for ``correct``, 0.0 for
    ``incorrect``, None for ``unsure`` and where no label has a majority.

    Raises:
        KitError: if there are labels and not one is about an answer in these results.
    """
    rows = [(row, (_hash(row),)) for row in results.rows]
    verdicts = [label for label in labels if not label.is_pair]
    return _match(results.name, rows, verdicts, lambda label: _VALUES.get(label.label))


def pair_gold_for(a: Results, b: Results, labels: Iterable[GoldLabel]) -> list[float | None]:
    """Gold choices aligned with ``a.rows``: see :func:`match_pairs`."""
    return match_pairs(a, b, labels).values


def match_pairs(a: Results, b: Results, labels: Iterable[GoldLabel]) -> Matched:
    """Match choices with the rows of ``a``: 1.0 where its answer is better than that of ``b``, 0.0 worse, 0.5 a tie.

    Majority as in :func:`match_gold`; which answer stood left does not matter.

    Raises:
        KitError: if there are labels and not one is about answers in these results.
    """
    others = {row["question_id"]: row for row in b.rows}
    rows = [(row, (_hash(row), _hash(others.get(row["question_id"])))) for row in a.rows]
    mine = {row["question_id"]: hashes[0] for row, hashes in rows}

    def value(label: GoldLabel) -> float | None:
        if label.label in ("tie", "unsure"):
            return 0.5 if label.label == "tie" else None
        better = label.responses["AB".index(label.label)]
        return 1.0 if better == mine[label.question_id] else 0.0

    return _match(f"{a.name} and {b.name}", rows, [label for label in labels if label.is_pair], value)


def _match(name, rows, labels, value) -> Matched:
    labels = latest(labels)
    known = {str(row["question_id"]): str(row["video_id"]) for row, _ in rows}
    by_item: dict[tuple, list[GoldLabel]] = defaultdict(list)
    unknown = 0
    for label in labels:
        if known.get(label.question_id) == label.video_id:
            by_item[label.item].append(label)
        else:
            unknown += 1
    values, used, undecided = [], 0, 0
    for row, hashes in rows:
        found = by_item.get((str(row["question_id"]), *sorted(hashes)), []) if None not in hashes else []
        values.append(_majority([value(label) for label in found]))
        used += len(found)
        undecided += bool(found) and values[-1] is None
    if labels and not used:
        raise KitError(
            f"none of the {len(labels)} gold labels is about an answer in the results '{name}': "
            "they belong to other results, or the answers have changed since"
        )
    labelled = sum(v is not None for v in values)
    return Matched(values, labelled, undecided, len(labels) - unknown - used, unknown)


def _majority(votes: list[float | None]) -> float | None:
    if not votes:
        return None
    vote, count = Counter(votes).most_common(1)[0]
    return vote if 2 * count > len(votes) else None


def _hash(row: dict | None) -> str | None:
    return response_hash(row["response"]) if row and isinstance(row["response"], str) else None
