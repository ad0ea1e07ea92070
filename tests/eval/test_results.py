"""Evaluating in one process, saved results, and their comparison."""

import json
import os

import pytest

from dataset_builder.errors import KitError
from eval.__main__ import main
from eval.results import MORE_FIELDS, Results, benchmark_fingerprint, compare
from eval.runner import FramesCache, MediaIndex, evaluate, load_benchmark


def results_of(name: str, verdicts, videos=None) -> Results:
    rows = [
        {
            "question_id": f"q{i}",
            "video_id": (videos or range(len(verdicts)))[i],
            "question_type": "colour" if i % 2 else "count",
            "question": "what ?",
            "answers": ["red"],
            "response": "red" if correct else "blue",
            "correct": correct,
            "score": None if correct is None else float(correct),
            "error": None if correct is not None else "no reference",
            **dict.fromkeys(MORE_FIELDS),
        }
        for i, correct in enumerate(verdicts)
    ]
    return Results(name=name, model=f"models/{name}", model_revision="0123456789abcdef", rows=rows)


def test_save_load_round_trip_is_exact_and_deterministic(tmp_path):
    results = results_of("dpo", [1, 0, None, 1])
    results.save(tmp_path / "deep" / "r.json")
    first = (tmp_path / "deep" / "r.json").read_bytes()
    assert Results.load(tmp_path / "deep" / "r.json") == results
    results.save(tmp_path / "deep" / "r.json")
    assert (tmp_path / "deep" / "r.json").read_bytes() == first
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.json"]


def test_rows_without_a_verdict_are_neither_right_nor_wrong():
    results = results_of("dpo", [1, 0, None, 1])
    assert (results.errors, results.accuracy.n) == (1, 3)
    assert results.accuracy.mean == pytest.approx(2 / 3)
    assert set(results.accuracy_by_type()) == {"colour", "count"}
    with pytest.raises(KitError, match="no reference"):
        _ = results_of("dpo", [None, None]).accuracy


def test_compare_matches_by_question_and_counts_what_it_leaves_out():
    a, b = results_of("a", [1, 1, 1, None, 1]), results_of("b", [0, 1, 0, 1])
    b.rows.reverse()
    paired = compare(a, b, draws=1000)
    assert (paired.n, paired.left_out) == (3, 2)
    assert paired.difference == pytest.approx(2 / 3)
    assert compare(b, a, draws=1000).difference == -paired.difference


def test_compare_refuses_different_benchmarks():
    a, b = results_of("a", [1, 0]), results_of("b", [1, 0])
    b.rows[1]["answers"] = ["green"]
    with pytest.raises(KitError, match="'answers' of question q1"):
        compare(a, b)
    for row in b.rows:
        row["question_id"] += "x"
    with pytest.raises(KitError, match="share no question"):
        compare(a, b)


def test_fingerprint_ignores_row_order_only():
    rows = [("q1", "v1", "what ?", ["red"]), ("q2", "v1", "how many ?", ["two"])]
    assert benchmark_fingerprint(rows) == benchmark_fingerprint(rows[::-1])
    assert benchmark_fingerprint(rows) != benchmark_fingerprint([rows[0], ("q2", "v1", "how many ?", ["three"])])


