"""Parts of the LightEval adapter in this process: blocks of answers, blind frames, names of repos, the metric."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dataset_builder.errors import KitError
from tests.endpoints.stub import StubServer, frame_count, message_text


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from dataset_builder.toy import generate_toy

    folder = tmp_path_factory.mktemp("clips")
    generate_toy(folder, seed=2, clips={"test": 2}, types=("colour",))
    return str(folder / "videos" / "test-00000.mp4"), str(folder / "videos" / "test-00001.mp4")


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Write the settings of this process; what is kept between runs goes into the test's folder."""

    def write(name: str = "eval", **values) -> None:
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({"cache": str(tmp_path / "cache"), **values}))
        monkeypatch.setenv("MMAIP_V_EVAL", str(path))

    write()
    return write


def documents(count: int, video: str | None = None, task: str = "webvid_qa|0") -> list:
    from lighteval.tasks.requests import Doc

    from eval.lighteval_adapter import VideoFrames

    return [
        Doc(
            task_name=task,
            query=f"question {n} ?",
            choices=["red"],
            gold_index=[0],
            id=str(n),
            images=VideoFrames(video=video),
            specific={"question_id": f"q{n}", "video_id": f"v{n // 2}", "question_type": "colour", "caption": ""},
        )
        for n in range(count)
    ]


class _Model:
    """Answers with the question's number, batch by batch, until it breaks."""

    def __init__(self, breaks_at: int | None = None):
        self.asked, self.breaks_at = [], breaks_at

    def __call__(self, docs: list) -> list:
        from eval.lighteval_adapter import response

        if self.breaks_at is not None and len(self.asked) >= self.breaks_at:
            raise KeyboardInterrupt
        self.asked.append([doc.id for doc in docs])
        return [response("" if n % 5 == 0 else f"answer {doc.id}") for n, doc in enumerate(docs)]


def cache_for(model: str, folder, settings=None):
    from lighteval.models.abstract_model import ModelConfig

    from eval.lighteval_adapter import RUN, PredictionCache

    RUN.fingerprints["webvid_qa"] = "content"
    cache = PredictionCache(ModelConfig(model_name=model, cache_dir=str(folder)), "revision", settings)
    config = SimpleNamespace(version=1, generation_size=16)
    cache._init_registry(SimpleNamespace(task_to_configs={"webvid_qa": [config]}))
    return cache


def test_a_stopped_run_keeps_its_blocks_and_goes_on_with_the_same_ones(tmp_path, monkeypatch, settings):
    from eval.lighteval_adapter import answer_through_cache, predictions

    monkeypatch.setattr(predictions, "BLOCK", 4)
    docs = documents(11)
    whole = _Model()
    expected = [r.text for r in answer_through_cache(cache_for("m", tmp_path / "whole"), docs, whole)]
    assert sorted(map(len, whole.asked)) == [3, 4, 4]

    stopped, folder = _Model(breaks_at=2), tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        answer_through_cache(cache_for("m", folder), docs, stopped)
    rest = _Model()
    replies = answer_through_cache(cache_for("m", folder), docs[::-1], rest)
    assert stopped.asked + rest.asked == whole.asked  # cut the same way, whatever order LightEval shuffled them into
    assert [r.text for r in replies[::-1]] == expected
    assert sum(text == [""] for text in expected) == 3  # empty answers are answers, and stay in their places


def test_failures_are_asked_again_and_other_decoding_never_shares_answers(tmp_path, settings):
    from eval.lighteval_adapter import answer_through_cache, response, response_error

    docs = documents(3)
    seen: list = []

    def failing(asked):
        seen.append(len(asked))
        return [response(None, "no video") if doc.id == "1" else response("fine") for doc in asked]

    replies = answer_through_cache(cache_for("m", tmp_path), docs, failing)
    assert [response_error(reply) for reply in replies] == [None, "no video", None]
    answer_through_cache(cache_for("m", tmp_path), docs, failing)
    settings("blind", blind=True)
    answer_through_cache(cache_for("m", tmp_path), docs, failing)
    assert seen == [3, 1, 3]


def test_a_blind_document_shows_nothing_to_the_model_and_the_video_to_the_judge(clip, settings):
    from eval.lighteval_adapter import VideoFrames, doc_frames, video_doc

    row = {"question_id": "q", "video_id": "v", "question": "what ?", "answers": ["red"], "question_type": None}
    row["video"] = {"bytes": None, "path": clip[0]}
    seeing = video_doc(row, "t|0")
    assert len(seeing.images) == 8 and len(doc_frames(seeing, 3)) == 3
    settings("blind", blind=True)
    blind = video_doc(row, "t|0")
    assert isinstance(blind.images, VideoFrames) and list(blind.images) == [] and doc_frames(blind, 3) is None
    assert len(blind.images.frames(5)) == 5
    assert blind.specific == {"question_id": "q", "video_id": "v", "question_type": "", "caption": ""}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("NAMESPACE/model", "NAMESPACE__model"),
        ("NAMESPACE/model@v1", "NAMESPACE__model_v1"),
        ("a--b..c", "a-b.c"),
        ("x" * 200, "x" * 70),
        ("--", "model"),
    ],
)
def test_names_of_repos(name, part):
    from huggingface_hub.utils import validate_repo_id

    from eval.lighteval_adapter.endings import repo_part

    assert repo_part(name) == part
    validate_repo_id(f"NAMESPACE/details_{repo_part(name)}_private")


