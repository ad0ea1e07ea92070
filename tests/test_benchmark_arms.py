"""The table of arms over seeds, from small made-up run folders whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMED_ONLY
from benchmarks.arms import check_runs, control_of, format_table, load_run, main, summarise
from benchmarks.arms_plot import overlap, place_names
from dataset_builder.errors import KitError
from eval.results import Results
from eval.stats import holm, paired_test

ARMS = ("base", "dpo", "iter", "iter_w2s", "iter+sft")
CLIPS, QUESTIONS = 10, 2
FAST = {"draws": 2000, "resamples": 500}


def verdict(seed: int, arm: str, clip: int) -> int:
    """How many clips of ten an arm answers right: base 4, dpo 6 (7 with seed 12), iter as dpo, the others 8."""
    right = {"base": 4, "dpo": 6 + (seed == 12), "iter": 6 + (seed == 12)}.get(arm, 8)
    return int(clip < right)


def make_run(folder: Path, seed: int, arms=ARMS, kind: str = "colour", steps: int = 45, clips: int = CLIPS) -> Path:
    """A run folder with what the benchmark reads."""
    table = {}
    for number, arm in enumerate(arms):
        rows = [
            {
                **{"question_id": f"q{clip}-{n}", "video_id": f"v{clip}", "question_type": kind, "question": "which ?"},
                **{"answers": ["red"], "response": "red", "correct": verdict(seed, arm, clip), "error": None},
                "score": float(verdict(seed, arm, clip)),
            }
            for clip in range(clips)
            for n in range(QUESTIONS)
        ]
        judge = {"name": "reference", "revision": "1", "settings_hash": "5"}
        decoding = {"temperature": 0.0, "num_frames": 8, "seed": seed}
        Results(arm, "m", "r", judge=judge, decoding=decoding, rows=rows).save(folder / "results" / f"{arm}.json")
        table[arm] = {
            **{"accuracy": 0.5, "distance": 0.5 * number + 0.1 * (seed - 11), "validation_accuracy": 0.6},
            **{"alpha": [0.0, 0.25, 0.0] if arm == "iter_w2s" else [], "learning_rate": 4e-5},
            **{"steps": 45 if number else 0, "samples": 100 * number, "judge_calls": 10 * seed, "stopped": None},
        }
    table[arms[-1]]["stopped"] = "malformed: 12.0 % empty or unfinished answers" if seed == 12 else None
    (folder / "arms.json").write_text(json.dumps({"arms": table, "order": list(arms), "seed": seed, "steps": steps}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [make_run(root / f"seed-{seed}", seed) for seed in (13, 11, 12)]


@pytest.fixture(scope="module")
def table(folders) -> dict:
    return summarise([load_run(folder) for folder in folders], **FAST)


def test_means_and_what_they_cost(table):
    arms = table["arms"]
    assert (table["name"], table["seeds"], table["order"], table["steps"]) == ("arms", [11, 12, 13], list(ARMS), 45)
    assert table["test_clips"] == {"11": 10, "12": 10, "13": 10} and table["test_questions"]["11"] == 20
    assert arms["dpo"]["by_seed"] == {"11": 0.6, "12": 0.7, "13": 0.6}
    assert arms["dpo"]["accuracy"] == pytest.approx(19 / 30)
    for arm in arms.values():
        assert 0 <= arm["ci95"][0] <= arm["accuracy"] <= arm["ci95"][1] <= 1
    assert arms["iter"]["distance"] == pytest.approx(1.1)
    assert arms["iter"]["distance_by_seed"] == pytest.approx({"11": 1.0, "12": 1.1, "13": 1.2})
    assert (arms["iter"]["steps"], arms["iter"]["samples"], arms["iter"]["judge_calls"]) == (45, 200, 120)
    assert arms["iter_w2s"]["alpha"] == {seed: [0.0, 0.25, 0.0] for seed in ("11", "12", "13")}
    assert arms["iter_w2s"]["learning_rate"]["12"] == 4e-5
    assert arms["iter+sft"]["stopped"]["12"].startswith("malformed") and arms["iter+sft"]["stopped"]["11"] is None


def test_differences(table, folders):
    arms = table["arms"]
    assert arms["dpo"]["diff_vs_base"] == pytest.approx(7 / 30)
    assert arms["dpo"]["diff_vs_base_by_seed"] == pytest.approx({"11": 0.2, "12": 0.3, "13": 0.2})
    assert arms["base"]["diff_vs_dpo"] == pytest.approx(-7 / 30)
    low, high = arms["dpo"]["diff_vs_base_ci95"]
    assert low < 7 / 30 < high
    assert arms["base"]["diff_vs_base"] is arms["base"]["p_vs_base"] is arms["dpo"]["control"] is None
    assert (arms["iter_w2s"]["control"], arms["iter+sft"]["control"]) == ("iter", "iter")
    assert arms["iter_w2s"]["diff_vs_control"] == pytest.approx(5 / 30)
    assert (arms["iter"]["diff_vs_dpo"], arms["iter"]["p_vs_dpo"]) == (0.0, 1.0)


def test_p_values(table):
    """Raw p-values from (seed, video) clusters, Holm over every hypothesis of the table once."""
    arms = table["arms"]
    clusters = [(seed, clip) for seed in (11, 12, 13) for clip in range(CLIPS) for _ in range(QUESTIONS)]
    sides = [[verdict(seed, arm, clip) for seed, clip in clusters] for arm in ("dpo", "base")]
    assert arms["dpo"]["p_vs_base_raw"] == paired_test(*sides, clusters, draws=FAST["draws"]).p
    assert arms["dpo"]["p_vs_base"] == arms["base"]["p_vs_dpo"], "one hypothesis, asked from both sides"
    hypotheses = [("dpo", "base"), ("iter", "base"), ("iter", "dpo"), ("iter_w2s", "base"), ("iter_w2s", "dpo")]
    hypotheses += [("iter_w2s", "control"), ("iter+sft", "base"), ("iter+sft", "dpo"), ("iter+sft", "control")]
    assert table["comparisons"] == len(hypotheses)
    raw = [arms[arm][f"p_vs_{other}_raw"] for arm, other in hypotheses]
    assert [arms[arm][f"p_vs_{other}"] for arm, other in hypotheses] == pytest.approx(holm(raw))
    assert arms["dpo"]["p_vs_base_seeds"] == 2 / 2**3, "three seeds cannot say more than that"


def test_printed_table(table):
    lines = format_table(table).splitlines()
    assert lines[0] == "3 seeds (11, 12, 13), 30 test clips, 60 questions, %"
    row = next(line for line in lines if line.startswith("iter_w2s "))
    assert "80.0" in row and row.endswith("0×6 0.25×3")
    assert any(line.startswith("iter_w2s − iter ") and "+16.7" in line for line in lines)
    assert any(line.startswith("iter+sft, seed 12: stopped early (malformed") for line in lines)
    assert sum(" − " in line for line in lines) == table["comparisons"] + 1, "base − dpo is shown from both sides"


def test_controls():
    known = ["dpo", "dpo+sft", "iter", "iter_w2s", "iter_w2s+sft", "dpo_matched", "dpo_on_policy", "iter_on_policy"]
    known += ["iter_on_policy+sft", "iter_on_policy+visual", "iter_on_policy+sft+visual", "iter_w2s_on_policy"]
    expected = {
        **{"dpo": None, "dpo+sft": "dpo", "iter": None, "iter_w2s": "iter", "iter_w2s+sft": "iter_w2s"},
        **{"dpo_matched": "iter_w2s", "iter_on_policy": "dpo_on_policy", "iter_on_policy+sft": "iter_on_policy"},
        **{"iter_on_policy+visual": "iter_on_policy", "iter_on_policy+sft+visual": "iter_on_policy+visual"},
        **{"iter_w2s_on_policy": "iter_on_policy"},
    }
    assert {arm: control_of(arm, known) for arm in expected} == expected
    assert control_of("iter_w2s", ["iter_w2s"]) is None, "a control that was not trained is none"


def test_command(folders, tmp_path, capsys):
    main([*map(str, folders), "--output", str(tmp_path), "--draws", "200", "--resamples", "100"])
    assert "3 seeds" in capsys.readouterr().out
    content = json.loads((tmp_path / "arms.json").read_text())
    assert {"name", "arms", "seeds", "machine", "versions", "date"} <= content.keys()
    assert {"accuracy", "ci95", "p_vs_base", "p_vs_dpo", "alpha", "distance"} <= content["arms"]["iter_w2s"].keys()
    assert (tmp_path / "arms.png").read_bytes().startswith(b"\x89PNG")
    assert "arms" in NAMED_ONLY


def test_one_run_says_nothing_about_others(folders):
    arms = summarise([load_run(folders[0])], **FAST)["arms"]
    assert arms["dpo"]["ci95"] == [0.0, 1.0] and arms["dpo"]["diff_vs_base_ci95"] == [-1.0, 1.0]


def test_rows_without_verdict_are_left_out_on_both_sides(tmp_path):
    folder = make_run(tmp_path / "run", 11)
    path = folder / "results" / "dpo.json"
    results = Results.load(path)
    for row in results.rows[:8]:  # clips 0–3, all of them right
        row["correct"] = row["score"] = None
    results.save(path)
    arms = summarise([load_run(folder)], **FAST)["arms"]
    assert arms["dpo"]["accuracy"] == pytest.approx(2 / 6) and arms["dpo"]["left_out"] == 8
    assert arms["dpo"]["diff_vs_base"] == pytest.approx(2 / 6), "of the six clips left, base has none"
    for row in results.rows:
        row["correct"] = row["score"] = None
    results.save(path)
    with pytest.raises(KitError, match="no row has a verdict"):
        summarise([load_run(folder)], **FAST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ARMS[:-1]}, r"other: arms differ from \S*first \(without iter\+sft\)"),
        ({"steps": 90}, r"other: steps differ from \S*first \(90, not 45\)"),
        ({"kind": "count"}, r"other: question types differ from \S*first \(without colour; with count\)"),
        ({"seed": 11}, r"other: seed 11 is that of \S*first too"),
    ],
)
def test_runs_that_differ_in_kind_are_refused(tmp_path, change, message):
    first = make_run(tmp_path / "first", 11)
    other = make_run(tmp_path / "other", **{"seed": 12, **change})
    with pytest.raises(KitError, match=message) as refusal:
        check_runs([load_run(first), load_run(other)])
    assert "\n" not in str(refusal.value)


def test_a_run_that_is_not_whole_is_refused(tmp_path):
    folder = make_run(tmp_path / "run", 11)
    shorter = make_run(tmp_path / "shorter", 11, clips=5)
    (folder / "results" / "dpo.json").write_bytes((shorter / "results" / "dpo.json").read_bytes())
    with pytest.raises(KitError, match=r"results/dpo.json: other questions than base.json"):
        load_run(folder)
    (folder / "results" / "dpo.json").unlink()
    with pytest.raises(KitError, match="no such file"):
        load_run(folder)
    with pytest.raises(KitError, match="lacks dpo"):
        load_run(make_run(tmp_path / "alone", 11, arms=("base", "iter")))
    (folder / "arms.json").write_text("{}")
    with pytest.raises(KitError, match="fields 'arms' and 'seed' are needed"):
        load_run(folder)


def test_names_do_not_overlap():
    """Twenty arms on nearly the same spot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(11, 6.4), dpi=160)
    points = {f"iter_w2s_on_policy+{n}": (1 + 0.004 * (n % 5), 70 + 0.3 * n) for n in range(20)}
    axis.plot([0.5, 1.5], [50, 90], ".")
    figure.canvas.draw()
    boxes = list(place_names(axis, points).values())
    pyplot.close(figure)
    assert len(boxes) == 20
    assert not any(overlap(one, other) for n, one in enumerate(boxes) for other in boxes[:n])
