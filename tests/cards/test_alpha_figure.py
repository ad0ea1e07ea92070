"""The picture of an alpha search: drawn from what a search saves, also from older curves."""

from __future__ import annotations

import json

from cards.alpha_figure import draw
from recipes.alpha import search_alpha


def test_figure(tmp_path):
    from matplotlib.image import imread

    curve = search_alpha(
        [0.0, 0.25, 0.5, 1.0], lambda alpha: (0.6 + alpha / 10, alpha), lambda alpha: 0.5 + alpha / 20, keep=2
    ).curve
    history = [{"alpha": 1.0, "alpha_curve": curve}, {"alpha": 0.0, "alpha_curve": curve[:2]}]
    first = draw(history, tmp_path / "figures" / "alpha.png")
    assert first is not None and imread(first).shape[0] > 400
    assert draw(history, tmp_path / "alpha.png").read_bytes() == first.read_bytes()
    old = [{"alpha": 0.5, "alpha_curve": [{"alpha": 0.0, "accuracy": 0.4}, {"alpha": 0.5, "accuracy": 0.5}]}]
    assert draw(old, tmp_path / "old.svg").read_text().startswith("<?xml"), (
        "curves without held-out pairs are drawn too"
    )
    assert draw([{"alpha": 0.0, "alpha_curve": [{"alpha": 0.0, "accuracy": 0.4}]}], tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists(), "no choice, no picture"


def test_command_draws_a_run(tmp_path, capsys):
    from cards.__main__ import main

    curve = [
        {"alpha": a, "accuracy": 0.5 + a / 10, "preference_accuracy": 0.6, "preference_margin": 1.0} for a in (0, 1)
    ]
    (tmp_path / "rounds.json").write_text(json.dumps({"rounds": [{"alpha": 1, "alpha_curve": curve}]}))
    picture = tmp_path / "curves.png"
    assert main(["curves", str(tmp_path), str(picture)]) == 0 and picture.read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "rounds.json").write_text(json.dumps({"rounds": [{"alpha": 0, "alpha_curve": curve[:1]}]}))
    assert main(["curves", str(tmp_path), str(picture)]) == 2
    assert "no round had a choice between alphas" in capsys.readouterr().err
    assert main(["curves", str(tmp_path / "none"), str(picture)]) == 2
