"""The model card: every number comes from an artefact, and what was not measured says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cards.model_card import base_facts, render_model_card, training_command
from cards.push.copies import model_card, split_card
from cards.run_folder import Run
from cards.stage_log import write_json
from cards.text import share
from cards.verify.model import WORDING
from tests.cards.measured import measure
from tests.cards.pushing import copy
from tests.cards.tracing import trace

ROOT = Path(__file__).parents[2]


def render(folder: Path) -> str:
    return render_model_card(Run(folder / "run", folder / "mmaip-v"))


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory):
    """A run in which everything was measured, that tests only read."""
    return measure(copy(finished, tmp_path_factory.mktemp("measured") / "place"))


@pytest.fixture
def own(measured, tmp_path):
    """A copy without weights that a test may change."""
    place = tmp_path / "place"
    shutil.copytree(
        measured.parent, place, ignore=shutil.ignore_patterns("*.safetensors", "evaluator", "*.png", "*.svg")
    )
    shutil.copytree(measured / "results", place / "run" / "results", dirs_exist_ok=True)
    return place


def test_the_harness_names_a_number_that_no_artefact_gives(own_run):
    def planted(folder):
        text = render(folder).replace("It answers", "Of 17 models it answers").replace("| one run", "| 99 runs")
        return text.replace("\n## Limits", "\nTrained in 3.5 hours.\n\n## Limits")

    before = {path: path.read_bytes() for path in own_run.parent.rglob("*") if path.is_file()}
    found = trace(planted, own_run.parent, patterns=("run/arms.json",), wording=WORDING, salts=1)
    assert {"17", "99", "3.5"} <= {number.text for number in found.untraced}
    assert found.of("Of 17 models") == [] and found.renders < 60
    assert before == {path: path.read_bytes() for path in own_run.parent.rglob("*") if path.is_file()}


def test_a_number_is_laid_to_the_field_that_moves_it(own_run):
    found = trace(render, own_run.parent, patterns=("run/arms.json",), wording=WORDING, exact=True, salts=1)
    shown = {number.context: found.sources.get(place) for place, number in enumerate(found.numbers)}
    accuracy = ["run/arms.json: arms.iter_w2s.accuracy"]
    assert any("model-index" in words and of == accuracy for words, of in shown.items())
    assert any(words.startswith("| 1 | 15 |") and of is None for words, of in shown.items())  # in a file of its own


@pytest.mark.parametrize("exact", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_number_of_the_card_comes_from_an_artefact(own, exact):
    patterns = ("run/*.json", "run/measurements/*.json", "run/arms/.work/*.json", "run/arms/iter_w2s/*/metrics.json")
    patterns += ("run/arms/iter_w2s/*/extrapolation.json", "run/results/*.json", "mmaip-v/*/train-*.parquet")
    found = trace(render, own, patterns=patterns, wording=WORDING, exact=exact)
    assert not found.untraced, "\n".join(f"line {n.line}: {n.text}: {n.context}" for n in found.untraced)
    assert len(found.numbers) > 250
    for words, field in (
        ("| beta |", "run/arms/.work/job.json: config.beta"),
        ("| this model, shown no video |", "run/measurements/evaluator.json: arms.iter_w2s.blind.mean"),
        ("put right with labels by people", "run/measurements/gold.json: arms.iter_w2s.low"),
        ("has cosine", "run/arms/iter_w2s/round-3/extrapolation.json: realised.added.cosine"),
        ("pairs over", "mmaip-v/preferences/train-00000-of-00001.parquet: []"),
    ):
        sources = {of for n, number in enumerate(found.numbers) if words in number.context for of in found.sources[n]}
        assert sources and (exact or field in sources), (words, sorted(sources)[:9])


def test_the_card_says_what_was_not_measured(own_run):
    card = render_model_card(own_run)
    rows = [line for line in card.splitlines() if line.startswith("| this model")]
    assert rows[0].startswith("| this model | 68.0 % |") and len(rows) == 5
    assert all(row.count("not measured") == 2 for row in rows[1:]), rows
    for said in (
        "Hardware and time: not measured",
        "hidden\ninstructions: not measured",
        "Which judge gave the test verdicts is not recorded",
        "| licence | Apache-2.0, that of the kit that made it |",
        "not calibrated (not measured)",
    ):
        assert said in card, said
    assert "By people" not in card and "### Settings" not in card and "simulated labels" not in card
    for sides in ("accuracy", "validation_accuracy", "distance"):
        table = json.loads((own_run / "arms.json").read_text())
        table["arms"]["base"][sides] = None
        write_json(own_run / "arms.json", table)
    card = render_model_card(own_run)
    assert "| the base | not measured |" in card and "None" not in card and "nan" not in card.lower().split()


def test_the_card_has_all_that_was_measured(measured):
    card = render_model_card(measured)
    data, body = split_card(card)
    judge = json.loads((measured / "results" / "iter_w2s.json").read_text())["judge"]
    evaluator = json.loads((measured / "measurements" / "evaluator.json").read_text())
    curve = json.loads((measured / "arms" / "iter_w2s" / "round-2" / "metrics.json").read_text())["alpha_curve"]
    zero = f"{share(curve[0]['accuracy'])} ({share(curve[0]['preference_accuracy'])})"
    quarter = curve[1]
    for said in (
        judge["fingerprint"],
        evaluator["judge"]["fingerprint"],
        "**self-judged**",
        "## By people",
        "The answers about 24 videos",
        "| loss | `sigmoid` |",
        "| learning rates tried | 2e-05, 4e-05, 8e-05 |",
        "| vision tower frozen | yes |",
        "| LoRA rank | 16 |",
        "### Alpha curves",
        f"| 2 | {zero} | **{share(quarter['accuracy'])}** ({share(quarter['preference_accuracy'])}) |",
        "figures/alpha-curves.png",
        "figures/accuracy-distance.png",
        "Answers were decoded with 8 frames a video, temperature 0 and at most 12 tokens",
        "## Intended use",
        "## Safety",
        'revision="round-1"',
        "python -m eval debias results/evaluator/iter_w2s.json --gold results/gold/labels.jsonl",
    ):
        assert said in body, said
    assert data["license"] == "apache-2.0" and str(measured) not in card and str(ROOT) not in card


def test_a_base_of_the_hub_is_named_with_its_revision_and_its_licence_is_not_guessed(own_run):
    job = {"argv": ["--model_name_or_path", "Qwen/Qwen2-VL-2B"], "config": {"base": f"Qwen/Qwen2-VL-2B@{'4' * 40}"}}
    write_json(own_run / "arms" / ".work" / "job.json", job)
    models = own_run / "measurements" / "models.json"
    models.unlink()
    for path in (own_run.parent / "mmaip-v" / "questions").glob("*.parquet"):  # no toy world
        import duckdb

        new = path.with_suffix(".new")
        duckdb.sql(f"COPY (SELECT * REPLACE ('clips' AS source) FROM '{path}') TO '{new}' (FORMAT parquet)")
        new.replace(path)
    facts = base_facts(Run(own_run))
    assert (facts["id"], facts["revision"], facts["license"]) == ("Qwen/Qwen2-VL-2B", "4" * 40, None)
    card = render_model_card(own_run)
    data, body = split_card(card)
    assert data["license"] == "other" and data["license_link"] == "https://huggingface.co/Qwen/Qwen2-VL-2B"
    assert "[`Qwen/Qwen2-VL-2B`](https://huggingface.co/Qwen/Qwen2-VL-2B)" in body and "4" * 40 in body
    assert "| licence | not recorded: see the base's own page" in body and "Toy world" not in body
    assert "cards/configs/demo.yaml" not in body


@pytest.mark.parametrize(
    ("card", "fields"),
    [
        ("license: llama3.2", {"license": "llama3.2"}),
        ("license: Apache-2.0", {"license": "apache-2.0"}),
        ("license: [mit]", {"license": "mit"}),
        ("license: tongyi-qianwen", {"license": "other", "license_name": "tongyi-qianwen"}),
        (
            "license: other\nlicense_name: qwen-research\nlicense_link: https://example.org/LICENSE",
            {"license": "other", "license_name": "qwen-research", "license_link": "https://example.org/LICENSE"},
        ),
        (
            "license: other\nlicense_name: Own Terms\nlicense_link: LICENSE",
            {"license": "other", "license_name": "own-terms"},
        ),
        ("license: other", {"license": "other", "license_name": "other"}),
        ("tags: [video]", {"license": "other", "license_name": "as-its-base"}),
    ],
)
def test_the_licence_of_a_base_in_a_folder_is_taken_over_as_the_hub_writes_it(own_run, monkeypatch, card, fields):
    base = own_run.parent / "base"
    base.mkdir()
    (base / "README.md").write_text(f"---\n{card}\n---\ntext\n")
    write_json(
        own_run / "arms" / ".work" / "job.json",
        {"argv": ["--model_name_or_path", str(base)], "config": {"base": "0" * 16}},
    )
    (own_run / "measurements" / "models.json").unlink()
    monkeypatch.setattr(Run, "toy", False)
    data, _ = split_card(render_model_card(own_run))
    assert {key: value for key, value in data.items() if key.startswith("license")} == fields


def test_the_command_names_no_folder_of_this_machine(own_run, tmp_path):
    elsewhere = tmp_path / "secret place" / "checkpoint"
    judge = json.dumps({"kind": "visual", "model": str(own_run / "models" / "verifier")})
    dataset = str(Run(own_run).dataset)
    argv = ["--model_name_or_path", str(elsewhere), "--dataset_name", dataset, "--output_dir", str(own_run)]
    argv += ["--judges", '{"kind": "reference"}', judge, "--seed", "0"]
    write_json(own_run / "arms" / ".work" / "job.json", {"argv": argv, "config": {}})
    command = training_command(Run(own_run))
    assert str(tmp_path) not in command and "secret" not in command
    assert "--model_name_or_path checkpoint" in command and "--dataset_name mmaip-v" in command
    assert '"model": "runs/run/models/verifier"' in command and "--output_dir runs/run" in command
    assert str(tmp_path) not in render_model_card(own_run)


def test_the_pushed_card_names_the_dataset_at_its_tag(measured):
    ids = {"dataset": "me/mmaip-v", "model": "me/demo", "evaluator": "me/demo-evaluator"}
    path = Run(measured).release_folder / "README.md"
    card = model_card(path, ids, "mmaip-v", None, False, None, "v1.2.3").decode()
    place = "[`me/mmaip-v`](https://huggingface.co/datasets/me/mmaip-v)"
    assert f"Preference pairs of {place} at the tag `v1.2.3` (fingerprint" in card
    assert "cards verify me/demo --dataset me/mmaip-v\n" in card and "MMAIP_V_DATA=me/mmaip-v " in card
    assert "PATH_OR_REPO" not in card and yaml.safe_load(card.split("---\n")[1])["datasets"] == ["me/mmaip-v"]
    without = model_card(path, ids, "mmaip-v", None, False, None).decode()
    assert f"Preference pairs of {place} (fingerprint" in without
    for alone in (False, True):  # of LoRA: what the repo holds is what the card says
        said = model_card(path, ids, "mmaip-v", "me/base", alone, None).decode()
        assert ("Each round is a complete checkpoint." in said) is not alone
        assert ("holds the adapter of each round alone" in said) is alone


def test_the_models_language_is_that_of_its_data(own_run):
    readme = Run(own_run).dataset / "README.md"
    assert split_card(render_model_card(own_run))[0]["language"] == ["en"]
    readme.write_text(readme.read_text().replace("---\n", "---\nlanguage:\n- de\n- fr\n", 1))
    assert split_card(render_model_card(own_run))[0]["language"] == ["de", "fr"]
