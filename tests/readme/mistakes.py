"""Mistakes that a person makes, each really made; the README's troubleshooting shows what the kit says then.

A mistake is a function of a folder that returns what was printed. In-process where that is quick; ``slow`` ones start
processes or train. What they say is looked for in the README by `tests/test_readme.py`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import yaml

from tests.dataset_builder.served_world import make_served_world
from tests.endpoints.stub import StubServer
from tests.hub import LoopbackHub
from tests.readme.commands import README, REPO

DOWN = "http://127.0.0.1:9/v1"  # nobody serves "discard"
MISTAKES: dict[str, Callable[[Path], str]] = {}
PHRASES: dict[str, tuple[str, ...]] = {}
SLOW: set[str] = set()
_ROW = re.compile(r"^\| (`.+`) \| (.+) \|$", re.MULTILINE)


def mistake(*phrases: str, slow: bool = False) -> Callable:
    """Enter a function under its own name; a phrase tells which message of the README it brings out."""

    def enter(function: Callable[[Path], str]) -> Callable[[Path], str]:
        MISTAKES[function.__name__], PHRASES[function.__name__] = function, phrases
        if slow:
            SLOW.add(function.__name__)
        return function

    return enter


def messages() -> dict[str, str]:
    """The messages of the README's table, each with what to do."""
    text = README.read_text(encoding="utf-8").partition("\n## Troubleshooting\n")[2].partition("\n## ")[0]
    return {said: do for cell, do in _ROW.findall(text) for said in re.findall(r"`([^`]+)`", cell)}


def shows(message: str, line: str) -> bool:
    """Whether a line that was printed is a message of the README, in which `…` stands for what varies."""
    return re.fullmatch(".+".join(re.escape(part) for part in message.split("…")), line.strip()) is not None


def said(main: Callable[[list[str]], int], words: list[object]) -> str:
    """What a command line prints, run in this process as its ``__main__`` would."""
    from dataset_builder.errors import run_cli

    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run_cli(lambda: main([str(word) for word in words]))
    return out.getvalue()


