"""What a person has who types the README's commands: a clone, videos, questions, rows, a rule file and a server."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.endpoints.stub import StubServer, message_text, play
from tests.readme.commands import REPO

PORTS = (8000, 8001, 8002)  # those that the example configs name
CLIPS = {"train": 10, "validation": 2, "test": 2}
ASKED = ["What colour is the shape?", "Which way does it move?", "How many dots are there?", "Is a lamp lit?"]


def work_copy(folder: Path) -> Path:
    """A copy of what git knows or would take in, with the environment that these tests run in as its `.venv`.

    The environment's parts are linked, and its stamp is new: `make` finds nothing to install.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, folder / name)
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".ready":
            (folder / ".venv" / part.name).symlink_to(part)
    (folder / ".venv" / ".ready").touch()
    return folder


def own_data(folder: Path) -> None:
    """Write what the example configs and the README's capital words name."""
    from dataset_builder.toy import generate_toy

    made = generate_toy(folder / "drawn", seed=5, clips=CLIPS, types=("colour", "direction"))
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    videos = folder / "my_videos"
    (folder / "drawn" / "videos").rename(videos)
    shutil.rmtree(folder / "drawn")
    shutil.copyfile(videos / rows[0]["video"], folder / "clip.mp4")
    questions = [{"video": row["video"], "question": row["question"], "answer": row["answer"]} for row in rows]
    _lines(videos / "questions.jsonl", questions)
    pairs = [
        {"video": row["video"], "prompt": row["question"], "chosen": row["answer"], "rejected": "nothing"}
        for row in rows
    ]
    for name in ("sft_dpo_17k.jsonl", "pairs.jsonl"):
        _lines(videos / name, pairs)
    config = yaml.safe_load((folder / "dataset_builder/configs/own_videos.yaml").read_text())
    config["name"] = "my-config"
    (folder / "my_config.yaml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text("pairs: {min_margin: 0.4}\n")


def _lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def labels(folder: Path) -> None:
    """``runs/gold.jsonl``, as one annotator who knows the toy world's truth leaves it: 40 videos, all their answers."""
    from eval.gold.rows import GoldLabel, LabelFile, response_hash
    from eval.gold.sampling import draw_sample
    from eval.results import Results

    results = Results.load(folder / "runs/base-visual.json")
    drawn, gold = set(draw_sample(results, 40, seed=0).videos), LabelFile(folder / "runs/gold.jsonl")
    for row in results.rows:
        if row["video_id"] in drawn:
            said = "correct" if row["response"] in row["answers"] else "incorrect"
            hashes = (response_hash(row["response"]),)
            gold.append(GoldLabel(row["question_id"], row["video_id"], hashes, "ada", said))


def reply(body: dict) -> str:
    """Questions where they are asked for, else what the stub says."""
    return json.dumps(ASKED) if "JSON list" in message_text(body["messages"]) else play(body)


@contextlib.contextmanager
def servers() -> Iterator[None]:
    """OpenAI-compatible servers at the addresses that the example configs name."""
    with contextlib.ExitStack() as stack:
        for port in PORTS:
            try:
                stack.enter_context(StubServer(port, reply=reply))
            except OSError as error:
                raise RuntimeError(
                    f"port {port} of loopback, which the example configs name, is taken: {error}"
                ) from None
        yield
