"""Results and details pushed with LightEval's own options, to a Hub on loopback, and read back."""

import io
import json

import pyarrow.parquet as pq
import pytest

from tests.eval.steps import MODEL, TASKS, custom
from tests.hub import Client, LoopbackHub


def test_model_and_data_from_a_hub_results_and_details_to_it(run_eval, world, tmp_path):
    settings = tmp_path / "eval.yaml"
    settings.write_text(json.dumps({"limit": 3}))
    with LoopbackHub(tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home")
        with Client(environment) as client:
            client.run(f"""
                from huggingface_hub import HfApi
                api = HfApi()
                for kind, name, folder in (
                    ("model", "tester/tiny", "{world.checkpoints["qwen2_vl"]}"),
                    ("dataset", "tester/mmaip-v", "{world.dataset}"),
                ):
                    api.create_repo(name, repo_type=kind)
                    api.upload_folder(repo_id=name, folder_path=folder, repo_type=kind)
                api.create_tag("tester/tiny", tag="v1")
            """)
            commit = client.run("api.model_info('tester/tiny', revision='v1').sha")
        done = run_eval(
            *("-m", "eval", "custom", "tester/tiny@v1", MODEL, "mmaip_v", "--custom-tasks", TASKS),
            *("--output-dir", str(tmp_path / "out"), "--push-to-hub", "--results-org", hub.user),
            **{**environment, "MMAIP_V_EVAL": str(settings), "MMAIP_V_DATA": "tester/mmaip-v"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        files = hub.files("tester/details_tester__tiny_v1_private", repo_type="dataset")
    (results,) = [json.loads(content) for path, content in files.items() if path.endswith(".json")]
    assert {"accuracy", "unjudged"} <= results["results"]["mmaip_v|0"].keys()
    assert results["versions"] == {"mmaip_v|0": 1}
    (details,) = [content for path, content in files.items() if "details_mmaip_v" in path]
    rows = pq.read_table(io.BytesIO(details)).to_pylist()
    assert len(rows) == 3 and all(row["doc"]["images"] is None for row in rows)
    verdicts = [row["metric"]["accuracy"] for row in rows]
    assert {v["model_revision"] for v in verdicts} == {commit}
    assert all(v["correct"] in (0.0, 1.0) and json.loads(v["judge"])["fingerprint"] for v in verdicts)
    assert sum(v["correct"] for v in verdicts) / 3 == results["results"]["mmaip_v|0"]["accuracy"]
    card = files["README.md"].decode()
    assert "config_name: mmaip_v_0" in card and str(tmp_path) not in card


@pytest.mark.slow
def test_a_push_that_fails_leaves_the_results_and_one_line(run_eval, world, tmp_path):
    settings = tmp_path / "eval.yaml"
    settings.write_text(json.dumps({"limit": 3}))
    with LoopbackHub(tmp_path / "hub") as hub:
        environment = {**hub.environment(tmp_path / "home"), "HF_TOKEN": hub.read_token}
        done = run_eval(
            *("-m", "eval", *custom(world.checkpoints["qwen2_vl"], "mmaip_v", tmp_path / "out")),
            *("--push-to-hub", "--results-org", hub.user),
            **{**environment, "MMAIP_V_EVAL": str(settings)},
        )
    assert done.returncode == 2
    said = done.stderr.rstrip().splitlines()[-1]
    assert said.startswith(f"error: the results are saved in {tmp_path}/out, but could not be pushed to tester: ")
    assert list((tmp_path / "out").rglob("results_*.json")) and "Traceback" not in done.stderr
