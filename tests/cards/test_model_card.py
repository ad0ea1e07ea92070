"""The model card: every number comes from an artefact, and what was not measured says so."""

from __future__ import annotations

from cards.model_card import render_model_card
from cards.run_folder import Run
from tests.cards.tracing import trace

WORDING = (r"95 % interval",)


def render(folder):
    return render_model_card(Run(folder / "run", folder / "mmaip-v"))


def test_the_harness_names_a_number_that_no_artefact_gives(own_run):
    def planted(folder):
        text = render(folder).replace("It answers", "Of 17 models it answers").replace("| one run", "| 99 runs")
        return text.replace("\n## Limits", "\nTrained in 3.5 hours.\n\n## Limits")

    before = {path: path.read_bytes() for path in own_run.parent.rglob("*") if path.is_file()}
    found = trace(planted, own_run.parent, patterns=("run/arms.json",), wording=WORDING, salts=1)
    assert {"17", "99", "3.5"} <= {number.text for number in found.untraced}
    assert found.of("Of 17 models") == [] and found.renders < 40
    assert before == {path: path.read_bytes() for path in own_run.parent.rglob("*") if path.is_file()}


def test_a_number_is_laid_to_the_field_that_moves_it(own_run):
    found = trace(render, own_run.parent, patterns=("run/arms.json",), wording=WORDING, exact=True, salts=1)
    shown = {number.context: found.sources.get(place) for place, number in enumerate(found.numbers)}
    assert any(
        "model-index" in words and of == ["run/arms.json: arms.iter_w2s.accuracy"] for words, of in shown.items()
    )
    assert any("| 1 |" in words and of is None for words, of in shown.items())  # rounds stand in files of their own
