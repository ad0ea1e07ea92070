"""The recipe that trains a small judge from released judge scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dataset_builder.errors import KitError
from dataset_builder.judges import ReferenceJudge, make_judge
from dataset_builder.judges.visual import VERIFIER_PROMPT
from recipes.train_evaluator import clips, examples, main, videos_of
from tests.recipes.zoo_world import make_world

CONFIG = str(Path(__file__).parents[2] / "recipes" / "configs" / "evaluator.yaml")


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A dataset whose `responses` carry the scores of a reference judge."""
    return make_world(tmp_path_factory.mktemp("released") / "mmaip-v")


def test_examples_take_one_judges_scores_or_the_aggregate(released):
    name = ReferenceJudge().name
    whole, _ = examples(released, "train", None, None, 0.5)
    match, without = examples(released, "train", name, "match", 0.5)
    assert whole and match and without == 0
    assert {e.right for e in match} == {True, False}
    strict, _ = examples(released, "train", name, None, 1.0)  # the mean of its criteria has to be full
    assert [e for e in strict if e.right] == [e for e in match if e.right]
    assert len({(e.video_id, e.question, e.answer) for e in match}) == len(match)  # the same answer twice is one
    assert examples(released, "validation", None, None, 0.5)[0] == []


@pytest.mark.parametrize(("judge", "criterion"), [("nobody", None), (ReferenceJudge().name, "beauty")])
def test_an_unknown_judge_is_one_line_that_names_those_there(released, judge, criterion):
    with pytest.raises(KitError, match="reference:f1, reference:match") as caught:
        examples(released, "train", judge, criterion, 0.5)
    assert "\n" not in str(caught.value)


def test_clips_hold_balanced_verdicts_in_the_visual_judges_words(released):
    found, _ = examples(released, "train", None, None, 0.5)
    videos = videos_of(released, "train", None)
    made = clips(found, videos)
    turns = [turn for clip in made for turn in clip.turns]
    assert len(turns) == len(found) and {turn.answer for turn in turns} == {"yes", "no"}
    weight = {said: sum(turn.weight for turn in turns if turn.answer == said) for said in ("yes", "no")}
    assert weight["yes"] == pytest.approx(weight["no"])
    first = next(e for e in found if e.video_id == found[0].video_id)
    assert VERIFIER_PROMPT.format(question=first.question, answer=first.answer) in {turn.question for turn in turns}
    with pytest.raises(KitError, match="nothing can be learned"):
        clips([e for e in found if e.right], videos)


def test_the_recipe_writes_a_judge_and_says_how_it_agrees(released, base, tmp_path, capsys):
    words = ["--config", CONFIG, "--dataset", str(released), "--model_name_or_path", str(base)]
    words += ["--output_dir", str(tmp_path / "judge"), "--max_steps", "2", "--per_device_train_batch_size", "4"]
    words += ["--gradient_accumulation_steps", "1", "--use_cpu", "true"]
    main(words)
    record = json.loads((tmp_path / "judge" / "judge_training.json").read_text())
    assert record["steps"] == 2 and record["target"]["judge"] == "aggregate" and record["clips"] > 0
    assert "validation answers" in capsys.readouterr().out
    judge = make_judge({"kind": "visual", "model": str(tmp_path / "judge")}, device="cpu")
    assert judge.revision and str(released) not in json.dumps(record)
    with pytest.raises(KitError, match="model_name_or_path is needed"):
        main(["--config", CONFIG, "--dataset", str(released)])


def test_checkpoints_stay_until_the_judge_is_there(released, base, tmp_path, monkeypatch, capsys):
    """A stop while it is measured loses nothing of the training."""
    import recipes.train_evaluator as recipe

    words = ["--config", CONFIG, "--dataset", str(released), "--model_name_or_path", str(base), "--use_cpu", "true"]
    words += ["--output_dir", str(tmp_path / "judge"), "--max_steps", "2", "--per_device_train_batch_size", "4"]
    words += ["--gradient_accumulation_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    main(words)
    whole = (tmp_path / "judge" / "judge_training.json").read_text()
    shutil.rmtree(tmp_path / "judge")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipe, "measure", lambda *_: exec("raise KeyboardInterrupt"))
        main(words)
    assert (tmp_path / ".judge-work" / "checkpoint-2").is_dir() and not (tmp_path / "judge").exists()
    main(words)
    assert f"going on at {tmp_path}/.judge-work/checkpoint-2" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["judge"]
    assert (tmp_path / "judge" / "judge_training.json").read_text() == whole
