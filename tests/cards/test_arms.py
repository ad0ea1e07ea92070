"""Any arm can be shown and released: names decide what is said about it, and thirty of them stay readable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cards import alpha_figure
from cards.arm_figures import accuracy_distance, alpha_curves, arm_accuracies, learning_rates
from cards.arm_notes import arm_context
from cards.model_card import hub_name, render_model_card
from cards.release import load_config, plan
from cards.report import render_report
from cards.run_folder import ADAPTER, EXTRAPOLATION, Run, choose_release_arm
from cards.stage_log import write_json
from cards.style import FILLS, STYLE, arm_key, marker
from cards.summary import build_summary, summary_text
from cards.text import SCHEME_WORDS, SUFFIX_WORDS, arm_words, rate, remark
from dataset_builder.errors import KitError
from recipes.arms.specs import CONTROLS, DEFAULT_ARMS, SCHEMES, SUFFIXES
from tests.cards.conftest import make_arms

ROOT = Path(__file__).parents[2]
TRAINED = [scheme for scheme in SCHEMES if scheme not in CONTROLS]
MANY = [
    *SCHEMES,
    *(f"{scheme}+sft" for scheme in TRAINED),
    *("sft_chosen+visual", "dpo+visual", "iter+visual", "iter_w2s+visual", "iter_on_policy+visual"),
    *("iter_w2s_on_policy+visual", "dpo+sft+visual", "iter+sft+visual", "iter_w2s+sft+visual"),
    "iter_w2s_on_policy+sft+visual",
]
STOPPED, BROKEN = "iter_w2s+sft", "dpo"


@pytest.fixture(scope="module")
def many(made_run, tmp_path_factory) -> Path:
    """A run with 28 arms: one stopped, one whose answers fell apart, the best one without ground truth."""
    run = tmp_path_factory.mktemp("many") / "run"
    shutil.copytree(made_run, run, ignore=shutil.ignore_patterns("figures", "arms"))
    accuracies = {name: 0.45 if name == "base" else 0.55 + 0.007 * place for place, name in enumerate(MANY)}
    table = make_arms(run, accuracies, stopped=(STOPPED,))
    table["arms"][BROKEN]["health"]["malformed"] = 0.31
    write_json(run / "arms.json", table)
    info = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**info, "release_arm": choose_release_arm(table["arms"], table["order"])})
    return run


@pytest.fixture
def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        yield pyplot
    pyplot.close("all")


def boxes(figure, texts) -> list:
    """Where the texts that are shown stand, in pixels; the figure has been drawn."""
    renderer = figure.canvas.get_renderer()
    return [text.get_window_extent(renderer) for text in texts if text.get_visible() and text.get_text()]


def apart(found: list) -> bool:
    """Whether no two boxes share a part of the page."""
    return not any(a.overlaps(b) for n, a in enumerate(found) for b in found[n + 1 :])


def test_every_scheme_and_suffix_has_words_and_a_look():
    assert set(SCHEME_WORDS) == set(SCHEMES) and set(SUFFIX_WORDS) == set(SUFFIXES)
    looks = {(marker(name)["marker"], marker(name)["color"]) for name in SCHEMES}
    assert len(looks) == len(SCHEMES), "no two schemes look alike"
    fills = [marker(f"iter{suffix}") for suffix in ("", "+sft", "+visual", "+sft+visual")]
    assert len({(fill["fillstyle"], fill["markerfacecolor"]) for fill in fills}) == len(FILLS)


def test_words_say_what_sets_a_variant_apart():
    table = {"iter": {}, "iter+sft+visual": {"sft_weight": 0.2}, "dpo+visual": {}}
    assert arm_words("iter") == arm_words("iter", table) == "iterated DPO, alpha 0 in every round"
    variant = arm_words("iter+sft+visual", table)
    assert variant == "as iter, with an SFT term on the chosen answers (weight 0.2), pairs built without ground truth"
    assert arm_words("dpo+visual", table) == "one run of DPO, pairs built without ground truth", (
        "plain dpo is not shown"
    )
    assert arm_words("something_else") == arm_words("dpo+else") == ""


def test_remarks():
    assert remark({}) == remark({"stopped": None, "health": {"malformed": 0.1, "repeated": None}}) == ""
    said = remark({"stopped": "round 1: no error is left", "steps": 0, "health": {"repeated": 0.25}})
    assert said == (
        "stopped in round 1: no error is left; no round was kept, so this is the base; "
        "25 % of its validation answers are repetitions of themselves"
    )
    assert remark({"stopped": "after round 2: nothing helped", "steps": 16}) == "stopped after round 2: nothing helped"
    assert (rate(0.000136984), rate(4e-5), rate(None)) == ("0.000137", "4e-05", "–")


@pytest.mark.parametrize(
    ("validation", "order", "released"),
    [
        ({"base": 0.9, "sft_chosen": 0.9, "sft_chosen+visual": 0.9, "dpo+sft": 0.5}, None, "dpo+sft"),
        ({"iter_w2s_on_policy+sft": 0.8, "dpo": 0.7, "iter_on_policy": 0.79}, None, "iter_w2s_on_policy+sft"),
        ({"iter+visual": 0.8, "dpo_matched": 0.8, "dpo+sft": 0.8}, None, "dpo_matched"),
        ({"iter": 0.8, "dpo": 0.8}, ["iter", "dpo"], "iter"),
        ({"made_elsewhere": 0.8, "iter+sft": 0.8}, None, "made_elsewhere"),
    ],
)
def test_any_trained_arm_may_be_released(validation, order, released):
    arms = {name: {"validation_accuracy": accuracy} for name, accuracy in validation.items()}
    assert choose_release_arm(arms, order) == released


def test_an_arm_without_a_round_is_not_released():
    arms = {"dpo": {"validation_accuracy": 0.4, "steps": 24}, "iter": {"validation_accuracy": 0.5, "steps": 0}}
    assert choose_release_arm(arms) == "dpo"


def test_arm_names_come_from_the_config_or_its_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def config(names: str = "", recipe: str = "max_steps: 8\n"):
        (tmp_path / "recipe.yaml").write_text(recipe)
        text = Path("cards/configs/demo.yaml").read_text()
        text = text[: text.index("\ntraining:")] + f"\ntraining:\n  config: {tmp_path / 'recipe.yaml'}\n{names}"
        (tmp_path / "release.yaml").write_text(text)
        return load_config(tmp_path / "release.yaml")

    assert config().arm_names() == list(DEFAULT_ARMS)
    assert config(recipe="arm_names: [dpo, iter+sft]\n").arm_names() == ["base", "dpo", "iter+sft"]
    chosen = config("  arm_names: [iter_on_policy+visual]\n", recipe="arm_names: [dpo]\n")
    assert chosen.arm_names() == ["base", "iter_on_policy+visual"]
    assert "iter_on_policy+visual; round-N folders" in plan(chosen)
    with pytest.raises(KitError, match=r"release\.yaml: training: arm_names: 'dpo\+more' is not an arm"):
        config("  arm_names: [dpo+more]\n")
    with pytest.raises(KitError, match=r"recipe\.yaml: arm_names: expected a list"):
        config(recipe="arm_names: dpo\n")


def test_the_card_shows_every_arm_and_what_it_took(many):
    run, card = Run(many), render_model_card(many)
    arm = run.release_arm
    assert arm == MANY[-1] == "iter_w2s_on_policy+sft+visual"
    for name in MANY:
        shown = f"**{name}**" if name == arm else name
        assert len([line for line in card.splitlines() if line.startswith(f"| {shown} |")]) == 2, name
    assert f"| {STOPPED} | 30 | 0 | 0 | 4e-05 | 0.25, 0.25 |" in card
    assert "| stopped after round 2: neither training nor extrapolation has helped |" in card
    assert "| iter_on_policy | 45 | 1,440 | 1,800 | 4e-05 | 0, 0, 0 |" in card
    assert "31 % of its validation answers are empty or unfinished" in card
    assert "ends as far from the base as" in card and f"`{STOPPED}` took fewer, because it was stopped" in card
    assert "None" not in card and "sees no true answer" not in card and "see no true answer" in card
    assert "saw the true answers" not in card, "not those who built this arm's pairs"


def test_the_report_and_the_summary_count_too(many):
    run = Run(many)
    page = render_report(run)
    assert "<code>+visual</code>" in page and "1,440" in page and "stopped after round 2" in page
    assert page.count(f'<th scope="row">{STOPPED}<') == 2
    summary = build_summary(run, {}, 1.0)
    assert summary["arms"]["iter_on_policy"]["samples"] == 1440 and summary["arms"][STOPPED]["stopped"]
    text = summary_text(run, summary)
    assert "extra samples" in text and f"  {STOPPED}: stopped after round 2" in text


def test_equal_arms_need_few_words(made_run):
    run = Run(made_run)
    context = arm_context(run)
    assert context["remarks"] == {} and len(context["notes"]) == 2 and context["comparators"] == ["base", "dpo"]
    assert "extra samples" not in summary_text(run, build_summary(run, {}, 1.0))


def test_arms_without_dpo_are_not_compared_with_it(own_run):
    table = json.loads((own_run / "arms.json").read_text())
    kept = {name: arm for name, arm in table["arms"].items() if name in ("base", "iter_w2s")}
    for arm in kept.values():
        del arm["p_vs_dpo"], arm["diff_vs_dpo"]
    write_json(own_run / "arms.json", {**table, "arms": kept, "order": list(kept)})
    for text in (render_model_card(own_run), render_report(Run(own_run))):
        assert "p vs base" in text and "p vs dpo" not in text


def test_thirty_names_do_not_overlap(many, pyplot):
    figure = arm_accuracies(Run(many), pyplot)
    figure.canvas.draw()
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [f"{MANY[-1]} *", *MANY[-2::-1]]
    assert apart(boxes(figure, axis.get_yticklabels())) and apart(boxes(figure, axis.texts))
    edge = figure.bbox
    for box in [*boxes(figure, axis.get_yticklabels()), *boxes(figure, axis.texts)]:
        assert edge.x0 <= box.x0 and box.x1 <= edge.x1, "nothing is cut off"


@pytest.mark.parametrize("draw", [accuracy_distance, learning_rates])
def test_keys_name_schemes_and_fills_and_stay_on_the_page(many, pyplot, draw):
    figure = draw(Run(many), pyplot)
    figure.canvas.draw()
    (legend,) = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    words = [text.get_text() for text in legend.get_texts()]
    assert {"iter_w2s_on_policy", *(meaning for _, meaning in FILLS.values() if meaning)} <= set(words)
    assert not {"iter+sft", "dpo+visual"} & set(words) and len(words) <= len(SCHEMES) + len(FILLS) + 1
    found = boxes(figure, legend.get_texts())
    assert apart(found) and all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 for b in found)


def test_a_key_of_plain_arms_is_their_names():
    assert [handle.get_label() for handle in arm_key(list(DEFAULT_ARMS))] == list(DEFAULT_ARMS)


def test_alpha_panels_are_at_most_four_side_by_side(many, pyplot):
    figure = alpha_curves(Run(many), pyplot)
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.get_title(loc="left")]
    searching = [name for name in MANY if name.split("+")[0] in ("dpo_expo", "iter_w2s", "iter_w2s_on_policy")]
    assert titles == searching and len(titles) > 8
    figure.canvas.draw()
    for axis in figure.axes:
        assert apart(boxes(figure, axis.get_xticklabels())) and apart(boxes(figure, axis.get_yticklabels()))
    assert len({round(axis.get_position().x0, 3) for axis in figure.axes}) == 4
    judged = figure.axes[0].lines[0]
    promised = figure.axes[1].lines[0]
    assert (len(judged.get_xdata()), len(promised.get_xdata())) == (3, 4), "what was not judged has no point"


@pytest.mark.parametrize("field", ["accuracy", "preference_accuracy"])
def test_curves_without_a_measurement_are_drawn(own_run, pyplot, tmp_path, field):
    table = json.loads((own_run / "arms.json").read_text())
    for arm in table["arms"].values():
        for curve in arm["alpha_curves"]:
            for point in curve:
                point[field] = None
    write_json(own_run / "arms.json", table)
    figure = alpha_curves(Run(own_run), pyplot)
    assert len(figure.axes) == (2 if field == "preference_accuracy" else 4)
    assert alpha_figure.draw([{"alpha": 0.0, "alpha_curve": curve}], tmp_path / "alpha.png")


def test_many_rounds_look_different():
    looks = [alpha_figure._look(number) for number in range(1, 37)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 36


def test_the_card_says_how_far_modules_moved(own_run):
    from recipes.extrapolate.measure import Sums, report

    before = render_model_card(own_run)
    assert "How far each module moved" not in before
    sums = {
        f"model.layers.{n}.mlp.up_proj.weight": Sums(100, 4.0, 4.1, 0.04, 0.01, 0.02, trained_count=100, added_count=90)
        for n in range(3)
    }
    folder = Run(own_run).release_folder
    write_json(folder / EXTRAPOLATION, report(sums, 0.5, dtype="bfloat16"))
    card = render_model_card(own_run)
    assert "| `model.layers.*.mlp.up_proj` | 300 | 3.46 | 0.346 | 0.520 | 15.00 % |" in card
    assert "α 0.5 included" in card and "(bfloat16) has cosine 1.0000 with the one that was meant" in card
    kinds = {f"kind_{n}.weight": Sums(10, 1.0, 1.0, 0.01, 0.0, 0.0) for n in range(20)}
    write_json(folder / EXTRAPOLATION, report(kinds, 0.0))
    card = render_model_card(own_run)
    assert "<details><summary>20 kinds of modules</summary>" in card and "None" not in card and "cosine" not in card


def test_the_card_shows_adapters(own_run):
    assert "adapter" not in render_model_card(own_run)
    for number in (2, 3):
        folder = own_run / "arms" / "iter_w2s" / f"round-{number}" / ADAPTER
        config = {"r": 8, "lora_alpha": 16, "target_modules": ["model.q_proj", "v_proj"]}
        config |= {"base_model_name_or_path": "somebody/base-3B", "rank_pattern": {"v_proj": 16} if number == 3 else {}}
        write_json(folder / "adapter_config.json", config)
        (folder / "adapter_model.safetensors").write_bytes(bytes(2_500_000))
    card = render_model_card(own_run)
    assert "| 2 | 8 | 16 | q_proj, v_proj | 2.5 MB |" in card and "| 3 | 8, 16 | 16 |" in card
    assert 'from_pretrained("somebody/base-3B")' in card and 'subfolder="adapter"' in card


def test_a_path_of_this_machine_is_not_a_name_for_others(tmp_path):
    assert hub_name("somebody/base-3B") == "somebody/base-3B"
    assert hub_name(str(tmp_path)) is hub_name("runs/demo/models/base") is hub_name(None) is None
