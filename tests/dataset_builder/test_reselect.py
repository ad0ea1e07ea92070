"""Other rules over the stored scores: only the pairs differ, and nothing is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from datasets import Video, load_dataset

from dataset_builder.__main__ import main
from dataset_builder.build import build
from dataset_builder.errors import KitError
from dataset_builder.reselect import ReselectConfig, load_rules, reselect
from dataset_builder.settings import PairsConfig
from tests.dataset_builder.worlds import tree


def rows(dataset: Path, config: str, cache: Path) -> dict[str, list[dict]]:
    """Rows of a config by split, videos undecoded."""
    found = load_dataset(str(dataset), config, cache_dir=str(cache))
    if "video" in next(iter(found.values())).column_names:
        found = found.cast_column("video", Video(decode=False))
    return {split: list(part) for split, part in found.items()}


def test_the_same_rules_give_the_same_pairs(built, tmp_path):
    summary = reselect(built.output, ReselectConfig(built.config.pairs), tmp_path / "again", progress=False)
    assert summary["pairs"] == built.summary["pairs"]
    mine, theirs = tree(tmp_path / "again"), tree(built.output)
    told = {"provenance.json", "selection.json"}
    assert {k: v for k, v in mine.items() if k not in told} == {k: v for k, v in theirs.items() if k not in told}
    assert summary["stability"]["pairs_changed"] == 0


def test_other_rules_change_nothing_but_the_pairs(built, tmp_path):
    rules = ReselectConfig(PairsConfig(min_margin=0.00001, select="all", max_per_question=3), judges=["verifier"])
    summary = reselect(built.output, rules, tmp_path / "other", progress=False)
    assert summary["pairs"] != built.summary["pairs"]
    mine, theirs = tree(tmp_path / "other"), tree(built.output)
    same = [name for name in theirs if name.startswith(("questions/", "benchmark/"))]
    assert same and all(mine[name] == theirs[name] for name in same)
    for split, part in rows(tmp_path / "other", "responses", tmp_path / "a").items():
        before = rows(built.output, "responses", tmp_path / "b")[split]
        assert [{**row, "score": 0, "disagreement": 0} for row in part] == [
            {**row, "score": 0, "disagreement": 0} for row in before
        ]  # the aggregate is another one, everything that was paid for is the same
    pairs = rows(tmp_path / "other", "preferences", tmp_path / "c")
    assert all(row["video"]["bytes"] for part in pairs.values() for row in part)
    stability = json.loads((tmp_path / "other" / "selection.json").read_text())["stability"]
    assert 0 < stability["pairs_changed"] <= 1
    provenance = json.loads((tmp_path / "other" / "provenance.json").read_text())
    assert provenance["reselected_from"] == built.summary["fingerprint"]
    assert provenance["rules"]["weights"] == {"reference": 0.0, "verifier": 1.0}


def test_videos_that_are_absent_become_null_and_are_counted(built, world, tmp_path):
    bare = tmp_path / "bare.yaml"
    config = yaml.safe_load(world.read_text())
    bare.write_text(yaml.safe_dump({**config, "ids_only": True}))
    assert main(["build", str(bare), "--output", str(tmp_path / "bare"), "--quiet"]) == 0
    summary = reselect(tmp_path / "bare", ReselectConfig(built.config.pairs), tmp_path / "new", progress=False)
    assert summary["videos_absent"] == built.summary["clips"]
    pairs = rows(tmp_path / "new", "preferences", tmp_path / "cache")
    assert {row["video"] for part in pairs.values() for row in part} == {None}
    media = json.loads((built.work / "media.json").read_text())
    again = reselect(tmp_path / "bare", ReselectConfig(built.config.pairs), tmp_path / "full", media, progress=False)
    assert again["videos_absent"] == 0


def test_what_cannot_be_is_one_line(built, tmp_path, capsys):
    with pytest.raises(KitError, match="judge 'nobody': has no scores in this dataset; it has reference, verifier"):
        reselect(built.output, ReselectConfig(judges=["nobody"]), tmp_path / "x", progress=False)
    with pytest.raises(KitError, match="every weight is 0"):
        reselect(built.output, ReselectConfig(weights={"reference": 0.0, "verifier": 0.0}), tmp_path / "x")
    with pytest.raises(KitError, match="needs another folder"):
        reselect(built.output, ReselectConfig(), built.output, progress=False)
    (tmp_path / "rules.yaml").write_text("pairs: {confirm: {model: m}}\n")
    with pytest.raises(KitError, match="makes no call"):
        load_rules(tmp_path / "rules.yaml")
    (tmp_path / "rules.yaml").write_text("pairs: {min_margin: 0.5}\n")
    words = [
        "reselect",
        str(tmp_path / "none"),
        "--config",
        str(tmp_path / "rules.yaml"),
        "--output",
        str(tmp_path / "y"),
        "--quiet",
    ]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_build_is_as_good_a_start_after_it_was_reselected(built, tmp_path):
    """A version of a version: the weights of the first are the defaults of the second."""
    rules = ReselectConfig(PairsConfig(min_margin=0.00001), weights={"reference": 3.0})
    reselect(built.output, rules, tmp_path / "one", progress=False)
    two = reselect(tmp_path / "one", ReselectConfig(PairsConfig(min_margin=0.00001)), tmp_path / "two", progress=False)
    assert two["stability"]["pairs_changed"] == 0
    assert build(built.config, built.output, work=built.work, progress=False) == built.summary  # untouched
