"""What rounds do besides training: on-policy pairs, guards, early ends, the adapter of all rounds, report_to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dataset_builder.errors import KitError
from dataset_builder.models import load_model
from recipes.arms.run import to_argv
from recipes.iter_w2s import main
from recipes.settings import parse
from tests.recipes.conftest import small_fields
from tests.recipes.zoo_world import REFERENCE, make_world

CLONE = Path(__file__).parents[2]
TOY = CLONE / "recipes/configs/toy.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("rounds") / "mmaip-v")


@pytest.fixture
def fields(world, base, tmp_path) -> dict:
    few = {"rounds": 2, "alphas": [0.0], "judges": [REFERENCE], "max_new_tokens": 3, "output_dir": tmp_path / "run"}
    return {**small_fields(world, base), **few}


def run(fields: dict) -> dict:
    """Run the rounds; returns rounds.json."""
    assert main(["--config", str(TOY), *to_argv(fields)]) == 0
    return json.loads((Path(fields["output_dir"]) / "rounds.json").read_text())


def test_on_policy_rounds_sample_questions_of_their_own(fields):
    summary = run({**fields, "pairs": "on_policy", "own_samples": 2, "slices": True})
    counts = [metrics["pairs"] for metrics in summary["rounds"]]
    assert len(counts) == 2, (summary["stopped"], counts)
    assert sum(c["questions"] for c in counts) == 24, "slices are disjoint and leave nothing out"
    for found in counts:
        assert found["sampled"] == 2 * found["questions"]
        assert found["questions"] == sum(found[n] for n in ("pairs", "no_own_error", "no_margin", "no_verdict"))
        assert found["pairs"] > 0, "an untrained model makes errors"
    whole = run(
        {**fields, "pairs": "on_policy", "own_samples": 2, "slices": False, "output_dir": fields["output_dir"] / "all"}
    )
    assert [metrics["pairs"]["questions"] for metrics in whole["rounds"]] == [24, 24]
    assert not list(Path(fields["output_dir"]).glob(".round-*")), "nothing is left of the work on a round"


def test_pairs_without_ground_truth_use_the_named_judges_only(fields, world):
    with pytest.raises(KitError, match="no judge is called 'verifier'"):
        run({**fields, "judge_names": ["verifier"]})
    summary = run({**fields, "judge_names": ["reference"]})
    assert [metrics["pairs"]["pairs"] for metrics in summary["rounds"]] == [24, 24]


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"max_chosen_drop": 0.0, "sft_weight": 0.0, "learning_rate": 1e-2}, "chosen_logp"),
        ({"max_margin": 0.0, "learning_rate": 1e-2}, "margin"),
    ],
)
def test_a_round_that_breaks_a_limit_is_not_kept(fields, limit, said):
    summary = run({**fields, **limit, "logging_steps": 1, "max_steps": 4})
    assert said in summary["stopped"] and summary["stopped"].startswith("round 1: ")
    assert summary["rounds"] == [] and not list(fields["output_dir"].glob("round-*"))
    again = run({**fields, **limit, "logging_steps": 1, "max_steps": 4})
    assert again == summary, "a run that was ended stays ended"


def test_the_last_good_round_is_kept(fields, monkeypatch):
    from recipes import rounds

    seen = []

    def second_is_bad(now, base, limits):
        seen.append(now)
        return ["malformed: 50.0 % empty or unfinished answers, limit 10.0 %"] if len(seen) == 2 else []

    monkeypatch.setattr(rounds, "violations", second_is_bad)
    summary = run({**fields, "rounds": 3})
    assert summary["stopped"] == "round 2: malformed: 50.0 % empty or unfinished answers, limit 10.0 %"
    assert [metrics["round"] for metrics in summary["rounds"]] == [1]
    assert sorted(path.name for path in fields["output_dir"].glob("round-*")) == ["round-1"]


def test_times_of_other_commands_in_the_folder_are_kept(fields):
    """`cards finish` and `cards release` keep their clocks in the same file."""
    log = Path(fields["output_dir"]) / "run_log.json"
    log.parent.mkdir(parents=True)
    log.write_text('{"wall_seconds": 1.5, "stages": {}}')
    run({**fields, "rounds": 1})
    kept = json.loads(log.read_text())
    assert kept["wall_seconds"] == 1.5 and [each["round"] for each in kept["rounds"]] == [1]


def test_rounds_end_when_nothing_helps(fields):
    summary = run({**fields, "stop_early": True, "learning_rate": 1e-9})
    assert summary["stopped"] == "after round 1: neither training nor extrapolation has helped"
    assert len(summary["rounds"]) == 1


def test_a_grid_is_searched_by_held_out_pairs_first(fields, world):
    """Only the best few alphas answer questions; the dataset needs held-out pairs for it."""
    source = next((world / "preferences").glob("train-*"))
    held_out = source.with_name("validation-00000-of-00001.parquet")
    held_out.write_bytes(source.read_bytes())
    try:
        summary = run({**fields, "rounds": 1, "alphas": [0.0, 0.25, 0.5, 1.0], "judged_alphas": 1})
    finally:
        held_out.unlink()
    curve = summary["rounds"][0]["alpha_curve"]
    assert [point["alpha"] for point in curve] == [0.0, 0.25, 0.5, 1.0]
    assert all(0 <= point["preference_accuracy"] <= 1 for point in curve)
    judged = [point["alpha"] for point in curve if point["accuracy"] is not None]
    best = max(curve, key=lambda p: (p["preference_accuracy"], p["preference_margin"]))
    assert set(judged) == {0.0, best["alpha"]}
    health = summary["rounds"][0]["health"]
    assert health["chosen_logp"] < 0 and health["margin"] > summary["base"]["health"]["margin"]


def test_the_adapter_of_all_rounds_loads_on_the_original_base(fields, base):
    from peft import PeftModel

    lora = {"use_peft": True, "lora_r": 3, "lora_alpha": 6, "lora_dropout": 0.0, "judged_alphas": 2}
    summary = run({**fields, **lora, "alphas": [0.0, 0.5, -0.5]})
    last = fields["output_dir"] / "round-2"
    model = load_model(base, device="cpu", dtype="float32").model
    merged = PeftModel.from_pretrained(model, last / "adapter").merge_and_unload().state_dict()
    saved = load_model(last, device="cpu", dtype="float32").model.state_dict()
    assert summary["rounds"][-1]["distance"] > 1e-2
    for name, tensor in saved.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6)
    assert json.loads((last / "adapter" / "adapter_config.json").read_text())["r"] == 6
    moved = json.loads((last / "extrapolation.json").read_text())
    assert moved["all"]["moved"] == pytest.approx(summary["rounds"][-1]["round_distance"], rel=1e-5)
    assert {name for name, part in moved["kinds"].items() if part["moved"]} <= {
        name for name in moved["kinds"] if "language_model.layers" in name
    }


def test_metrics_go_where_report_to_says(fields, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    run({**fields, "rounds": 1, "report_to": "tensorboard", "logging_steps": 1})
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pairs": "own"}, "pairs is 'own'"),
        ({"pairs": "on_policy", "judges": None}, "needs `judges:`"),
        ({"judges": ["{kind: reference"]}, "entry 1 is not JSON"),
        ({"own_temperature": 0}, "own_temperature must be above 0"),
        ({"max_length_ratio": 0.5}, "length_ratio is 0.5"),
        ({"alphas": [0.5]}, "must contain 0"),
        ({"fps": -1}, "fps is -1"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
    ],
)
def test_wrong_values_are_one_line(fields, given, said, tmp_path):
    plain = tmp_path / "plain.yaml"
    plain.write_text("max_steps: 1\nuse_cpu: true\nbf16: false\n")
    words = ["--config", str(plain), *to_argv({**fields, **given})]
    with pytest.raises(KitError, match=said):
        parse(words).limits()


def test_judges_that_see_no_difference_leave_the_base(fields, world, monkeypatch):
    from recipes.on_policy.builder import PairBuilder

    real = PairBuilder.from_zoo
    monkeypatch.setattr(PairBuilder, "from_zoo", lambda self: real(self, question_ids=[]))
    summary = run({**fields, "judge_names": ["reference"]})
    assert summary["rounds"] == [] and summary["stopped"].startswith("round 1: no answers differ by the margin")


def test_verdicts_on_fresh_answers_are_kept_with_the_run(fields):
    run({**fields, "pairs": "on_policy", "own_samples": 2, "rounds": 1})
    kept = json.loads((fields["output_dir"] / "references" / "verdicts-all.json").read_text())
    assert all(entry[0] == "reference" for entry in kept)
