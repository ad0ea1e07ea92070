"""Stored answers and prediction files judged again; whose verdicts count as whose."""

import json
from dataclasses import dataclass, field

import pytest

from dataset_builder.errors import KitError
from dataset_builder.judges import Criterion, ReferenceJudge, error_scores, make_scores
from eval.__main__ import main
from eval.fingerprint import judge_record, same_judge, shared_model
from eval.predictions import read_predictions
from eval.rejudge import rejudge
from eval.results import MORE_FIELDS, Results
from eval.verdicts import judge_answers, verdict


@dataclass
class Listed:
    """A judge that says what its list says, by answer; no list entry is a failure. Counts what it is asked."""

    said: dict
    name: str = "listed"
    kind: str = "listed"
    model_name: str | None = "m"
    revision: str = "r1"
    settings: dict = field(default_factory=lambda: {"kind": "listed"})
    settings_hash: str = "s1"
    reported: set = field(default_factory=set)
    criteria: tuple = (Criterion("correct"), Criterion("score", 0, 5))
    needs_frames: bool = False
    num_frames: int = 0
    weight: float = 1.0
    asked: list = field(default_factory=list)

    def score(self, items):
        self.asked += [item.response for item in items]
        return [
            make_scores(self, self.said[i.response], rationale=f"saw {i.response}")
            if i.response in self.said
            else error_scores(self, "no verdict")
            for i in items
        ]


def answers(*texts) -> Results:
    rows = [
        {
            **{"question_id": f"q{n}", "video_id": f"v{n // 2}", "question_type": "", "question": "what ?"},
            **{"answers": ["red"], "response": text, "correct": None, "score": None, "error": "not judged yet"},
            **dict.fromkeys(MORE_FIELDS),
        }
        for n, text in enumerate(texts)
    ]
    return Results("m", "m", "", rows=rows)


def test_refusal_and_silence_are_wrong_and_a_judges_failure_is_none():
    judge = Listed({"red": (0.9, 5), "blue": (0.0, 0)})
    done = rejudge(answers("red", "blue", "", "I'm sorry, I cannot answer that.", "green", None), judge)
    assert [row["correct"] for row in done.rows] == [1, 0, 0, 0, None, None]
    assert judge.asked == ["red", "blue", "green"]  # neither silence nor a refusal costs a call
    assert [row["error"] for row in done.rows[4:]] == ["no verdict", "the model's answer is missing"]
    assert done.rows[0]["probability"] == 0.9 and done.rows[1]["probability"] is None
    assert done.rows[0]["reason"] == "saw red" and done.rows[0]["scores"] == {"correct": 0.9, "score": 5.0}
    assert done.mean_score().mean == pytest.approx(5 / 4)  # a refusal has the lowest score, not none
    assert done.failures() == {"no verdict": 1, "the model's answer is missing": 1}


def test_verdict_without_scores_or_with_an_odd_first_criterion():
    judge = Listed({})
    assert verdict([])["error"] == "the judge returned no score"
    odd = Listed({}, criteria=(Criterion("quality", 1, 5),))
    assert verdict(make_scores(odd, [3.0]))["correct"] == 1 and verdict(make_scores(odd, [2.0]))["correct"] == 0
    assert verdict(make_scores(odd, [3.0]))["probability"] is None  # a quality is no probability
    assert verdict(error_scores(judge, "why"))["error"] == "why"
    assert judge_answers([], [], judge) == []


def test_fingerprint_follows_everything_but_the_name():
    base = judge_record(Listed({}))
    assert same_judge(base, judge_record(Listed({}, name="other")))
    assert same_judge(base, judge_record(Listed({}, model_name="moved")))  # the revision is that of the weights
    for change in ({"revision": "r2"}, {"settings_hash": "s2"}, {"kind": "vqa"}, {"reported": {"m-1"}}):
        assert not same_judge(base, judge_record(Listed({}, **change)))
    old = {"name": "x", "revision": "r1", "settings_hash": "s1"}
    assert same_judge(base, old) and not same_judge(base, {**old, "revision": "r2"})


def test_an_evaluator_that_chose_the_pairs_is_found():
    trained = [
        {"name": "reference", "kind": "reference", "revision": "1"},
        {"name": "critic", "kind": "vlm", "revision": "endpoint:big-vlm", "model": "big-vlm"},
        {"name": "eyes", "kind": "visual", "revision": "abc"},
    ]
    assert shared_model(judge_record(Listed({}, revision="abc")), trained) == "eyes"
    assert shared_model(judge_record(Listed({}, model_name="big-vlm")), trained) == "critic"
    assert shared_model(judge_record(Listed({}, revision="endpoint:x", reported={"big-vlm"})), trained) == "critic"
    assert shared_model(judge_record(Listed({})), trained) is None
    assert shared_model(judge_record(ReferenceJudge()), trained) is None  # it compares: there is no model to share


def test_a_stopped_run_goes_on_and_failed_blocks_are_asked_again(tmp_path):
    texts = [f"answer {n}" for n in range(150)]
    good = {text: (1.0, 4) for text in texts}

    class Stops(Listed):
        def score(self, items):
            if len(self.asked) >= 64:
                raise KeyboardInterrupt
            return super().score(items)

    first = Stops(good)
    with pytest.raises(KeyboardInterrupt):
        rejudge(answers(*texts), first, work=tmp_path)
    second = Listed({**good, "answer 149": (0.0, 0)})
    del second.said["answer 100"]
    done = rejudge(answers(*texts), second, work=tmp_path)
    assert second.asked == texts[64:]
    assert [row["question_id"] for row in done.rows if row["correct"] is None] == ["q100"]
    third = Listed(good)
    again = rejudge(answers(*texts), third, work=tmp_path)
    assert third.asked == texts[64:128]  # the block with the failure; the last one is kept
    assert again.errors == 0 and again.rows[149]["correct"] == 0
    other = Listed(good, revision="r2")
    rejudge(answers(*texts), other, work=tmp_path)
    assert len(other.asked) == 150


