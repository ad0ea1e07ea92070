"""The rows behind a choice on validation give the figures that were chosen by."""

from __future__ import annotations

import json

from recipes.validation import ValidationRows, accuracy_at, preference_accuracy_at


def test_rows_give_the_figures_back(tmp_path):
    rows = ValidationRows()
    for alpha, verdicts in ((0.0, [1, 0, None]), (0.25, [1, 1, 0])):
        said = [
            {"question_id": f"q{n}", "video_id": f"v{n // 2}", "response": f"é{alpha}", "correct": verdict}
            for n, verdict in enumerate(verdicts)
        ]
        rows.add_answers(alpha, said)
    rows.add_margins(0.25, ["q0", "q1", "q1", "q9"], [1e-12, 0.0, -0.123456789, float("nan")])
    rows.save(tmp_path / "further" / "validation.json")
    text = (tmp_path / "further" / "validation.json").read_text()
    content = json.loads(text)
    assert accuracy_at(content, 0.0) == 1 / 2 and accuracy_at(content, 0.25) == 2 / 3, "no verdict is left out"
    assert accuracy_at(content, 0.5) is None and accuracy_at({}, 0.0) is None
    assert preference_accuracy_at(content, 0.25) == 1 / 4, "a tie and what is no number rank nothing right"
    assert preference_accuracy_at(content, 0.0) is None and preference_accuracy_at({}, 0.0) is None
    assert content["pairs"][2] == {"question_id": "q1", "margin": {"0.25": -0.1234568}} and "NaN" not in text
    assert content["answers"][0] == {
        **{"question_id": "q0", "video_id": "v0"},
        "by_alpha": {"0.0": {"response": "é0.0", "correct": 1}, "0.25": {"response": "é0.25", "correct": 1}},
    }
