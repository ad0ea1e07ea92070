"""Cards say what was measured, all of it, and nothing else."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import yaml

from cards.dataset_card import check_card, front_matter, render_dataset_card, size_category
from cards.figures import FIGURES, draw_all
from cards.model_card import render_model_card
from cards.run_folder import Run, choose_release_arm, last_round
from cards.stage_log import write_json
from cards.text import NOT_MEASURED, interval, p_value, points, share
from dataset_builder.errors import KitError


def change(path, edit):
    """Load a JSON file, edit it in place, write it back."""
    value = json.loads(path.read_text())
    edit(value)
    write_json(path, value)


def test_dataset_card_keeps_what_the_writer_wrote(made_run):
    from huggingface_hub import DatasetCard

    run = Run(made_run)
    kept = front_matter(run.dataset / "README.md")
    text = render_dataset_card(run.dataset, run)
    assert kept in text  # byte for byte
    card = DatasetCard(text)
    data = card.data.to_dict()
    assert data["license"] == "cc0-1.0" and data["size_categories"] == ["n<1K"]
    assert data["language"] == ["en"] and data["task_categories"] and data["tags"]
    assert {c["config_name"] for c in data["configs"]} == {"preferences", "benchmark", "responses", "questions"}
    assert [c["config_name"] for c in data["configs"] if c.get("default")] == ["preferences"]
    assert "not the paper authors' own data" in " ".join(card.text.replace("> ", "").split())
    assert "arxiv.org/abs/2411.16201" in card.text


def test_dataset_card_numbers_are_the_datasets(made_run):
    run = Run(made_run)
    text = render_dataset_card(run.dataset, run)
    assert f"{len(run.pairs):,} preference pairs over 72 questions about 24 clips" in text
    assert "| `responses` | 192 | 48 | 48 |" in text
    for member in run.zoo:
        assert f"| {member['name']} | `{member['revisions'][0]}` | 72 |" in text
    for reason, number in run.drops.items():
        words = {"test_split": "test questions, kept for the benchmark by design"}
        assert f"| {words.get(reason, reason.replace('_', ' '))} | {number} |" in text
    assert "96.4 % | 71.0 %" in text and "order, shape" in text


def test_rendering_twice_changes_nothing(own_run):
    run = Run(own_run)
    first = render_dataset_card(run.dataset, run)
    (run.dataset / "README.md").write_text(first)
    assert render_dataset_card(run.dataset, Run(own_run)) == first


def test_dataset_with_its_card_still_loads(own_run, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    run = Run(own_run)
    (run.dataset / "README.md").write_text(render_dataset_card(run.dataset, run))
    (run.dataset / "figures").mkdir()
    for name in ("scores", "margins"):
        (run.dataset / "figures" / f"{name}.png").write_bytes((run.folder / "figures" / f"{name}.png").read_bytes())
    loaded = datasets.load_dataset(str(run.dataset), "responses", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 192


def test_model_card_has_a_model_index(made_run):
    from huggingface_hub import ModelCard

    text = render_model_card(made_run)
    card = ModelCard(text)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.68, "test")
    assert "model-index" in yaml.safe_load(front_matter_of(text))
    for arm in ("base", "sft_chosen", "dpo", "dpo_expo", "iter", "**iter_w2s**"):
        assert f"| {arm} |" in text
    assert "65.0 – 71.0 %" in text and "< 0.0001" in text and "0.031" in text
    assert "| 2 | 15 | 48 | 4e-05 | 0.25 |" in text  # round 2 with its pairs and its alpha
    assert "on test `sft_chosen` is higher" in text  # a better control is said, not hidden


def front_matter_of(text: str) -> str:
    """The YAML block of a card."""
    return text.split("---\n")[1]


def test_changing_an_artefact_changes_the_number(own_run):
    before = render_model_card(own_run)

    def edit(table):
        table["arms"]["iter_w2s"].update(accuracy=0.7123, ci95=[0.6811, 0.7434], p_vs_dpo=0.0077)

    change(own_run / "arms.json", edit)
    after = render_model_card(own_run)
    assert "71.2 %" not in before and "71.2 %" in after
    assert "68.1 – 74.3 %" in after and "0.0077" in after and "0.7123" in front_matter_of(after)
    change(own_run / "measurements" / "control.json", lambda control: control["coverage"].update(zoo=0.1234))
    change(own_run / "measurements" / "dataset.json", lambda made: made["drops"].update(tie=4321))
    text = render_dataset_card(Run(own_run).dataset, own_run)
    assert "12.3 %" in text and "4,321" in text


def test_missing_measurements_are_left_out_or_said(own_run):
    def edit(table):
        table["arms"]["iter_w2s"].update(accuracy=None, ci95=None, p_vs_base=None, distance=None)
        for key in ("draws", "steps", "test_clips", "test_questions"):
            del table[key]

    change(own_run / "arms.json", edit)
    for path in [*(own_run / "measurements").glob("*.json"), *(own_run / "figures").glob("*")]:
        path.unlink()
    model, data = render_model_card(own_run), render_dataset_card(Run(own_run).dataset, own_run)
    row = next(line for line in model.splitlines() if line.startswith("| **iter_w2s**"))
    assert row.count(NOT_MEASURED) == 3
    assert "model-index" not in model and "figures/" not in model + data
    assert "best single member" not in data and f"| {NOT_MEASURED} | |" in data
    for text in (model, re.sub(r"^```.*?^```$", "", data, flags=re.DOTALL | re.MULTILINE)):
        assert "None" not in text and "nan" not in text.lower().split()


def test_release_arm_is_chosen_on_validation():
    arms = {
        "base": {"validation_accuracy": 0.9},
        "sft_chosen": {"validation_accuracy": 0.95},
        "dpo": {"validation_accuracy": 0.6, "accuracy": 0.9},
        "iter": {"validation_accuracy": 0.7, "accuracy": 0.1},
        "iter_w2s": {"validation_accuracy": 0.7, "accuracy": 0.8},
    }
    assert choose_release_arm(arms) == "iter"  # a tie goes to the simpler arm; test accuracy plays no part
    assert choose_release_arm({"base": arms["base"], "dpo": {}}) is None


def test_rounds_are_found_by_number(tmp_path):
    for number in (1, 2, 10):
        (tmp_path / "arms" / "iter" / f"round-{number}").mkdir(parents=True)
    assert last_round(tmp_path, "iter").name == "round-10"
    assert last_round(tmp_path, "dpo") is None


def test_bad_folders_are_one_clear_line(tmp_path, own_run):
    with pytest.raises(KitError, match="is this a run folder"):
        Run(tmp_path)
    with pytest.raises(KitError, match="build the dataset first"):
        render_dataset_card(tmp_path, own_run)
    (tmp_path / "README.md").write_text("# no block\n")
    with pytest.raises(KitError, match="no YAML block"):
        render_dataset_card(tmp_path, own_run)
    with pytest.raises(KitError, match="card is not valid"):
        check_card("---\n- a list\n---\ntext\n", "model")
    (own_run / "arms.json").unlink()
    (own_run / "run.json").write_text(json.dumps({"dataset": str(Run(own_run).dataset)}))
    with pytest.raises(KitError, match="no DPO arm"):
        render_model_card(own_run)


def test_figures_are_the_same_bytes_twice(made_run, tmp_path):
    names = draw_all(Run(made_run), tmp_path)
    assert names == list(FIGURES)
    for name in names:
        for kind in ("png", "svg"):
            file = f"{name}.{kind}"
            assert (tmp_path / file).read_bytes() == (made_run / "figures" / file).read_bytes(), file


def test_figures_without_measurements_are_not_drawn(own_run, tmp_path):
    (own_run / "arms.json").unlink()
    assert draw_all(Run(own_run), tmp_path / "figures") == [
        *("scores", "margins", "win-rates", "coverage", "length", "agreement")
    ]


def test_numbers_are_written_for_people():
    assert share(0.73125) == "73.1 %" and points(-0.153) == "−15.3" and points(0.02) == "+2.0"
    assert interval([0.61, 0.68]) == "61.0 – 68.0 %"
    assert p_value(0.00001) == "< 0.0001" and p_value(0.03124) == "0.031" and p_value(0.004) == "0.0040"
    for function in (share, points, interval, p_value):
        assert function(None) == NOT_MEASURED
    assert share(float("nan")) == NOT_MEASURED
    assert [size_category(n) for n in (999, 1_000, 50_000)] == ["n<1K", "1K<n<10K", "10K<n<100K"]


def estimate(mean: float) -> dict:
    return {"mean": mean, "se": 0.01, "low": mean - 0.02, "high": mean + 0.02, "n": 90, "clusters": 30}


def test_the_model_card_shows_what_the_evaluator_says_and_whether_it_judges_itself(own_run):
    plain = render_model_card(own_run)
    assert "By the released judge" not in plain
    said = {"accuracy": estimate(0.731), "self_judged": "verifier", "unjudged": 3, "error": estimate(0.269)}
    said |= {"missed": 0.264, "false_alarms": None, "debiased": estimate(0.683)}
    said |= {"without_frames": estimate(0.648), "blind": estimate(0.342)}
    judge = {"name": "verifier", "kind": "visual", "fingerprint": "0123456789abcdef"}
    sees = "the frames, the question, the answer, and the reference answers if there are any"
    measured = {"judge": judge, "sees": sees, "arms": {"iter_w2s": said}, "gold_videos": 40}
    write_json(own_run / "measurements" / "evaluator.json", measured)
    card = render_model_card(own_run)
    assert "**Self-judged:** this model also chose the training pairs (judge `verifier`)" in card
    assert f"It is shown {sees}." in card and "reads no reference" not in card and "which watches" not in card
    assert "`verifier`, the released judge; **self-judged**" in card
    for figure in ("73.1 %", "26.9 %", "26.4 %", "68.3 %", "64.8 %", "34.2 %", "0123456789abcdef"):
        assert figure in card, figure
    said["self_judged"] = None
    del said["debiased"]
    write_json(own_run / "measurements" / "evaluator.json", measured)
    assert "Self-judged" not in render_model_card(own_run) and "not measured |" in render_model_card(own_run)


def test_sentences_about_ready_made_pairs_and_real_videos(own_run, monkeypatch):
    """What holds for the toy world and for pairs of the kit's own making is not said of others."""
    from cards.report import render_report

    provenance = Run(own_run).dataset / "provenance.json"
    change(provenance, lambda p: p["pairs"].update(select="all"))
    assert "All pairs of answers that pass the rules, at least 0.1 apart" in render_report(Run(own_run))
    change(provenance, lambda p: p.update(sources=[{"kind": "preferences", "source": "theirs"}]))
    monkeypatch.setattr(Run, "toy", False)
    report, model = render_report(Run(own_run)), " ".join(render_model_card(own_run).split())
    assert "The pairs came ready-made" in report and "apart; equal scores" not in report
    assert "what they prefer an answer for, their source has to say" in model
    for untrue in ("answers fits the video better", "in English", "same world", "Nobody has tuned"):
        assert untrue not in model, untrue
    readme = Run(own_run).dataset / "README.md"
    card = render_dataset_card(readme.parent, Run(own_run))
    assert "the card is tagged English because" in card and "`margin` are the source's, on its own scale." in card
    readme.write_text(readme.read_text().replace("---\n", "---\nlanguage: [yue]\n", 1))
    again = render_dataset_card(readme.parent, Run(own_run))
    assert "as the card's owner tagged it; the language of questions" in again and "tagged English" not in again


def test_margins_on_a_scale_of_their_own_are_all_in_the_figure():
    import matplotlib.pyplot as plt

    from cards.figures import margins

    figure = margins(SimpleNamespace(pairs=[{"margin": value} for value in (0.4, 2.0, 9.0)]), plt)
    (axis,) = figure.axes
    assert sum(bar.get_height() for bar in axis.patches) == 3 and axis.get_xlim()[1] >= 9
    plt.close(figure)