def typed(*words: object, cwd: Path = REPO, **environment: str) -> str:
    """What a command prints that is run in a process of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")]),
        **environment,
    }
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    return done.stdout + done.stderr


def builder(*words: object) -> str:
    """``python -m dataset_builder …``"""
    from dataset_builder.__main__ import main

    return said(main, list(words))


def changed(config: Path, change: Callable[[dict], object]) -> Path:
    """A config after a change."""
    content = yaml.safe_load(config.read_text())
    change(content)
    other = config.with_name("changed.yaml")
    other.write_text(yaml.safe_dump(content))
    return other


@mistake("unrecognized arguments")
def unknown_option(folder: Path) -> str:
    return builder("build", "build.yaml", "--ouput", "mine")


@mistake("Some specified arguments")
def unknown_option_of_a_recipe(folder: Path) -> str:
    from recipes.iter_w2s import main

    words = ["--model_name_or_path", folder, "--dataset_name", folder, "--max_steps", 1, "--use_cpu", "true"]
    return said(main, [*words, "--bf16", "false", "--lerning_rate", "1"])


@mistake("is not a known key")
def unknown_key(folder: Path) -> str:
    config = make_served_world(folder, DOWN)
    return builder("build", changed(config, lambda c: c.update(pairs={"min_magrin": 0.1})), "--dry-run")


@mistake("there is no such file", "cannot be opened as a video", "is in a codec that")
def bad_rows(folder: Path) -> str:
    """No such video, no video at all, and one in a codec that FFmpeg does not know."""
    config = make_served_world(folder, DOWN)
    questions, videos = folder / "toy" / "questions.jsonl", folder / "toy" / "videos"
    rows = [json.loads(line) for line in questions.read_text().splitlines()][:6]
    data = (videos / rows[0]["video"]).read_bytes()
    (videos / "notes.mp4").write_text("I am not a video.\n" * 100)
    (videos / "odd.mp4").write_bytes(data.replace(b"avc1", b"zz9z"))
    for row, name in zip(rows[1:], ("cat.mp4", "notes.mp4", "odd.mp4")):
        row["video"] = name
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return builder("build", config, "--output", folder / "made", "--dry-run", "--quiet")


@mistake("redistribute: true is refused")
def not_to_be_passed_on(folder: Path) -> str:
    config = make_served_world(folder, DOWN)
    questions = folder / "toy" / "questions.jsonl"
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows[0]["source"] = "msvd"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return builder("build", config, "--output", folder / "made", "--dry-run", "--quiet")


@mistake("nothing answers there")
def nothing_answers(folder: Path) -> str:
    config = make_served_world(folder, DOWN, max_retries=1, backoff=0.0)
    return builder("build", config, "--output", folder / "made", "--quiet")


@mistake("holds no key")
def no_key(folder: Path) -> str:
    config = make_served_world(folder, DOWN, api_key_env="MY_KEY")
    return builder("build", config, "--output", folder / "made", "--quiet")


@mistake("of the spend limit")
def spend_limit(folder: Path) -> str:
    with StubServer() as server:
        price = {"prompt": 1000.0, "completion": 1000.0}
        config = make_served_world(folder, server.url, price=price, spend_limit=2.0)
        return builder("build", config, "--output", folder / "made", "--quiet")


@mistake("made from another config")
def another_config(folder: Path) -> str:
    with StubServer() as server:
        config = make_served_world(folder, server.url, clips={"train": 2, "validation": 1})
        builder("build", config, "--output", folder / "made", "--quiet")
        other = changed(config, lambda c: c.update(pairs={"min_margin": 0.9}))
        return builder("build", other, "--output", folder / "made", "--quiet")


@mistake("stopped; the same command", slow=True)
def interrupted(folder: Path) -> str:
    with StubServer(latency=2.0) as server:
        config = make_served_world(folder, server.url)
        words = [sys.executable, "-m", "dataset_builder", "build", str(config), "--output", str(folder / "made")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
        heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
        running = subprocess.Popen(
            words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heard
        )
        while server.calls == 0 and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        return running.communicate(timeout=60)[1]


@mistake("run make demo first")
def no_demo_yet(folder: Path) -> str:
    from recipes.iter_w2s import main

    with contextlib.chdir(folder):
        return said(main, ["--config", REPO / "recipes/configs/toy.yaml"])


@mistake("doesn't support bf16")
def bf16_without_a_gpu(folder: Path) -> str:
    from recipes.iter_w2s import main

    words = ["--model_name_or_path", folder, "--dataset_name", folder]
    with patch("torch.cuda.is_available", lambda: False):
        return said(main, ["--config", REPO / "recipes/configs/qwen2_5_vl_3b_lora.yaml", *words])


def tiny_run(folder: Path, output: str, *words: str) -> list[object]:
    """A round of a tiny model, which takes seconds."""
    from dataset_builder.toy_models import save_tiny
    from tests.recipes.tiny import make_dataset

    if not (folder / "base").exists():
        make_dataset(folder / "mmaip-v")
        save_tiny("qwen2_vl", folder / "base")
    fields = ["--model_name_or_path", folder / "base", "--dataset_name", folder / "mmaip-v", "--rounds", 1]
    fields += ["--max_steps", 1, "--per_device_train_batch_size", 2, "--use_cpu", "true", "--bf16", "false"]
    fields += ["--max_new_tokens", 2, "--max_malformed", 1, "--max_repeated", 1, "--alphas", 0]
    return ["recipes/iter_w2s.py", *fields, "--output_dir", folder / output, *words]


@mistake("rounds of another configuration", slow=True)
def rounds_of_another_configuration(folder: Path) -> str:
    assert "1 rounds in" in (first := typed(*tiny_run(folder, "out"))), first
    return typed(*tiny_run(folder, "out", "--learning_rate", "1e-5"))


@mistake("no checkpoint folder here", slow=True)
def an_output_that_one_machine_sees(folder: Path) -> str:
    """Two "machines" with an output folder each, going on after a stop."""
    words = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1"]

    def machine(rank: int, port: int) -> subprocess.Popen:
        line = [*words, "--master-port", port, "--node-rank", rank, *tiny_run(folder, f"out-{rank}", "--rounds", "2")]
        line = [sys.executable, *map(str, line), "--stop_early", "false"]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            line, cwd=REPO, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    from tests.recipes.test_processes import free_port

    port = free_port()
    first = [machine(rank, port) for rank in (0, 1)]
    said_first = [running.communicate(timeout=300)[0] for running in first]
    assert first[0].returncode == 0, said_first[0][-3000:]
    shutil.rmtree(folder / "out-0" / "round-2")
    port = free_port()
    waiting, ending = machine(0, port), machine(1, port)
    try:
        return ending.communicate(timeout=300)[0]
    finally:
        os.killpg(waiting.pid, signal.SIGKILL)
        waiting.communicate()


@mistake("self-check: with a shared prompt", slow=True)
def prompts_that_are_not_shared_exactly(folder: Path) -> str:
    """A model whose answers see each other: one is made here, for none of the supported families is."""
    from recipes.video import attention
    from tests.recipes.pairs_world import fresh, make_trainer

    right = attention.branch_mask

    def wrong(prompt_mask, length):
        mask = right(prompt_mask, length).clone()
        mask[..., length:, prompt_mask.shape[1] : prompt_mask.shape[1] + length] = True
        return mask

    model, processor = fresh("qwen2_vl")
    with patch.object(attention, "branch_mask", wrong):
        return said(lambda words: make_trainer(model, processor, folder).train() and 0, [])


@mistake("install 'torchcodec'", slow=True)
def decoded_without_torchcodec(folder: Path) -> str:
    from tests.recipes.tiny import make_dataset

    make_dataset(folder / "mmaip-v")
    code = "import sys; sys.modules['torchcodec'] = None; from datasets import config, load_dataset; "
    code += "config.TORCHCODEC_AVAILABLE = False; load_dataset('mmaip-v', 'preferences', split='train')[0]['video']"
    return typed("-c", code, cwd=folder)


def results(folder: Path, name: str, judge: str) -> Path:
    """Saved results of thirty videos."""
    from eval.results import MORE_FIELDS, Results

    rows = [
        {
            **{"question_id": f"q{n}", "video_id": f"v{n}", "question_type": "", "question": "?", "answers": ["x"]},
            **{"response": f"{name} {n}", "correct": n % 2, "score": None, "error": None, **dict.fromkeys(MORE_FIELDS)},
        }
        for n in range(30)
    ]
    made = Results(name, name, "", judge={"name": judge, "fingerprint": judge}, rows=rows)
    made.save(folder / f"{name}.json")
    return folder / f"{name}.json"


def evaluation(*words: object) -> str:
    """``python -m eval …``"""
    from eval.__main__ import main

    return said(main, list(words))


@mistake("--different-judges")
def different_judges(folder: Path) -> str:
    return evaluation("compare", results(folder, "one", "reference"), results(folder, "other", "visual"))


@mistake("are too few for an interval")
def too_few_gold_videos(folder: Path) -> str:
    from eval.gold.rows import GoldLabel, LabelFile, response_hash

    saved = results(folder, "one", "visual")
    for n in range(4):
        LabelFile(folder / "gold.jsonl").append(
            GoldLabel(f"q{n}", f"v{n}", (response_hash(f"one {n}"),), "ada", "correct")
        )
    return evaluation("debias", saved, "--gold", folder / "gold.jsonl")


@mistake("have no verdict")
def verdicts_that_are_none(folder: Path) -> str:
    with StubServer(reply=lambda body: "well, it depends") as server:
        judge = {"kind": "video_chatgpt", "model": "m", "endpoint": {"base_url": server.url, "max_retries": 0}}
        (folder / "judge.yaml").write_text(yaml.safe_dump({"judge": judge}))
        saved = results(folder, "one", "reference")
        return evaluation("rejudge", saved, "--judge", folder / "judge.yaml", "--output", folder / "again.json")


def pushed(folder: Path, change: Callable[[Path], object], read_only: bool = False) -> str:
    """``python -m cards push`` of a made run to a Hub on loopback, after a change."""
    from tests.cards.conftest import make_run
    from tests.cards.pushing import finish, push

    run = make_run(folder)
    finish(run)
    change(run)
    with LoopbackHub(folder / "hub") as hub:
        done = push(run, hub, folder / "home", token=hub.read_token if read_only else "")
    return done.out + done.err


@mistake("token may only read", slow=True)
def a_token_that_may_only_read(folder: Path) -> str:
    return pushed(folder, lambda run: None, read_only=True)


@mistake("nothing was sent", slow=True)
def a_path_in_a_card(folder: Path) -> str:
    def tell(run: Path) -> None:
        card = run / "evaluator" / "README.md"
        card.write_text(card.read_text() + "\nSee /home/somebody/notes.txt\n")

    return pushed(folder, tell)