PREDICTION = {
    "id": "v1_1",
    "modal_path": "msvd/clip1",
    "query": "<video>\nwhat colour is it ?",
    "answer": "red",
    "model_prediction": {"status": "success", "message": "red"},
}


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_prediction_files_of_llava_hounds_shape(tmp_path):
    captions = lines(tmp_path / "test.jsonl", {"id": "v1_1", "caption": "a red square"}, {"id": "x", "caption": "y"})
    file = lines(
        tmp_path / "llava.jsonl",
        PREDICTION,
        {**PREDICTION, "id": "v1_2", "model_prediction": {"status": "error", "message": "out of memory"}},
        {**PREDICTION, "id": "v1_1"},
        {**PREDICTION, "id": None},
        {**PREDICTION, "model_prediction": "red"},
        {key: value for key, value in PREDICTION.items() if key != "answer"},
        "{broken",
        {**PREDICTION, "id": 7, "caption": "its own"},
    )
    results, errors = read_predictions(file, captions)
    assert [row["question_id"] for row in results.rows] == ["7", "v1_1", "v1_2"]
    assert results.rows[1]["question"] == "what colour is it ?" and results.rows[1]["caption"] == "a red square"
    assert results.rows[0]["caption"] == "its own"
    assert results.rows[2]["response"] is None and "out of memory" in results.rows[2]["error"]
    assert [(e.row, e.field) for e in errors] == [
        (3, "id"),
        (4, "id"),
        (5, "model_prediction"),
        (6, "answer"),
        (7, None),
    ]
    done = rejudge(results, ReferenceJudge())
    assert [row["correct"] for row in done.rows] == [1, 1, None] and "out of memory" in done.rows[2]["error"]


def test_a_prediction_file_without_a_usable_row_is_one_line(tmp_path):
    with pytest.raises(KitError, match="no usable prediction") as caught:
        read_predictions(lines(tmp_path / "p.jsonl", {"id": 1}))
    assert "\n" not in str(caught.value)
    with pytest.raises(KitError, match="cannot be read"):
        read_predictions(tmp_path / "nothing.jsonl")


def test_the_command_judges_saves_and_exits_by_what_is_missing(tmp_path, capsys):
    settings = tmp_path / "judge.yaml"
    settings.write_text("judge:\n  kind: reference\nmax_unjudged: 0.4\n")
    good = {**PREDICTION, "id": "a"}
    bad = {**PREDICTION, "id": "b", "model_prediction": {"status": "error", "message": "lost"}}
    out = tmp_path / "deep" / "out.json"
    words = ["--judge", str(settings), "--output", str(out), "--name", "mine"]
    assert main(["rejudge", str(lines(tmp_path / "p.jsonl", good)), *words]) == 0
    assert Results.load(out).name == "mine" and Results.load(out).accuracy.mean == 1.0
    assert "accuracy 100.0%" in capsys.readouterr().out
    assert main(["rejudge", str(lines(tmp_path / "p.jsonl", good, "{")), *words]) == 3  # a row left out
    assert main(["rejudge", str(lines(tmp_path / "p.jsonl", good, bad)), *words]) == 5
    said = capsys.readouterr()
    assert "1 answers have no verdict" in said.out and "limit 40.0%" in said.err
    assert Results.load(out).errors == 1  # saved all the same
    assert main(["rejudge", str(tmp_path / "p.jsonl"), *words, "--max-unjudged", "0.5"]) == 0
    with pytest.raises(KitError, match="kind 'vqa'"):
        main(["rejudge", str(tmp_path / "p.jsonl"), *words, "--without-frames"])


def test_a_judge_that_looks_finds_the_videos_of_the_dataset(world, tmp_path):
    from dataset_builder.judges import VisualJudge
    from dataset_builder.models import load_model
    from eval.runner import evaluate, load_benchmark

    chat = load_model(world.checkpoints["qwen2_vl"], name="tiny", device="cpu")
    items = load_benchmark(world.dataset, "test")
    results = evaluate(chat, items)
    for row in results.rows:
        row["response"] = row["response"].strip() or "red"  # an untrained model may say nothing
    results.save(tmp_path / "in.json")
    settings = tmp_path / "judge.yaml"
    model = world.checkpoints["qwen2_vl"]
    settings.write_text(f"judge:\n  kind: visual\n  model: {model}\n  num_frames: 4\n")
    words = ["--judge", str(settings), "--output", str(tmp_path / "out.json"), "--dataset", str(world.dataset)]
    assert main(["rejudge", str(tmp_path / "in.json"), *words, "--trained-on", str(world.dataset)]) == 0
    done = Results.load(tmp_path / "out.json")
    direct = rejudge(results, VisualJudge(chat, num_frames=4), {item.question_id: item.video for item in items})
    assert [row["scores"] for row in done.rows] == [row["scores"] for row in direct.rows]
    assert done.errors == 0 and done.self_judged is None and done.judge["settings"]["frames"]["count"] == 4
