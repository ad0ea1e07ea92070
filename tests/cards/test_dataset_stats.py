"""What the dataset card measures, against counting by hand."""

from __future__ import annotations

import itertools

import pytest

from cards import dataset_stats as stats
from tests.cards.conftest import score


def test_coverage_is_the_mean_over_all_draws():
    def answer(model, match):
        scores = [score("reference", "match", match)]
        return {"model": model, "scores": scores, "video_id": model}

    marks = {"q1": [1, 0, 0, 1, 0], "q2": [0, 0, 0, 0, 0], "q3": [0, 1, 0, 0, 0, 0]}
    answers = {
        question: [{**answer("ab"[n % 2], float(mark)), "video_id": question} for n, mark in enumerate(values)]
        for question, values in marks.items()
    }
    found = stats.coverage(answers, "reference")
    assert found["steps"] == [1, 2, 3, 4, 5] and found["questions"] == 3
    for k, point in zip(found["steps"], found["zoo"]):
        shares = []
        for values in marks.values():
            draws = list(itertools.combinations(values, k))
            shares.append(sum(any(drawn) for drawn in draws) / len(draws))
        assert point.mean == pytest.approx(sum(shares) / 3) and point.low <= point.mean <= point.high
    assert [len(curve) for curve in found["members"].values()] == [3, 2]
    assert stats.coverage(answers, None) is None and stats.coverage(answers, "verifier") is None
    many = {"q": [answer("a", 1.0) for _ in range(40)]}
    assert stats.coverage(many, "reference")["steps"] == [1, 2, 4, 8, 16, 40]


def test_lengths_and_judges_that_say_nothing():
    pairs = [
        {"chosen": "a" * c, "rejected": "b" * r, "video_id": v}
        for c, r, v in [(3, 1, 1), (2, 2, 1), (1, 4, 2), (5, 1, 3)]
    ]
    found = stats.length_of_pairs(pairs)
    assert [found[name].mean for name in ("longer", "equal", "shorter")] == [0.5, 0.25, 0.25]
    assert found["longer"].clusters == 3 and stats.length_of_pairs([]) is None
    rows = [
        {"scores": [score("a", "x", 1.0), score("b", "x", v)], "video_id": n, "response": "z" * n}
        for n, v in enumerate((1.0, 1.0, None, 1.0))
    ]
    (agreement,) = stats.judge_agreement(rows)
    assert agreement["answers"] == 3 and agreement["alpha"] is None and agreement["rho"] is None
    assert stats.length_of_judges(rows) == {"a": None, "b": None}
    assert stats.judge_agreement([{"scores": None, "video_id": 1}]) == []
