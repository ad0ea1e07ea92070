"""A judge's errors where the truth is known, and what simulated gold labels make of them."""

import random

import pytest

from dataset_builder.errors import KitError
from eval.results import MORE_FIELDS, Results
from eval.truth import error_rates, simulated_debiasing


def judged(missed: float, passed: float, videos: int = 400) -> tuple[Results, dict[str, int]]:
    """Three answers a video, 60 % of them right, judged with these error rates."""
    rng, rows, truth = random.Random(0), [], {}
    for n in range(3 * videos):
        right = rng.random() < 0.6
        wrongly = rng.random() < (missed if right else passed)
        truth[f"q{n}"] = int(right)
        rows.append(
            {
                **{
                    "question_id": f"q{n}",
                    "video_id": f"v{n // 3}",
                    "question_type": "",
                    "question": "?",
                    "answers": [],
                },
                **{"response": "x", "correct": int(right != wrongly), "score": None, "error": None},
                **dict.fromkeys(MORE_FIELDS),
            }
        )
    return Results("m", "m", "", judge={"name": "j"}, rows=rows), truth


def test_error_rates_are_those_that_were_planted():
    results, truth = judged(0.1, 0.4)
    found = error_rates(results, truth)
    assert found["missed"] == pytest.approx(0.1, abs=0.03) and found["false_alarms"] == pytest.approx(0.4, abs=0.05)
    assert found["error"]["mean"] == pytest.approx(0.6 * 0.1 + 0.4 * 0.4, abs=0.03)
    assert found["truth"] == sum(truth.values()) / len(truth)
    assert error_rates(results, {q: 1 for q in truth})["false_alarms"] is None


def test_gold_labels_put_the_estimate_right():
    results, truth = judged(0.05, 0.5)
    said, true = results.accuracy.mean, sum(truth.values()) / len(truth)
    fixed = simulated_debiasing(results, truth, 120)
    assert said - true > 0.1 and fixed["low"] < true < fixed["high"] < said + 0.05
    assert fixed["gold_clusters"] == 120 and fixed == simulated_debiasing(results, truth, 120)
    with pytest.raises(KitError, match="only 400 videos"):
        simulated_debiasing(results, truth, 401)
