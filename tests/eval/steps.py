"""Several `python -m eval` command lines in one process: importing LightEval takes ten seconds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq

from tests.eval.conftest import REPO

TASKS, MODEL = str(REPO / "eval" / "tasks.py"), str(REPO / "eval" / "video_model.py")

# Every step is a command line, or one of the functions here with its arguments. `permute` retrains in place, in effect;
# `reverse` rewrites the benchmark in place with the same questions in another order.
DRIVER = """
import json, os, sys
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

def variable(name, value):
    os.environ[name] = value

def copy(source, target):
    import shutil
    shutil.copy(source, target)

for step in json.load(open(sys.argv[1])):
    if step[0] in ("permute", "reverse", "variable", "copy"):
        globals()[step[0]](*step[1:])
    else:
        print("exit code", run_cli(lambda: main(step)), flush=True)
        print("end of step", file=sys.stderr, flush=True)
"""


def run_steps(run_eval, folder: Path, steps: list[list[str]], **variables: str) -> SimpleNamespace:
    """Run the steps; returns their exit ``codes``, what each command wrote to stderr (``logs``) and all ``stdout``."""
    (folder / "steps.json").write_text(json.dumps(steps))
    done = run_eval("-c", DRIVER, str(folder / "steps.json"), **variables)
    codes = [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("exit code")]
    logs = done.stderr.split("end of step")[: len(codes)]
    assert done.returncode == 0, done.stderr[-5000:]
    return SimpleNamespace(codes=codes, logs=logs, stdout=done.stdout)


def custom(checkpoint: Path, tasks: str, output: Path) -> list[str]:
    """The command that shows a model the video, its details saved."""
    return ["custom", str(checkpoint), MODEL, tasks, "--save-details", "--output-dir", str(output)]


def accelerate(checkpoint: Path, tasks: str, output: Path) -> list[str]:
    """The command that shows LightEval's vision model frames as images."""
    model = f"model_name={checkpoint},batch_size=4"
    saved = ["--save-details", "--output-dir", str(output)]
    return ["accelerate", model, tasks, "--vision-model", "--custom-tasks", TASKS, *saved]


def saved(folder: Path) -> tuple[dict, dict[str, list[dict]]]:
    """What one run saved: the results, and the details by task."""
    results = json.loads(next(folder.rglob("results_*.json")).read_text())
    details = {}
    for file in folder.rglob("details_*.parquet"):
        details[file.name.removeprefix("details_").split("|")[0]] = pq.read_table(file).to_pylist()
    return results, details