def test_compare_command_prints_and_writes_the_same_report(tmp_path, capsys):
    results_of("dpo", [1] * 12 + [0] * 4, [f"v{i // 2}" for i in range(16)]).save(tmp_path / "a.json")
    results_of("base", [0] * 12 + [0, 1, 0, 0], [f"v{i // 2}" for i in range(16)]).save(tmp_path / "b.json")
    inputs = [str(tmp_path / name) for name in ("a.json", "b.json")]
    outputs = [
        "--markdown",
        str(tmp_path / "r.md"),
        "--json",
        str(tmp_path / "r.json"),
        "--png",
        str(tmp_path / "r.png"),
    ]
    code = main(["compare", *inputs, *outputs])
    printed = capsys.readouterr().out
    assert code == 0 and "| dpo − base | +68.8 |" in printed and "| dpo | 75.0 % |" in printed
    assert (tmp_path / "r.md").read_text() == printed
    record = json.loads((tmp_path / "r.json").read_text())
    (pair,) = record["pairs"]
    assert pair["difference"] == pytest.approx(11 / 16)
    assert 0 < pair["p"] == pair["p_holm"] < 0.05
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_several_results_are_corrected_together(tmp_path):
    from eval.report import comparison_markdown, comparison_record

    videos = [f"v{i // 2}" for i in range(24)]
    a = results_of("a", [1] * 22 + [0] * 2, videos)
    b = results_of("b", [1] * 12 + [0] * 12, videos)
    c = results_of("b", [0] * 20 + [1] * 4, videos)  # the same name and another model
    c.model_revision = "fedcba9876543210"
    record = comparison_record([a, b, c], draws=2000)
    names = [side["name"] for side in record["results"]]
    assert names == ["a", "b (01234567)", "b (fedcba98)"]
    assert [(p["a"], p["b"]) for p in record["pairs"]] == [
        (names[0], names[1]),
        (names[0], names[2]),
        (names[1], names[2]),
    ]
    raw = sorted(p["p"] for p in record["pairs"])
    assert min(p["p_holm"] for p in record["pairs"]) == pytest.approx(min(1.0, 3 * raw[0]))
    baseline = comparison_record([a, b, c], draws=2000, baseline=True)
    assert [(p["a"], p["b"]) for p in baseline["pairs"]] == [(names[0], names[2]), (names[1], names[2])]
    assert "p (Holm)" in comparison_markdown(record)
    with pytest.raises(KitError, match="two results or more"):
        comparison_record([a])


def judged_by(results: Results, **record) -> Results:
    from eval.fingerprint import fingerprint_of

    made = {"name": "j", "kind": "vqa", "model": "m", "revision": "r", "reported": [], "settings_hash": "s", **record}
    results.judge = {**made, "fingerprint": fingerprint_of(made)}
    return results


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"name": "other name"}, False),
        ({"revision": "other"}, True),
        ({"settings_hash": "other"}, True),
        ({"reported": ["m-2026-10"]}, True),
        ({"kind": "hound"}, True),
    ],
)
def test_other_judges_are_refused_unless_told_to(tmp_path, capsys, change, refused):
    a, b = judged_by(results_of("a", [1, 0, 1, 1])), judged_by(results_of("b", [0, 0, 1, 0]), **change)
    a.save(tmp_path / "a.json")
    b.save(tmp_path / "b.json")
    words = ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--draws", "100"]
    if not refused:
        assert main(words) == 0
        return
    with pytest.raises(KitError, match="--different-judges") as caught:
        main(words)
    assert "\n" not in str(caught.value)
    assert main([*words, "--different-judges"]) == 0
    assert "Careful" in capsys.readouterr().out


