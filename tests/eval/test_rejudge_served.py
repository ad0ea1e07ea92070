"""Prediction files judged through an endpoint, end to end: three kinds of judge, the report, a kill in the middle."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dataset_builder.errors import KitError
from eval.__main__ import main
from eval.results import Results
from tests.endpoints.stub import StubServer, frame_count, message_text

QUESTIONS = 24


def reply(body: dict) -> str:
    """A judge that compares the fenced answer with the references; it knows each protocol's form by its prompt."""
    text = message_text(body["messages"])
    answer = re.search(r"\[ANSWER (\w+)\]\n(.*)\n\[END \1\]", text, re.DOTALL)[2]
    known = re.search(r"(?:Correct answer|Reference answers[^:]*): (.*)", text)[1]
    right = answer.strip().lower() in known.lower().split(" | ")
    if "'pred'" in text:
        return str({"pred": "yes" if right else "no", "score": 5 if right else 1})
    if "Caption:" in text:
        return f"Score: {4 if right else 2}"
    seen = frame_count(body["messages"])
    return json.dumps({"correct": "yes" if right else "no", "score": 5 if right else 0, "reason": f"saw {seen} frames"})


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Two models' prediction files, the test file with captions, and the videos."""
    from dataset_builder.toy import generate_toy

    folder = tmp_path_factory.mktemp("hound")
    generate_toy(folder / "toy", seed=3, clips={"test": 8}, types=("colour", "count", "shape"))
    rows = [json.loads(line) for line in (folder / "toy" / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == QUESTIONS
    for model, good in (("strong", lambda n: n % 6 != 0), ("weak", lambda n: n % 2 == 0)):
        lines = [
            {
                "id": row["id"],
                "modal_path": row["video"],
                "query": f"<video>\n{row['question']}",
                "answer": row["answer"],
                "model_prediction": {"status": "success", "message": row["answer"] if good(n) else "nothing"},
            }
            for n, row in enumerate(rows)
        ]
        (folder / f"{model}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    captions = [{"id": row["id"], "caption": "a shape moves"} for row in rows]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    return folder


def settings(path: Path, url: str, **judge) -> str:
    endpoint = {"base_url": url, "concurrency": 4, "max_retries": 1, "backoff": 0.01}
    path.write_text(yaml.safe_dump({"judge": {"model": "stub", "endpoint": endpoint, **judge}}))
    return str(path)


def test_two_prediction_files_judged_in_three_ways_and_compared(files, tmp_path, capsys):
    with StubServer(reply=reply) as stub:
        for kind in ("vqa", "video_chatgpt", "hound"):
            judge = settings(tmp_path / f"{kind}.yaml", stub.url, kind=kind)
            more = {
                "vqa": ["--videos", str(files / "toy" / "videos")],
                "hound": ["--captions", str(files / "captions.jsonl")],
            }
            for model in ("strong", "weak"):
                words = [
                    str(files / f"{model}.jsonl"),
                    "--judge",
                    judge,
                    "--output",
                    str(tmp_path / f"{model}-{kind}.json"),
                ]
                assert main(["rejudge", *words, *more.get(kind, [])]) == 0
    strong, weak = (Results.load(tmp_path / f"{model}-vqa.json") for model in ("strong", "weak"))
    assert (strong.accuracy.mean, weak.accuracy.mean) == (pytest.approx(20 / 24), pytest.approx(12 / 24))
    assert {row["reason"] for row in strong.rows} == {"saw 8 frames"}
    assert strong.mean_score().mean == pytest.approx(5 * 20 / 24)
    assert strong.judge["reported"] == ["stub-stub"] and strong.judge["model"] == "stub"
    for kind in ("video_chatgpt", "hound"):
        assert Results.load(tmp_path / f"weak-{kind}.json").accuracy.mean == pytest.approx(12 / 24)
    report = [
        "--markdown",
        str(tmp_path / "r.md"),
        "--json",
        str(tmp_path / "r.json"),
        "--png",
        str(tmp_path / "r.png"),
    ]
    pair = [str(tmp_path / f"{model}-vqa.json") for model in ("strong", "weak")]
    capsys.readouterr()
    assert main(["compare", *pair, *report]) == 0
    assert "| strong − weak | +33.3 |" in capsys.readouterr().out
    with pytest.raises(KitError, match="--different-judges"):
        main(["compare", pair[0], str(tmp_path / "weak-hound.json")])
    assert (
        main(["agreement", pair[1], str(tmp_path / "weak-hound.json"), str(tmp_path / "weak-video_chatgpt.json")]) == 0
    )
    assert "Krippendorff's α over 24 answers: 1.00" in capsys.readouterr().out


def test_without_frames_and_without_captions(files, tmp_path):
    with StubServer(reply=reply) as stub:
        vqa = settings(tmp_path / "vqa.yaml", stub.url, kind="vqa")
        words = [str(files / "weak.jsonl"), "--judge", vqa, "--output", str(tmp_path / "text.json")]
        assert main(["rejudge", *words, "--without-frames"]) == 0
        calls = stub.calls
        hound = settings(tmp_path / "hound.yaml", stub.url, kind="hound")
        words = [str(files / "weak.jsonl"), "--judge", hound, "--output", str(tmp_path / "hound.json")]
        assert main(["rejudge", *words]) == 5  # no captions: no verdict, and no call
        assert stub.calls == calls
    text = Results.load(tmp_path / "text.json")
    assert {row["reason"] for row in text.rows} == {"saw 0 frames"}
    assert "caption" in next(iter(Results.load(tmp_path / "hound.json").failures()))


def test_a_killed_run_repeats_no_call_that_was_answered(files, tmp_path):
    with StubServer(reply=reply, latency=0.15) as stub:
        judge = settings(tmp_path / "vqa.yaml", stub.url, kind="vqa")
        words = [sys.executable, "-m", "eval", "rejudge", str(files / "strong.jsonl"), "--judge", judge]
        words += ["--videos", str(files / "toy" / "videos"), "--output", str(tmp_path / "out.json")]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while stub.calls < 12 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (tmp_path / "out.json").exists() and 12 <= stub.calls < QUESTIONS
        in_flight = 4  # the endpoint's concurrency: only these may be asked again
        assert subprocess.run(words, capture_output=True, timeout=300).returncode == 0
        assert stub.stats()["distinct"] == QUESTIONS and stub.stats()["repeated"] <= in_flight
        done = stub.calls
        assert subprocess.run(words, capture_output=True, timeout=300).returncode == 0
        assert stub.calls == done
    assert Results.load(tmp_path / "out.json").errors == 0
