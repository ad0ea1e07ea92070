"""Every task end to end on small local data in its published shapes, without a network; what the details hold; blind
runs; exit codes. One process for all."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from eval.benchmarks import BENCHMARKS
from tests.eval.published import hound_row, questions_of, write_activitynet, write_hound_tests
from tests.eval.steps import accelerate, custom, run_steps, saved

FIGURES = {"accuracy", "accuracy_stderr", "accuracy_ci95_lo", "accuracy_ci95_hi", "unjudged"}
SAMPLE = {
    "question_id", "video_id", "question_type", "caption", "correct", "score", "error", "reason", "probability",
    "scores", "judge", "self_judged", "model_revision",
}  # fmt: skip
JUDGE = {"name", "criteria", "kind", "model", "revision", "reported", "settings_hash", "settings", "fingerprint"}


def without_references(dataset, folder, count):
    """A copy of a dataset whose first ``count`` test questions have no reference answers."""
    copy = shutil.copytree(dataset, folder)
    (file,) = (copy / "benchmark").glob("test-*.parquet")
    table = pq.read_table(file)
    place = table.column_names.index("answers")
    answers = [[] if n < count else row for n, row in enumerate(table["answers"].to_pylist())]
    pq.write_table(
        table.set_column(place, table.schema.field(place), pa.array(answers, table.schema.field(place).type)), file
    )
    return copy


def test_every_task_on_local_data_and_how_runs_end(run_eval, world, tmp_path):
    toy, out = world.root / "toy", tmp_path / "out"
    hound = write_hound_tests(tmp_path / "hound", toy)
    activitynet = write_activitynet(tmp_path / "activitynet", toy)
    broken = tmp_path / "broken"
    shutil.copytree(toy / "videos", broken / "videos")
    rows = [hound_row(r, r["video"], str(n)) for n, r in enumerate(questions_of(toy)[:4])]
    rows[1]["video"] = "gone.mp4"
    (broken / "ssv2.qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    partly = without_references(world.dataset, tmp_path / "partly", 1)

    def settings(name: str, **values) -> list[str]:
        (tmp_path / f"{name}.yaml").write_text(json.dumps(values))
        return ["variable", "MMAIP_V_EVAL", str(tmp_path / f"{name}.yaml")]

    published = dict.fromkeys((name for name, b in BENCHMARKS.items() if b.files), str(hound))
    published["activitynet_qa"] = str(activitynet)
    native, vision = world.checkpoints["qwen2_vl"], world.checkpoints["llava_onevision"]
    frames = sorted((hound / "video_data" / "test" / "webvid").iterdir())
    steps = [
        settings("all", data=published, trained_on=str(world.dataset)),
        custom(native, ",".join(BENCHMARKS), out / "all"),
        accelerate(vision, "webvid_qa", out / "vision"),
        settings("blind", data=published, blind=True),
        custom(native, "webvid_qa", out / "blind"),
        accelerate(vision, "webvid_qa", out / "vision-blind"),
        ["copy", str(frames[1] / "c01_0002.jpeg"), str(frames[0] / "c01_0002.jpeg")],
        settings("changed", data=published),
        custom(native, "vidal_qa", out / "same"),
        custom(native, "webvid_qa", out / "changed"),
        settings("some", data=published, subset=["colour"], limit=2),
        custom(native, "mmaip_v", out / "some"),
        settings("broken", data={"ssv2_qa": str(broken)}),
        custom(native, "ssv2_qa", out / "broken"),
        settings("partly", data={"mmaip_v": str(partly)}),
        custom(native, "mmaip_v", out / "partly"),
        settings("lenient", data={"mmaip_v": str(partly)}, max_unjudged=0.1),
        custom(native, "mmaip_v", out / "lenient"),
        settings("attached", data={"mmaip_v": str(world.bare)}, media=str(world.media)),
        custom(native, "mmaip_v", out / "attached"),
        settings("nothing", data={}),
        ["variable", "MMAIP_V_DATA", ""],
        custom(native, "tgif_qa", out / "nothing"),
    ]
    done = run_steps(run_eval, tmp_path, steps)
    assert done.codes == [0, 0, 0, 0, 0, 0, 0, 3, 5, 0, 0, 2], done.logs[-1][-3000:]
    assert not any("Traceback" in log for log in done.logs)
    every_task(*saved(out / "all"))
    blind_runs(out, done.logs)

    # Files of another set are as they were; one frame of a folder is another.
    known = ["of 4 answers come from the prediction cache" in log for log in done.logs[4:6]]
    assert known == [True, False]
    before, after = (saved(out / name)[1]["webvid_qa"] for name in ("all", "changed"))
    ids = [{row["metric"]["accuracy"]["video_id"] for row in rows} for rows in (before, after)]
    assert len(ids[0] & ids[1]) == 1 and len(ids[0] | ids[1]) == 3

    results, details = saved(out / "some")
    assert [row["metric"]["accuracy"]["question_type"] for row in details["mmaip_v"]] == ["colour"] * 2
    assert results["config_tasks"]["mmaip_v|0"]["limit"] == 2
    assert results["config_tasks"]["mmaip_v|0"]["subset"] == ["colour"]

    assert f"left out: {broken}/ssv2.qa.jsonl:2: field 'video': " in done.logs[7]
    assert "ssv2_qa: 1 of 4 rows are left out" in done.logs[7]
    assert len(saved(out / "broken")[1]["ssv2_qa"]) == 3

    said = [line for line in done.logs[8].splitlines() if line.startswith("error: ")]
    assert said == ["error: mmaip_v: 1 of 12 answers have no verdict (8.3%, allowed are 5.0%); the results are saved, "
                    "with the reasons in their details"]  # fmt: skip
    for name in ("partly", "lenient"):
        results, details = saved(out / name)
        assert results["results"]["mmaip_v|0"]["unjudged"] == 1.0
        (unjudged,) = [r["metric"]["accuracy"] for r in details["mmaip_v"] if r["metric"]["accuracy"]["error"]]
        assert unjudged["correct"] is unjudged["scores"] is unjudged["score"] is None
    attached, embedded = (saved(out / name)[1]["mmaip_v"] for name in ("attached", "all"))
    assert [r["model_response"]["text"] for r in attached] == [r["model_response"]["text"] for r in embedded]
    assert "tgif_qa: nothing says where its data is: set MMAIP_V_DATA, or `data: {tgif_qa: FOLDER}`" in done.logs[11]


def every_task(results, details):
    assert set(details) == set(BENCHMARKS) and set(results["versions"].values()) == {1}
    assert set(results["results"]["all"]) == {"accuracy", "unjudged"}
    for name, rows in details.items():
        numbers = results["results"][f"{name}|0"]
        assert set(numbers) == FIGURES and numbers["unjudged"] == 0
        assert 0 <= numbers["accuracy_ci95_lo"] <= numbers["accuracy"] <= numbers["accuracy_ci95_hi"] <= 1
        assert len(rows) == (12 if name.startswith("mmaip") else 4)
        samples = [row["metric"]["accuracy"] for row in rows]
        assert numbers["accuracy"] == sum(sample["correct"] for sample in samples) / len(samples)
        assert len({sample["question_id"] for sample in samples}) == len(rows)
        assert len({sample["video_id"] for sample in samples}) == len(rows) / 2
        for row, sample in zip(rows, samples):
            assert set(sample) == SAMPLE and sample["correct"] in (0.0, 1.0)
            assert row["doc"]["images"] is None and b"\xff\xd8" not in json.dumps(row, default=str).encode()
            assert json.loads(sample["scores"])["match"] == sample["correct"] and sample["error"] is None
            judge = json.loads(sample["judge"])
            assert set(judge) == JUDGE and judge["kind"] == "reference"
            assert len(sample["model_revision"]) >= 16 and sample["self_judged"] is None
            captioned = name in ("ssv2_qa", "webvid_qa", "vidal_qa")
            assert (sample["caption"] is not None) is captioned


def blind_runs(out, logs):
    for seeing, blind in (("all", "blind"), ("vision", "vision-blind")):
        seen, unseen = saved(out / seeing), saved(out / blind)
        decodings = [results["config_general"]["model_config"]["decoding"] for results, _ in (seen, unseen)]
        assert [decoding["blind"] for decoding in decodings] == [False, True]
        assert {**decodings[0], "blind": True} == decodings[1]
        answers: dict[str, set] = {}
        for row in unseen[1]["webvid_qa"]:
            answers.setdefault(row["doc"]["query"], set()).add(row["model_response"]["text"][0])
        assert len(answers) == 2 and all(len(texts) == 1 for texts in answers.values())  # the question alone decides
        assert len(unseen[1]["webvid_qa"]) == len(seen[1]["webvid_qa"])
    assert not any("come from the prediction cache" in log for log in logs[:4])
