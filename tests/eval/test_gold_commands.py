"""`debias` and `gold-size`, as typed."""

import json
import random

import pytest

from dataset_builder.errors import KitError
from eval.__main__ import main
from eval.gold.rows import GoldLabel, LabelFile, response_hash
from eval.gold.sampling import draw_sample
from eval.results import MORE_FIELDS, Results


def world(folder, name: str, accuracy: float, videos: int = 200) -> dict[str, int]:
    """Results of a judge that passes half of the wrong answers, with gold labels on 60 videos; returns the truth."""
    rng, rows, truth = random.Random(name), [], {}
    for n in range(2 * videos):
        right = rng.random() < accuracy
        truth[f"q{n}"] = int(right)
        rows.append(
            {
                **{"question_id": f"q{n}", "video_id": f"v{n // 2}", "question_type": "", "question": "?"},
                **{"answers": ["x"], "response": f"{name} {n}", "correct": int(right or rng.random() < 0.5)},
                **{"score": None, "error": None, **dict.fromkeys(MORE_FIELDS)},
            }
        )
    results = Results(name, name, "", judge={"name": "j", "fingerprint": "f"}, rows=rows)
    results.save(folder / f"{name}.json")
    labels, drawn = LabelFile(folder / f"{name}.jsonl"), set(draw_sample(results, 60, seed=1).videos)
    for row in rows:
        if row["video_id"] in drawn:
            said = "correct" if truth[row["question_id"]] else "incorrect"
            hashes = (response_hash(row["response"]),)
            labels.append(GoldLabel(row["question_id"], row["video_id"], hashes, "ada", said))
    return truth


def test_debias_puts_one_model_and_a_difference_right(tmp_path, capsys):
    good, bad = world(tmp_path, "good", 0.7), world(tmp_path, "bad", 0.3)
    gold = ["--gold", str(tmp_path / "good.jsonl"), "--gold", str(tmp_path / "bad.jsonl")]
    out = tmp_path / "out.json"
    assert main(["debias", str(tmp_path / "bad.json"), *gold[2:], "--json", str(out)]) == 0
    true, record = sum(bad.values()) / len(bad), json.loads(out.read_text())
    assert record["naive"]["low"] > true and record["low"] < true < record["high"]
    assert record["gold_clusters"] == 60 and "debiased" in capsys.readouterr().out
    words = ["debias", str(tmp_path / "good.json"), str(tmp_path / "bad.json"), *gold, "--json", str(out)]
    assert main([*words, "--estimand", "population"]) == 0
    difference, record = (sum(good.values()) - sum(bad.values())) / len(good), json.loads(out.read_text())
    assert record["naive"]["mean"] < difference - 0.05 and record["low"] < difference < record["high"]
    assert (record["a"], record["b"], record["estimand"]) == ("good", "bad", "population")


def test_too_few_gold_videos_are_one_line(tmp_path):
    world(tmp_path, "good", 0.7)
    lines = (tmp_path / "good.jsonl").read_text().splitlines()[:10]
    (tmp_path / "few.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(KitError, match="label 15 more") as caught:
        main(["debias", str(tmp_path / "good.json"), "--gold", str(tmp_path / "few.jsonl")])
    assert "\n" not in str(caught.value)


def test_gold_size_plans_from_rates_and_from_a_pilot(tmp_path, capsys):
    world(tmp_path, "bad", 0.3)
    pilot = ["gold-size", str(tmp_path / "bad.json"), "--gold", str(tmp_path / "bad.jsonl"), "--half-width", "0.06"]
    assert main(pilot) == 0
    assert "a pilot of 120 labels" in capsys.readouterr().out
    assert main(["gold-size", "--videos", "300", "--questions", "3", "--half-width", "0.05"]) == 0
    said = capsys.readouterr().out
    assert "of 300 videos" in said and "points" in said
    with pytest.raises(KitError, match="give RESULTS"):
        main(["gold-size", "--half-width", "0.05"])
    with pytest.raises(KitError, match="half_width must be positive"):
        main(["gold-size", "--videos", "300", "--half-width", "0"])
