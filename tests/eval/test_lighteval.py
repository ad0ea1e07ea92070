"""LightEval end to end, in real processes. Each import of it costs ten seconds, so runs share processes."""

import json
import shutil

import pytest

from eval.details import load_results
from eval.results import compare
from tests.eval.conftest import REPO
from tests.eval.steps import MODEL, accelerate, custom, run_steps, saved

TASK = "mmaip_v_toy"


def test_a_cache_that_never_answers_for_other_weights_or_rows(run_eval, world, tmp_path):
    dataset = shutil.copytree(world.dataset, tmp_path / "dataset")
    checkpoint = shutil.copytree(world.checkpoints["qwen2_vl"], tmp_path / "model")
    vision = shutil.copytree(world.checkpoints["llava_onevision"], tmp_path / "vision")
    steps = [
        custom(checkpoint, TASK, tmp_path / "first"),
        custom(checkpoint, TASK, tmp_path / "again"),
        ["permute", str(checkpoint)],
        custom(checkpoint, TASK, tmp_path / "retrained"),
        ["reverse", str(dataset)],
        custom(checkpoint, TASK, tmp_path / "reversed"),
        accelerate(vision, TASK, tmp_path / "vision-first"),
        accelerate(vision, TASK, tmp_path / "vision-again"),
        ["permute", str(vision)],
        accelerate(vision, TASK, tmp_path / "vision-retrained"),
        ["tasks", "list"],
        ["tasks", "dump"],
        ["custom", str(checkpoint), MODEL, "no_such_task"],
        ["custom", str(tmp_path / "no-model"), MODEL, TASK],
        ["custom", str(checkpoint)],
        [*custom(checkpoint, TASK, tmp_path / "pushed"), "--push-to-hub"],
    ]
    done = run_steps(run_eval, tmp_path, steps, MMAIP_V_DATA=str(dataset))
    assert done.codes == [0] * 9 + [2] * 4, done.logs[-1]
    from_cache = ["12 of 12 answers come from the prediction cache" in log for log in done.logs[:7]]
    assert from_cache == [False, True, False, False, False, True, False]
    for kind in ("", "vision-"):
        first, again, retrained = (load_results(tmp_path / f"{kind}{name}") for name in ("first", "again", "retrained"))
        assert first.rows == again.rows
        assert first.model_revision != retrained.model_revision
        assert [r["response"] for r in first.rows] != [r["response"] for r in retrained.rows]
    turned, straight = load_results(tmp_path / "reversed"), load_results(tmp_path / "retrained")
    assert turned.rows == straight.rows  # the answer of another row was not taken for this row's
    same_as_in_one_process(world, tmp_path / "first")
    assert f"mmaip_v_toy\t{dataset} [benchmark: test]" in done.stdout
    assert '"https://arxiv.org/abs/1704.04497' in done.stdout  # of tgif_qa's file
    assert "Cannot find task no_such_task in task list" in done.logs[9] and "tasks here: activitynet_qa" in done.logs[9]
    assert "no-model: there is no checkpoint folder here" in done.logs[10]
    assert "Missing argument" in done.logs[11] or "Missing parameter" in done.logs[11]
    assert "--push-to-hub needs --results-org" in done.logs[12]
    assert not any("Traceback" in log for log in done.logs)


def same_as_in_one_process(world, output):
    """What LightEval saved is what the kit's own loop gives."""
    results, details = saved(output)
    numbers = results["results"]["mmaip_v_toy|0"]
    assert {"accuracy", "accuracy_stderr", "accuracy_ci95_lo", "accuracy_ci95_hi", "unjudged"} == numbers.keys()
    assert all(isinstance(value, float) for value in numbers.values())
    assert len(details[TASK]) == 12 and all(row["doc"]["images"] is None for row in details[TASK])
    assert not any(p.suffix == ".parquet" for p in world.checkpoints["qwen2_vl"].rglob("*"))

    from dataset_builder.models import load_model
    from eval.runner import evaluate, load_benchmark

    checkpoint = str(world.checkpoints["qwen2_vl"])
    ours = evaluate(load_model(checkpoint, device="cpu"), load_benchmark(world.dataset, "test"))
    theirs = load_results(output)
    assert theirs.model_revision == ours.model_revision
    assert theirs.dataset_fingerprint == ours.dataset_fingerprint
    responses = {row["question_id"]: row["response"] for row in ours.rows}
    assert {row["question_id"]: row["response"] for row in theirs.rows} == responses
    paired = compare(ours, theirs, draws=100)
    assert (paired.n, paired.left_out, paired.p) == (12, 0, 1.0)
    assert numbers["accuracy"] == pytest.approx(ours.accuracy.mean)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("num_frame: 4", "num_frame"),
        ("judge: {kind: refrence}", "refrence"),
        ("limit: 0", "limit: must be at least 1"),
        ("max_unjudged: 5", "share from 0 to 1"),
        ("data: {msvd: there}", "there is no task 'msvd'; did you mean 'msvd_qa'"),
        ("batch_size: 0", "at least 1"),
    ],
)
def test_a_mistake_in_the_settings_is_one_clear_line(tmp_path, monkeypatch, line, said):
    from dataset_builder.errors import KitError
    from eval.settings import load_settings

    (tmp_path / "eval.yaml").write_text(line + "\n")
    monkeypatch.setenv("MMAIP_V_EVAL", str(tmp_path / "eval.yaml"))
    with pytest.raises(KitError, match=said) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{tmp_path}/eval.yaml: ") and "\n" not in str(caught.value)


def test_the_settings_that_come_along_are_valid(monkeypatch):
    from eval.settings import load_settings

    found = sorted((REPO / "eval" / "configs").glob("*.yaml"))
    assert len(found) >= 5
    for path in found:
        monkeypatch.setenv("MMAIP_V_EVAL", str(path))
        load_settings()


def test_where_a_task_s_data_comes_from(tmp_path, monkeypatch):
    from eval.settings import cache_folder, task_data

    monkeypatch.delenv("MMAIP_V_DATA", raising=False)
    assert task_data("mmaip_v", "mmaip-v") == ("mmaip-v", False)
    assert task_data("msvd_qa", None) == ("", False)
    monkeypatch.setenv("MMAIP_V_DATA", "NAMESPACE/all")
    assert task_data("mmaip_v", "mmaip-v") == task_data("msvd_qa", None) == ("NAMESPACE/all", False)
    (tmp_path / "eval.yaml").write_text(json.dumps({"data": {"msvd_qa": "sets/msvd"}, "cache": "~/kept"}))
    monkeypatch.setenv("MMAIP_V_EVAL", str(tmp_path / "eval.yaml"))
    assert task_data("msvd_qa", None) == ("sets/msvd", True)
    assert task_data("tgif_qa", None) == ("NAMESPACE/all", False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "kept"
