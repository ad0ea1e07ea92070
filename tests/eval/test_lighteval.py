"""LightEval end to end, in real processes. Each import of it costs ten seconds, so runs share processes."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.details import load_results
from eval.results import compare
from tests.eval.conftest import REPO

TASKS, MODEL, TASK = str(REPO / "eval" / "tasks.py"), str(REPO / "eval" / "video_model.py"), "mmaip_v_toy"

# Several command lines in one process, each with an exit code on its own line. `permute` retrains in place, in effect;
# `reverse` rewrites the benchmark in place with the same questions in another order.
DRIVER = """
import json, sys
from dataset_builder.errors import run_cli
from eval.__main__ import main

def permute(folder):
    from safetensors.torch import load_file, save_file
    file = folder + "/model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("embed_tokens.weight"))
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, file, metadata={"format": "pt"})

def reverse(folder):
    import glob
    import pyarrow.parquet as pq
    file, = glob.glob(folder + "/benchmark/test-*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.take(list(range(len(table)))[::-1]), file)

for step in json.load(open(sys.argv[1])):
    if step[0] in ("permute", "reverse"):
        globals()[step[0]](step[1])
    else:
        print("exit code", run_cli(lambda: main(step)), flush=True)
        print("end of step", file=sys.stderr, flush=True)
"""


def saved(folder: Path) -> tuple[dict, list[dict]]:
    results = json.loads(next(folder.rglob("results_*.json")).read_text())
    return results, pq.read_table(next(folder.rglob("details_*.parquet"))).to_pylist()


def test_custom_command_saves_verdicts_and_no_image_bytes(run_eval, world, tmp_path):
    checkpoint = str(world.checkpoints["qwen2_vl"])
    done = run_eval(
        *("-m", "eval", "custom", checkpoint, MODEL, TASK, "--custom-tasks", TASKS),
        *("--save-details", "--output-dir", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results, details = saved(tmp_path / "out")
    numbers = results["results"]["mmaip_v_toy|0"]
    assert {"accuracy", "accuracy_stderr", "accuracy_ci95_lo", "accuracy_ci95_hi"} <= numbers.keys()
    assert all(isinstance(value, float) for value in numbers.values())
    assert len(details) == 12
    for row in details:
        assert row["doc"]["images"] is None
        assert row["metric"]["accuracy"]["correct"] in (0.0, 1.0)
        assert row["metric"]["accuracy"]["video_id"] and row["metric"]["accuracy"]["question_id"]
    assert not any(p.suffix == ".parquet" for p in world.checkpoints["qwen2_vl"].rglob("*"))

    from dataset_builder.models import load_model
    from eval.runner import evaluate, load_benchmark

    ours = evaluate(load_model(checkpoint, device="cpu"), load_benchmark(world.dataset, "test"))
    theirs = load_results(tmp_path / "out")
    assert theirs.model_revision == ours.model_revision
    assert theirs.dataset_fingerprint == ours.dataset_fingerprint
    responses = {row["question_id"]: row["response"] for row in ours.rows}
    assert {row["question_id"]: row["response"] for row in theirs.rows} == responses
    paired = compare(ours, theirs, draws=100)
    assert (paired.n, paired.left_out, paired.p) == (12, 0, 1.0)


def test_listing_and_a_cache_that_never_answers_for_other_weights_or_rows(run_eval, world, tmp_path):
    dataset = shutil.copytree(world.dataset, tmp_path / "dataset")
    checkpoint = shutil.copytree(world.checkpoints["qwen2_vl"], tmp_path / "model")
    vision = shutil.copytree(world.checkpoints["llava_onevision"], tmp_path / "vision")

    def custom(output: str) -> list[str]:
        return ["custom", str(checkpoint), MODEL, TASK, "--save-details", "--output-dir", str(tmp_path / output)]

    def accelerate(output: str) -> list[str]:
        arguments = ["accelerate", f"model_name={vision},batch_size=4", TASK, "--vision-model", "--custom-tasks", TASKS]
        return [*arguments, "--save-details", "--output-dir", str(tmp_path / output)]

    steps = [
        custom("first"),
        custom("again"),
        ["permute", str(checkpoint)],
        custom("retrained"),
        ["reverse", str(dataset)],
        custom("reversed"),
        accelerate("vision-first"),
        accelerate("vision-again"),
        ["permute", str(vision)],
        accelerate("vision-retrained"),
        ["tasks", "list"],
        ["custom", str(checkpoint), MODEL, "no_such_task"],
        ["custom", str(tmp_path / "no-model"), MODEL, TASK],
        ["custom", str(checkpoint)],
    ]
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    done = run_eval("-c", DRIVER, str(tmp_path / "steps.json"), MMAIP_V_DATA=str(dataset))
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit code")]
    assert codes == ["exit code 0"] * 8 + ["exit code 2"] * 3, done.stderr[-3000:]
    logs = done.stderr.split("end of step")
    from_cache = ["12 of 12 answers come from the prediction cache" in log for log in logs[:7]]
    assert from_cache == [False, True, False, False, False, True, False]
    for kind in ("", "vision-"):
        first, again, retrained = (load_results(tmp_path / f"{kind}{name}") for name in ("first", "again", "retrained"))
        assert first.rows == again.rows
        assert first.model_revision != retrained.model_revision
        assert [r["response"] for r in first.rows] != [r["response"] for r in retrained.rows]
    turned, straight = load_results(tmp_path / "reversed"), load_results(tmp_path / "retrained")
    assert turned.rows == straight.rows  # the answer of another row was not taken for this row's
    assert f"mmaip_v_toy\t{dataset} [benchmark: test]" in done.stdout
    assert "Cannot find task no_such_task in task list" in logs[8] and "tasks here: mmaip_v_toy" in logs[8]
    assert "no-model: there is no checkpoint folder here" in logs[9]
    assert "Missing argument" in logs[10] or "Missing parameter" in logs[10]
    assert not any("Traceback" in log for log in logs)


@pytest.mark.parametrize("key", ["num_frame: 4", "judge: {kind: refrence}"])
def test_a_typo_in_the_settings_is_one_clear_line(tmp_path, monkeypatch, key):
    from dataset_builder.errors import KitError
    from dataset_builder.judges import make_judge
    from eval.settings import load_settings

    (tmp_path / "eval.yaml").write_text(key + "\n")
    monkeypatch.setenv("MMAIP_V_EVAL", str(tmp_path / "eval.yaml"))
    with pytest.raises(KitError, match=r"num_frame|refrence"):
        make_judge(load_settings().judge)


def test_the_settings_that_come_along_are_valid(monkeypatch):
    from dataset_builder.settings import parse_judge
    from eval.settings import load_settings

    for path in sorted((REPO / "eval" / "configs").glob("*.yaml")):
        monkeypatch.setenv("MMAIP_V_EVAL", str(path))
        parse_judge(dict(load_settings().judge))