def test_a_folder_gives_its_own_name_to_a_repo(tmp_path, monkeypatch):
    from eval.lighteval_adapter.endings import repo_part

    (tmp_path / "my model").mkdir()
    assert repo_part(str(tmp_path / "my model")) == "my_model"
    monkeypatch.chdir(tmp_path / "my model")
    assert repo_part(".") == "my_model"


def item(verdict, video, **scores):
    return {"correct": verdict, "video_id": video, "scores": json.dumps(scores) if scores else None}


def test_figures_of_a_task():
    from eval.metric import ClusteredFigures
    from eval.stats import cluster_mean

    items = [
        item(1.0, "a", correct=0.9, score=5),
        item(0.0, "a", correct=0.2, score=1),
        item(1.0, "b", correct=1, score=3),
    ]
    figures = ClusteredFigures().compute_corpus([*items, item(None, "c")])
    accuracy, score = cluster_mean([1, 0, 1], ["a", "a", "b"]), cluster_mean([5, 1, 3], ["a", "a", "b"])
    assert figures == {
        "accuracy": accuracy.mean, "accuracy_stderr": accuracy.se,
        "accuracy_ci95_lo": accuracy.low, "accuracy_ci95_hi": accuracy.high,
        "score": score.mean, "score_stderr": score.se, "score_ci95_lo": score.low, "score_ci95_hi": score.high,
        "unjudged": 1.0,
    }  # fmt: skip
    assert ClusteredFigures().compute_corpus([item(None, "a")]) == {"unjudged": 1.0}
    one = ClusteredFigures().compute_corpus(items[:2])
    assert all(math.isfinite(value) for value in one.values()) and "accuracy_stderr" not in one


def judged(docs, answers):
    from eval.lighteval_adapter import RUN, response
    from eval.metric import JudgedVerdict

    RUN.model_revision = "weights"
    replies = [response(None, a.args[0]) if isinstance(a, Exception) else response(a) for a in answers]
    return JudgedVerdict().compute(docs, replies)


def test_an_endpoint_judge_through_the_metric(clip, settings):
    """What it is shown, what becomes of its replies, and that nothing is asked twice."""
    shown: list[int] = []

    def reply(body):
        text = message_text(body["messages"])
        shown.append(frame_count(body["messages"]))
        if "question 3 ?" in text and len(shown) < 20:
            return "I would rather not say."
        right = "question 1 ?" in text
        return json.dumps({"correct": "yes" if right else "no", "score": 4 if right else 1, "reason": "seen"})

    with StubServer(reply=reply) as stub:
        endpoint = {"base_url": stub.url, "max_retries": 0, "backoff": 0.0}
        settings(judge={"kind": "vqa", "model": "judge", "num_frames": 3, "endpoint": endpoint, "probability": False})
        answers = ["red", "blue", "", "green", "I'm sorry, but I cannot answer that.", KitError("no video here")]
        rows = judged(documents(6, clip[0]), answers)
        assert [row["correct"] for row in rows] == [0.0, 1.0, 0.0, None, 0.0, None]
        assert [row["question_id"] for row in rows] == [f"q{n}" for n in range(6)]
        assert shown == [3] * 3  # silence, refusal and failure cost no call
        assert json.loads(rows[1]["scores"]) == {"correct": 1.0, "score": 4.0} and rows[1]["reason"] == "seen"
        assert rows[2]["reason"] and rows[4]["reason"] and rows[5]["error"] == "no video here" and rows[3]["error"]
        record = json.loads(rows[0]["judge"])
        assert record["kind"] == "vqa" and record["reported"] and record["settings"]["frames"]["count"] == 3
        assert len({row["judge"] for row in rows}) == 1

        calls = stub.calls
        shown += [0] * 20
        again = judged(documents(6, clip[0]), answers)
        assert stub.calls == calls + 1  # only the one that had no verdict
        assert [row["correct"] for row in again] == [0.0, 1.0, 0.0, 0.0, 0.0, None]


def test_frames_of_many_videos_are_not_held_at_once(clip, settings, monkeypatch):
    """A judge that looks is given frames block by block."""
    import gc
    import weakref

    from dataset_builder.judges import Criterion, make_scores
    from eval import metric, rejudge

    alive: list = []

    class Judge:
        name, kind, model_name, revision, reported, weight = "looking", "visual", "m", "r", frozenset(), 1.0
        settings, settings_hash, criteria, needs_frames, num_frames, most = {}, "h", (Criterion("correct"),), True, 2, 0

        def score(self, items):
            alive.extend(weakref.ref(item) for item in items)
            gc.collect()
            self.most = max(self.most, sum(ref() is not None for ref in alive))
            assert all(len(item.frames) == 2 for item in items)
            return [make_scores(self, [1.0]) for _ in items]

    judge = Judge()
    monkeypatch.setattr(metric, "make_judge", lambda *rest: judge)
    monkeypatch.setattr(rejudge, "BLOCK", 4)
    rows = judged(documents(12, clip[1]), ["red"] * 12)
    assert [row["correct"] for row in rows] == [1.0] * 12 and 4 <= judge.most <= 8


def test_importing_leaves_gradients_on():
    code = "import torch, eval.lighteval_adapter, eval.metric, eval.tasks; assert torch.is_grad_enabled()"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
