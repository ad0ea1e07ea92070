"""Broken input at the command line: one clear line with file and row, the rest goes on, the exit code says so."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from dataset_builder.__main__ import main
from tests.dataset_builder.clips import break_clip
from tests.dataset_builder.worlds import changed, tree, write_config

ASK = {"question": "what colour is the shape ?", "answer": "red"}
# What is broken: the row, the word it is counted by, what the line names. {good} is a clip that can be read.
ROWS = {
    "missing video": ({"video": "missing.mp4", **ASK}, "missing_video", ["missing.mp4", "no such file"]),
    "zero-byte file": ({"video": "zero_bytes.mp4", **ASK}, "empty_video", ["zero_bytes.mp4", "0 bytes"]),
    "text renamed to .mp4": ({"video": "text.mp4", **ASK}, "unreadable_video", ["text.mp4", "not a video file"]),
    "truncated mp4": ({"video": "truncated.mp4", **ASK}, "truncated_video", ["truncated.mp4", "is truncated"]),
    "truncated behind its index": (
        {"video": "truncated_behind_index.mp4", **ASK},
        "truncated_video",
        ["truncated_behind_index.mp4", "is truncated"],
    ),
    "bad line": ('{"video": "{good}", "question": ', "bad_json", ["not valid JSON", "column"]),
    "no question": ({"video": "{good}", "answer": "red"}, "missing_question", ["'question'", "is missing"]),
    "empty question": ({"video": "{good}", "question": " "}, "missing_question", ["'question'", "is empty"]),
    "duplicate id": (
        {"video": "{good}", "id": "{id}", "question": "another one under the same id ?"},
        "duplicate_id",
        ["'id'", "already stands in row 1 with another", "question"],
    ),
}
BAD_AT = 3  # the broken row stands between good ones


def broken_files(row) -> set[str]:
    """The files that a case's row names and that have to be made."""
    video = row.get("video", "") if isinstance(row, dict) else ""
    return {video.removesuffix(".mp4")} - {"", "{good}"}


@pytest.fixture(scope="module")
def small(world, tmp_path_factory):
    """A world with one member and one judge, with every broken file beside the good clips: (YAML path, good rows)."""
    folder = tmp_path_factory.mktemp("small")
    config = yaml.safe_load(world.read_text())
    with open(config["sources"][0]["questions"]) as stream:
        good = [json.loads(line) for line in stream][:4]
    (folder / "videos").mkdir()
    for name in {row["video"] for row in good}:
        shutil.copy(Path(config["sources"][0]["videos"]) / name, folder / "videos" / name)
    for name in sorted(set().union(*(broken_files(row) for row, _, _ in ROWS.values()))):
        break_clip(folder / "videos", name)
    config["sources"][0]["videos"] = str(folder / "videos")
    config["zoo"] = config["zoo"][1:]
    config["judges"] = config["judges"][:1]
    return write_config(folder / "build.yaml", config), good


def questions_file(path: Path, good: list[dict], *bad) -> Path:
    """Two good rows, the broken ones, the other good rows."""
    fill = {"{good}": good[0]["video"], "{id}": good[0]["id"]}
    lines = [row if isinstance(row, str) else json.dumps(row) for row in [*good[:2], *bad, *good[2:]]]
    path.write_text("\n".join(re.sub(r"\{good\}|\{id\}", lambda m: fill[m[0]], line) for line in lines) + "\n")
    return path


def left_out(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("left out: ")]


@pytest.mark.parametrize("case", ROWS)
def test_a_broken_row_is_one_line_and_the_rest_goes_on(small, tmp_path, capsys, case):
    row, kind, words = ROWS[case]
    config, good = small
    file = questions_file(tmp_path / "questions.jsonl", good, row)
    config = changed(config, tmp_path / "build.yaml", source={"questions": str(file)})
    assert main(["build", str(config), "--output", str(tmp_path / "mmaip-v"), "--quiet"]) == 3
    said = capsys.readouterr()
    (line,) = left_out(said.err)
    assert line.startswith(f"left out: {file}:{BAD_AT}: ")
    assert all(word in line for word in words), line
    assert "Traceback" not in said.err
    assert re.search(rf"^rejected   1\n +1  {kind}$", said.out, re.MULTILINE), said.out
    assert re.search(r"^questions  4$", said.out, re.MULTILINE)
    provenance = json.loads((tmp_path / "mmaip-v" / "provenance.json").read_text())
    assert provenance["summary"]["rejected"] == {kind: 1}


def test_all_of_them_at_once(small, tmp_path, capsys):
    config, good = small
    rows = [row for row, _, _ in ROWS.values()]
    file = questions_file(tmp_path / "questions.jsonl", good, *rows)
    config = changed(config, tmp_path / "build.yaml", source={"questions": str(file)})
    words = ["build", str(config), "--output", str(tmp_path / "mmaip-v"), "--quiet"]
    assert main(words) == 3
    said = capsys.readouterr()
    numbers = range(BAD_AT, BAD_AT + len(rows))
    assert [line.split(": ")[1] for line in left_out(said.err)] == [f"{file}:{number}" for number in numbers]
    counts = json.loads((tmp_path / "mmaip-v" / "provenance.json").read_text())["summary"]["rejected"]
    kinds = [kind for _, kind, _ in ROWS.values()]
    assert counts == {kind: kinds.count(kind) for kind in kinds}
    before = tree(tmp_path / "mmaip-v")
    # The same command again: nothing to do, but the exit code and the lines still tell.
    assert main(words) == 3
    assert len(left_out(capsys.readouterr().err)) == len(rows)
    # A dry run tells it beforehand.
    assert main([*words, "--dry-run"]) == 3
    assert len(left_out(capsys.readouterr().err)) == len(rows)
    assert tree(tmp_path / "mmaip-v") == before


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"pairz": {"min_margin": 0.1}}, ["build.yaml", "pairz", "pairs"]),
        ({"source": {"video": "x"}}, ["video"]),
        ({"source": {"videos": "no/such/folder"}}, ["no/such/folder"]),
        ({"source": {"questions": "nothing.jsonl"}}, ["nothing.jsonl"]),
        ({"zoo": [{"name": "a", "model": "no/such/checkpoint/here"}]}, ["no/such/checkpoint/here"]),
        ({"judges": [{"kind": "visual", "model": "/no/judge"}]}, ["/no/judge"]),
        ({"judges": [{"kind": "oracle"}]}, ["oracle"]),
    ],
)
def test_what_cannot_run_says_so_in_one_line(world, tmp_path, capsys, changes, words):
    config = changed(world, tmp_path / "build.yaml", **changes)
    assert main(["build", str(config), "--output", str(tmp_path / "mmaip-v"), "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    assert all(word in said for word in words), said
    assert not (tmp_path / "mmaip-v").exists()


def test_only_broken_rows_cannot_run(world, tmp_path, capsys):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"video": "nowhere.mp4", "question": "what ?"}\n')
    config = changed(world, tmp_path / "build.yaml", source={"questions": str(file)})
    assert main(["build", str(config), "--output", str(tmp_path / "mmaip-v"), "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: no usable question is left: {file}:1: field 'video': ")
    assert "\n" not in said and said.endswith("there is no such file")
    file.write_text(file.read_text() * 3)
    assert main(["build", str(config), "--output", str(tmp_path / "mmaip-v"), "--quiet"]) == 2
    assert capsys.readouterr().err.strip().endswith("there is no such file (and 2 more rows)")