def test_results_of_the_first_format_are_read(tmp_path):
    results_of("old", [1, 0]).save(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    content["format"] = "mmaip-v-results/1"
    for row in content["rows"]:
        for key in MORE_FIELDS:
            del row[key]
    del content["self_judged"]
    (tmp_path / "r.json").write_text(json.dumps(content))
    assert Results.load(tmp_path / "r.json") == results_of("old", [1, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ('{"format":', "r.json:1: not valid JSON"),
        ('{"rows": []}', "not a results file"),
        ('{"format": "mmaip-v-results/1", "name": "x"}', "missing"),
    ],
)
def test_broken_results_are_one_clear_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    with pytest.raises(KitError, match=message) as caught:
        main(["compare", str(tmp_path / "r.json"), str(tmp_path / "r.json")])
    assert "\n" not in str(caught.value)


def test_unknown_command_is_refused(capsys):
    assert main(["compair"]) == 2
    assert "there is no command 'compair'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def chat(world):
    from dataset_builder.models import load_model

    return load_model(world.checkpoints["qwen2_vl"], name="tiny", device="cpu")


def test_evaluate_a_checkpoint(world, chat):
    items = load_benchmark(world.dataset, "test")
    assert len(items) == 12 and len({i.video_id for i in items}) == 6
    assert len({id(i.video) for i in items}) == 6  # questions of a video share its bytes
    seen, cache = [], FramesCache()
    results = evaluate(chat, items, frames_cache=cache, batch_size=5, on_batch=lambda *done: seen.append(done))
    assert seen == [(5, 12), (10, 12), (12, 12)]
    assert len(cache) == 6  # each video was decoded once for its two questions
    assert [row["question_id"] for row in results.rows] == [item.question_id for item in items]
    assert results.errors == 0 and results.accuracy.clusters == 6
    assert (results.model, results.model_revision) == ("tiny", chat.revision)
    again = evaluate(chat, items, frames_cache=cache)
    assert [r["response"] for r in again.rows] == [r["response"] for r in results.rows]


def test_a_judge_that_sees_the_video(world, chat):
    from dataset_builder.judges import VisualJudge

    results = evaluate(chat, load_benchmark(world.dataset, "test"), judge=VisualJudge(chat, num_frames=4))
    assert results.errors == 0
    assert all(row["correct"] == (row["score"] >= 0.5) for row in results.rows)
    assert results.judge["revision"] == chat.revision


def test_frames_cache_forgets_the_oldest(world):
    from eval.runner import frames_of

    videos = [item.video for item in load_benchmark(world.dataset, "test")[::2]]
    size = frames_of(videos[0], 8).array.nbytes
    cache = FramesCache(max_bytes=2 * size)
    for video in videos:
        frames_of(video, 8, cache)
    assert len(cache) == 2
    assert frames_of(videos[-1], 8, cache) is list(cache.values())[-1]


def test_an_unreadable_video_is_a_row_without_a_verdict(world, chat):
    from dataclasses import replace

    items = load_benchmark(world.dataset, "test", limit=4)
    items[1] = replace(items[1], video=b"this is no video")
    items[2] = replace(items[2], video=None)
    results = evaluate(chat, items)
    assert [row["correct"] is None for row in results.rows] == [False, True, True, False]
    assert "media.json" in results.rows[2]["error"] and results.rows[1]["error"]
    assert results.errors == 2 and results.accuracy.n == 2


def test_videos_left_out_of_the_dataset_come_from_media_json(world, chat, tmp_path):
    assert all(item.video is None for item in load_benchmark(world.bare, "test"))
    attached = load_benchmark(world.bare, "test", media=world.media)
    assert all(os.path.isfile(item.video) for item in attached)
    embedded = evaluate(chat, load_benchmark(world.dataset, "test"))
    assert [r["response"] for r in evaluate(chat, attached).rows] == [r["response"] for r in embedded.rows]


def test_a_changed_video_is_not_attached(world, tmp_path):
    media = json.loads(world.media.read_text())
    digest = next(iter(media))
    (tmp_path / "other.mp4").write_bytes(b"something else")
    (tmp_path / "media.json").write_text(json.dumps({digest: str(tmp_path / "other.mp4")}))
    with pytest.raises(KitError, match="has changed"):
        MediaIndex(tmp_path / "media.json").find(digest[:16])
    assert MediaIndex(tmp_path / "media.json").find("0" * 16) is None


def test_missing_dataset_or_split_is_one_clear_line(world, tmp_path):
    with pytest.raises(KitError, match="no such dataset folder"):
        load_benchmark(tmp_path / "nothing")
    with pytest.raises(KitError, match="no such dataset folder"):
        load_benchmark("no-namespace-and-no-folder")
    with pytest.raises(KitError, match="cannot load split 'train'") as caught:
        load_benchmark(world.dataset, "train")
    assert "\n" not in str(caught.value)
