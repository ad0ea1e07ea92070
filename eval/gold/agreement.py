"""How far annotators agree on what they have labelled in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from eval.gold.rows import GoldLabel, latest

if TYPE_CHECKING:
    from eval.stats import Agreement


@dataclass(frozen=True)
class Ratings:
    """Labels as a table of annotators by items.

    Attributes:
        annotators: names in alphabetical order.
        videos: [items] video of each item.
        table: [annotators][items] category, or None where the annotator was unsure or has not labelled.
        unsure: [annotators] how many items each was unsure about.
    """

    annotators: tuple[str, ...]
    videos: tuple[str, ...]
    table: tuple[tuple[str | None, ...], ...]
    unsure: tuple[int, ...]


def ratings(labels: Iterable[GoldLabel]) -> Ratings:
    """Labels side by side. ``unsure`` is no category but a missing rating; ties nobody was asked about are left out."""
    labels = [label for label in latest(labels) if label.asked]
    annotators = tuple(sorted({label.annotator for label in labels}))
    videos = {label.item: label.video_id for label in labels}
    given = {(label.annotator, label.item): label for label in labels}
    table = tuple(tuple(_category(given.get((who, item))) for item in videos) for who in annotators)
    unsure = tuple(sum(label.annotator == who and label.label == "unsure" for label in labels) for who in annotators)
    return Ratings(annotators, tuple(videos.values()), table, unsure)


def agreement_table(labels: Iterable[GoldLabel]) -> tuple[list[str], list[list[str]], str]:
    """The table that command and page show.

    Returns:
        Header, one row for each pair of annotators who have labelled items in common (items, share of equal labels,
        Cohen's κ with its interval clustered by video), and a line with Krippendorff's α over all of them.
    """
    from eval.stats import cohen_kappa, krippendorff_alpha

    found = ratings(labels)
    header = ["annotators", "items", "equal", "Cohen's κ", "95 % interval"]
    rows = []
    for (i, one), (j, two) in combinations(enumerate(found.annotators), 2):
        common = [n for n, both in enumerate(zip(found.table[i], found.table[j])) if None not in both]
        if not common:
            continue
        a, b = ([found.table[k][n] for n in common] for k in (i, j))
        equal = sum(x == y for x, y in zip(a, b)) / len(common)
        kappa = cohen_kappa(a, b, [found.videos[n] for n in common])
        rows.append([f"{one}, {two}", str(len(common)), f"{100 * equal:.0f} %", *_shown(kappa)])
    counts = "; ".join(
        f"{who}: {sum(v is not None for v in row) + unsure} labelled, {unsure} unsure"
        for who, row, unsure in zip(found.annotators, found.table, found.unsure)
    )
    if not rows:
        who = f" ({counts})" if counts else ""
        return header, [], f"no two annotators have labelled an answer in common yet{who}"
    alpha = " (".join(_shown(krippendorff_alpha(found.table, "nominal", found.videos))) + ")"
    return header, rows, f"Krippendorff's α over all annotators: {alpha}; {counts}"


def _category(label: GoldLabel | None) -> str | None:
    """A category that depends neither on which answer stood left nor (people are blind to it) on whose answer it is."""
    if label is None or label.label == "unsure":
        return None
    if label.label in ("A", "B"):
        return "first" if label.responses["AB".index(label.label)] == min(label.responses) else "second"
    return label.label


def _shown(found: Agreement) -> list[str]:
    if math.isnan(found.value):
        return ["–", "all labels are equal"]
    value, low, high = (f"{round(x, 2) + 0.0:.2f}" for x in (found.value, found.low, found.high))  # no "-0.00"
    return [value, f"{low} to {high}"]
