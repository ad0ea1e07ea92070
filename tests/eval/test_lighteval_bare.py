"""The bare `lighteval` command, without a network.

It imports every built-in task before ours, and two of these look for files while they are imported.
`tiny_benchmarks.py` fetches `tinyBenchmarks.pkl`, and fails without a network, unless a file of that name lies beside
it; only evaluating one of its own tasks would open that file. `ifeval` has nltk fetch `punkt` and `punkt_tab`, and goes
on without them, unless they lie in nltk's folder. So the environment here has a copy of LightEval in front of the
installed one in which an empty file is planted, and empty folders where nltk looks. Nothing else is changed.
"""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from eval.details import load_results
from tests.eval.published import write_hound_tests
from tests.eval.steps import TASKS, accelerate, custom, run_steps, saved

pytestmark = pytest.mark.slow
COMMAND = str(Path(sys.executable).with_name("lighteval"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    installed = Path(find_spec("lighteval").origin).parent
    shutil.copytree(installed, folder / "lighteval")
    for name in ("punkt", "punkt_tab"):
        (folder / "nltk" / "tokenizers" / name).mkdir(parents=True)
    (folder / "lighteval" / "tasks" / "tasks" / "tinyBenchmarks.pkl").touch()
    return folder


@pytest.fixture
def bare(planted, run_eval):
    """Run `lighteval` with the planted copy in front."""

    def run(arguments: list[str], **variables: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(planted), os.environ["PYTHONPATH"]])
        return run_eval(COMMAND, *arguments, PYTHONPATH=path, NLTK_DATA=str(planted / "nltk"), **variables)

    return run


def with_tasks(arguments: list[str]) -> list[str]:
    return arguments if "--custom-tasks" in arguments else [*arguments, "--custom-tasks", TASKS]


def test_both_commands_give_what_python_m_eval_gives(bare, run_eval, world, tmp_path):
    native, vision = world.checkpoints["qwen2_vl"], world.checkpoints["llava_onevision"]
    settings = tmp_path / "eval.yaml"
    data = write_hound_tests(tmp_path / "hound", world.root / "toy")
    settings.write_text(json.dumps({"data": {"webvid_qa": str(data)}}))
    commands = {
        "custom": custom(native, "mmaip_v,webvid_qa", tmp_path / "custom"),
        "accelerate": accelerate(vision, "webvid_qa", tmp_path / "accelerate"),
    }
    for command in commands.values():
        done = bare(with_tasks(command), MMAIP_V_EVAL=str(settings))
        assert done.returncode == 0, done.stderr[-3000:]
    steps = [[*command[:-1], f"{command[-1]}-ours"] for command in commands.values()]
    # Of its own home: the bare command's answers must not be taken for the other's.
    done = run_steps(run_eval, tmp_path, steps, MMAIP_V_EVAL=str(settings), HOME=str(tmp_path / "home"))
    assert done.codes == [0, 0] and not any("from the prediction cache" in log for log in done.logs)
    for name in commands:
        theirs, ours = load_results(tmp_path / name), load_results(tmp_path / f"{name}-ours")
        assert theirs.rows == ours.rows and len(theirs.rows) == (16 if name == "custom" else 4)
        assert theirs.judge == ours.judge and theirs.decoding == ours.decoding
        assert theirs.model_revision == ours.model_revision
        assert saved(tmp_path / name)[0]["results"] == saved(tmp_path / f"{name}-ours")[0]["results"]


def test_its_exit_codes_and_errors_are_ours_too(bare, world, tmp_path):
    native, toy = world.checkpoints["qwen2_vl"], world.root / "toy"
    data = write_hound_tests(tmp_path / "hound", toy)
    file = data / "video_instruction" / "test" / "vidal.qa.jsonl"
    file.write_text(file.read_text() + "{}\n")
    judge = {"kind": "hound", "model": str(native), "max_new_tokens": 1, "max_retries": 0}  # says nothing of use
    settings = tmp_path / "eval.yaml"
    settings.write_text(json.dumps({"data": {"vidal_qa": str(data)}, "judge": judge}))
    done = bare(with_tasks(custom(native, "vidal_qa", tmp_path / "out")), MMAIP_V_EVAL=str(settings))
    assert done.returncode == 5, done.stderr[-3000:]
    assert "vidal.qa.jsonl:5: field 'conversations': is missing" in done.stderr
    assert "vidal_qa: 4 of 4 answers have no verdict" in done.stderr and "Traceback" not in done.stderr
    assert saved(tmp_path / "out")[0]["results"]["vidal_qa|0"] == {"unjudged": 4.0}

    done = bare(with_tasks(custom(native, "tgif_qa", tmp_path / "none")), MMAIP_V_DATA="")
    assert done.returncode == 2, done.stderr[-3000:]
    assert done.stderr.rstrip().splitlines()[-1].startswith("error: tgif_qa: nothing says where its data is")
    assert "Traceback" not in done.stderr
