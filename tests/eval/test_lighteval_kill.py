"""A run that is killed while an endpoint judges: the same command goes on, and pays for nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from eval.details import load_results
from tests.endpoints.stub import StubServer
from tests.eval.steps import custom

pytestmark = pytest.mark.slow
AT_ONCE = 2


def test_no_call_is_repeated_after_a_kill(world, tmp_path):
    def reply(body):
        return json.dumps({"correct": "yes", "score": 4, "reason": "seen"})

    with StubServer(reply=reply, latency=0.5) as stub:
        endpoint = {"base_url": stub.url, "concurrency": AT_ONCE}
        judge = {"kind": "vqa", "model": "judge", "num_frames": 2, "endpoint": endpoint, "probability": False}
        settings = tmp_path / "eval.yaml"
        settings.write_text(json.dumps({"judge": judge}))
        command = [sys.executable, "-m", "eval", *custom(world.checkpoints["qwen2_vl"], "mmaip_v", tmp_path / "out")]
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "HF_HOME": str(tmp_path / "hf"),
            "MMAIP_V_DATA": str(world.dataset),
            "MMAIP_V_EVAL": str(settings),
        }
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as first:
            while stub.calls < 5 and first.poll() is None:
                time.sleep(0.05)
            first.send_signal(signal.SIGKILL)
        paid = stub.calls
        assert 5 <= paid < 12 and not list((tmp_path / "out").rglob("results_*.json"))
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "12 of 12 answers come from the prediction cache" in done.stderr
        stats = stub.stats()
    # Only calls whose replies were on the way when the process died are made again.
    assert stats["repeated"] <= AT_ONCE and stats["distinct"] == stats["calls"] - stats["repeated"]
    rows = load_results(tmp_path / "out").rows
    assert len(rows) == 12 and all(row["correct"] is not None for row in rows)
