"""Estimates: every formula with a known answer, and counting that opens no video."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dataset_builder
from dataset_builder.__main__ import main, parser
from dataset_builder.errors import KitError
from dataset_builder.estimate import CRITERIA, count_sources, estimate
from dataset_builder.settings import BuildConfig, ConfirmConfig, from_dict, load_build_config

SHAPE = Path(dataset_builder.__file__).parent / "configs" / "mmaip_v.yaml"
SERVED = {"base_url": "http://127.0.0.1:9/v1", "concurrency": 4}
PRICE = {"prompt": 1.0, "completion": 2.0, "frame_tokens": 100}
SOURCE = {"kind": "folder", "videos": "clips", "questions": "q.jsonl", "redistribute": True, "license": "cc0-1.0"}


def make(**changes) -> BuildConfig:
    """A served and a local member, three judges."""
    served = SERVED | {"price": PRICE}
    plain = {
        "sources": [SOURCE],
        "zoo": [
            {"name": "far", "model": "m", "samples": 2, "endpoint": served, "decoding": {"max_new_tokens": 100}},
            {"name": "near", "model": "m", "decoding": {"max_new_tokens": 16}},
        ],
        "judges": [
            {"kind": "reference"},
            {"kind": "visual", "model": "m", "num_frames": 4},
            {"kind": "vlm", "model": "m", "endpoint": served},
        ],
    }
    return from_dict(plain | changes, BuildConfig, "test")


def row(found, name: str) -> tuple:
    """Where, calls, frames, prompt tokens, completion tokens of one row."""
    one = next(entry for entry in found.rows if entry.name == name)
    return one.where, one.calls, one.frames, one.prompt_tokens, one.completion_tokens


def test_known_answers():
    found = estimate(make(), questions=10, videos=4)
    assert [entry.name for entry in found.rows] == ["far", "near", "reference", "visual", "vlm"]
    assert row(found, "far") == ("endpoint", 20, 160, 20 * (8 * 100 + 40), 2_000)
    assert row(found, "near") == ("local", 10, 80, 10 * (8 * 256 + 40), 160)
    assert row(found, "reference") == ("no model", 0, 0, 0, 0)
    assert row(found, "visual") == ("local", 30, 120, 30 * (4 * 256 + 320), 30)
    assert row(found, "vlm") == ("endpoint", 30, 240, 30 * (8 * 100 + 320), 30 * 256)
    money = {entry.name: entry.money for entry in found.rows if entry.money}
    assert money == {
        "far": pytest.approx((16_800 * 1 + 2_000 * 2) / 1e6),  # 0.0208
        "vlm": pytest.approx((33_600 * 1 + 7_680 * 2) / 1e6),  # 0.04896
    }
    assert found.money == pytest.approx(0.06976)
    assert (found.answers, found.scores) == (30, 30 * (2 + 1 + 4))
    assert found.storage_bytes == 30 * 900 + 210 * 260
    assert found.video_bytes == 4 * 2_000_000


def test_known_hours():
    """Endpoints side by side and beside the local models, local models one after the other, stage after stage."""
    found = estimate(make(), questions=10, videos=4, latency=4.0, local_seconds=1.0)
    seconds = {entry.name: entry.hours * 3600 for entry in found.rows}
    assert seconds == {
        "far": pytest.approx(20 * 4 / 4),
        "near": pytest.approx(10),
        "reference": 0,
        "visual": pytest.approx(30),
        "vlm": pytest.approx(30 * 4 / 4),
    }
    assert found.hours * 3600 == pytest.approx(max(20, 10) + max(30, 30))
    slow = estimate(make(), questions=10, videos=4, latency=4.0, local_seconds=3.0)
    assert slow.hours * 3600 == pytest.approx(max(20, 30) + max(90, 30))
    config = make()
    two = replace(config, zoo=[config.zoo[1], replace(config.zoo[1], name="other")])
    assert estimate(two, 10, 4).hours * 3600 == pytest.approx(10 + 10 + 20)  # visual: 20 answers, vlm 20 s


@pytest.mark.parametrize(("limit", "seconds"), [(None, 20), (120, 20), (60, 20), (30, 40), (2, 600)])
def test_a_rate_limit_counts_when_it_is_the_narrower(limit, seconds):
    config = make()
    far = config.zoo[0]
    limited = replace(far, endpoint=replace(far.endpoint, requests_per_minute=limit))
    found = estimate(replace(config, zoo=[limited]), 10, 4)
    assert found.rows[0].hours * 3600 == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("pairs", "calls"),
    [
        ({}, 2 * 10),
        ({"select": "all"}, 2 * 10 * 3),  # three answers make three pairs
        ({"select": "all", "max_per_question": 2}, 2 * 10 * 2),
    ],
)
def test_confirmation_shows_every_pair_twice(pairs, calls):
    config = make(pairs=pairs | {"confirm": {"model": "m", "endpoint": SERVED | {"price": PRICE}}})
    found = estimate(config, 10, 4)
    assert row(found, "confirm") == ("endpoint", calls, calls * 8, calls * (8 * 100 + 320), calls * 128)
    assert found.hours == pytest.approx(estimate(make(), 10, 4).hours + calls * 4 / 4 / 3600)


def test_a_model_that_writes_questions_is_counted():
    member = {"name": "asker", "model": "m", "endpoint": SERVED | {"price": PRICE}}
    source = {"kind": "generated", "videos": "clips", "member": member, "per_video": 3}
    found = estimate(make(sources=[source]), questions=12, videos=4)
    assert found.rows[0].stage == "asking"
    assert row(found, "asker") == ("endpoint", 4, 32, 4 * (8 * 100 + 120), 4 * 3 * 48)
    assert found.hours == pytest.approx(estimate(make(), 12, 4).hours + 4 * 4 / 4 / 3600)
    captions = estimate(make(sources=[source | {"captions": "c.jsonl"}]), 12, 4)
    assert row(captions, "asker") == ("endpoint", 4, 0, 4 * 120, 4 * 3 * 48)  # no frames are sent


def test_videos_that_may_not_be_passed_on_take_no_room():
    assert estimate(make(ids_only=True), 10, 4).video_bytes == 0
    assert estimate(make(sources=[SOURCE | {"redistribute": None}]), 10, 4).video_bytes == 0


def test_scores_of_a_judge_are_what_the_judges_give():
    from dataset_builder import judges

    made = (judges.ReferenceJudge, judges.VisualJudge, judges.VLMJudge)
    made += (judges.VQAJudge, judges.VideoChatGPTJudge, judges.HoundJudge)
    assert {judge.kind: len(judge.criteria) for judge in made} == CRITERIA


@given(questions=st.integers(1, 10**7), videos=st.integers(1, 10**6), times=st.integers(1, 1000))
def test_everything_grows_with_the_questions(questions, videos, times):
    one, many = estimate(make(), questions, videos), estimate(make(), questions * times, videos * times)
    for left, right in zip(one.rows, many.rows, strict=True):
        for key in ("calls", "frames", "prompt_tokens", "completion_tokens"):
            assert getattr(right, key) == getattr(left, key) * times
    assert many.money == pytest.approx(one.money * times) and many.hours == pytest.approx(one.hours * times)
    assert many.storage_bytes == one.storage_bytes * times and many.video_bytes == one.video_bytes * times


@pytest.mark.parametrize(("questions", "videos", "times"), [(24_000, 8_000, 1), (2_400_000, 800_000, 100)])
def test_the_papers_shape(questions, videos, times, capsys):
    found = estimate(load_build_config(SHAPE), questions, videos)
    members = [entry for entry in found.rows if entry.stage == "sampling"]
    for member in members:  # 2 samples, 16 frames of 256 tokens, 512 new tokens, 0.1 and 0.3 a million
        assert member.calls == 48_000 * times and member.frames == 768_000 * times
        assert member.prompt_tokens == 198_528_000 * times and member.completion_tokens == 24_576_000 * times
        assert member.money == pytest.approx(27.2256 * times)
    critic = next(entry for entry in found.rows if entry.name == "critic")
    assert critic.calls == 192_000 * times and critic.money == pytest.approx(398.1312 * times)
    assert found.money == pytest.approx(507.0336 * times)
    # 192,000 answers watched one a second by one local verifier: what takes longest.
    assert found.hours == pytest.approx((48_000 * 4 / 64 + 192_000) / 3600 * times)
    assert found.video_bytes == 0
    words = ["--questions", str(questions), "--videos", str(videos)]
    assert main(["estimate", str(SHAPE), *words]) == 0
    said = capsys.readouterr().out
    assert f"{found.money:,.2f}" in said and "assumed" in said and "4 s a call" in said


def test_a_hundred_times_the_papers_questions_take_a_hundred_times_as_much():
    """Also with the pair judge: every count exactly, money and hours but for the last bits of a float."""
    config = load_build_config(SHAPE)
    confirm = {"model": "m", "endpoint": SERVED | {"price": PRICE}}
    with_confirm = replace(config, pairs=replace(config.pairs, confirm=from_dict(confirm, ConfirmConfig, "test")))
    for shape in (config, with_confirm):
        one, many = estimate(shape, 24_000, 8_000), estimate(shape, 2_400_000, 800_000)
        for left, right in zip(one.rows, many.rows, strict=True):
            assert (left.name, left.stage, left.where) == (right.name, right.stage, right.where)
            for key in ("calls", "frames", "prompt_tokens", "completion_tokens"):
                assert getattr(right, key) == 100 * getattr(left, key)
            assert right.money == pytest.approx(100 * left.money, rel=1e-12)
            assert right.hours == pytest.approx(100 * left.hours, rel=1e-12)
        assert many.storage_bytes == 100 * one.storage_bytes
        assert (many.money, many.hours) == pytest.approx((100 * one.money, 100 * one.hours), rel=1e-12)


def test_every_assumption_is_printed():
    said = str(estimate(make(), 10, 4, latency=2.5, local_seconds=0.5, video_mb=3.25)).splitlines()[-1]
    for words in (
        "10 questions on 4 videos",
        "2.5 s a call at an endpoint",
        "0.5 s with a local model",
        "40 text tokens a question",
        "320 a verdict",
        "120 a request for questions",
        "256 tokens a frame for local models",
        "900 bytes an answer",
        "260 a score",
        "3.25 MB a video",
    ):
        assert words in said


def test_counting_opens_no_video(tmp_path):
    """The videos here are empty files: only names count."""
    clips = tmp_path / "clips"
    for name in ("a.mp4", "b.mkv", "notes.txt", ".hidden.mp4", "deep/c.webm", "frames/1.jpg", "frames/2.jpg"):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
        (clips / name).touch()
    lines = [
        {"video": "a", "question": "Who?"},
        {"video": "a", "question": "What?"},
        {"video": "b", "question": "Why?"},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "not json\n")
    turns = [{"from": who, "value": "x"} for who in ("human", "gpt", "human", "gpt")]
    (tmp_path / "s.json").write_text(json.dumps([{"id": "1", "video": "a", "conversations": turns}]))
    (tmp_path / "c.jsonl").write_text('{"video": "a", "caption": "A cat."}\n')
    member = {"name": "asker", "model": "m"}
    folder = {"kind": "folder", "videos": str(clips), "questions": str(tmp_path / "q.jsonl")}
    sharegpt = {"kind": "sharegpt", "videos": str(clips), "questions": str(tmp_path / "s.json")}
    generated = {"kind": "generated", "videos": str(clips), "member": member, "per_video": 2}
    assert count_sources(make(sources=[folder])) == (3, 2)
    assert count_sources(make(sources=[sharegpt])) == (2, 1)
    assert count_sources(make(sources=[folder, sharegpt])) == (5, 3)
    assert count_sources(make(sources=[generated])) == (8, 4)  # a folder of frames is one video
    assert count_sources(make(sources=[generated | {"captions": str(tmp_path / "c.jsonl")}])) == (2, 1)
    hub = {"kind": "hub", "dataset": "a/b", "columns": {"video": "v", "question": "q"}}
    assert count_sources(make(sources=[folder, hub])) is None
    shutil.rmtree(clips)
    with pytest.raises(KitError, match="there is no such folder"):
        count_sources(make(sources=[generated]))
    (tmp_path / "q.jsonl").unlink()
    with pytest.raises(KitError, match="there is no such file"):
        count_sources(make(sources=[folder]))


def test_what_cannot_be_counted_is_asked_for(capsys):
    assert main(["estimate", str(SHAPE)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["estimate", str(SHAPE.with_name("import_preferences.yaml"))]) == 0
    assert "nothing is asked" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--questions", "0"], ["--latency", "0"], ["--latency", "nan"], ["--videos", "-1"]])
def test_numbers_that_make_no_sense_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["estimate", "x.yaml", *words])
    assert "must be" in capsys.readouterr().err
