"""Before anything leaves: each thing that must not be released is planted once, and refused in a line that names it."""

from __future__ import annotations

import getpass
import json
import pickle
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cards.__main__ import main
from cards.push import checks
from cards.push.checks import check_names, problems
from cards.push.leaks import Leaks
from cards.push.plan import Options, PlannedFile, make_plan
from cards.release import load_config
from dataset_builder.errors import KitError
from tests.cards.pushing import ROOT, copy, push
from tests.hub import LoopbackHub

AWS = "AKIA" + "Q3EGRIZ6LN2PXYT4"  # put together here, so that nobody's scanner finds one in this file
HUB_TOKEN = "hf_" + "QmZkTrYvWbNcLpXsDgHjKfAqRtEyUiOpMn"
TRAINED = Path("arms/iter_w2s")


@pytest.fixture
def run(finished, tmp_path):
    """A finished run of the test's own."""
    return copy(finished, tmp_path / "copy")


@pytest.fixture
def no_search(monkeypatch):
    """Without the search for secrets and paths, which takes most of the time."""
    monkeypatch.setattr(checks, "_leaks", lambda *rest: iter(()))


def found(run: Path, *allowed: str, **options) -> list[str]:
    return problems(make_plan(run, Options("tester", **options)), allowed)


def dataset(run: Path) -> Path:
    return run.parent / "mmaip-v"


def change_rows(path: Path, column: str, value: str) -> None:
    """Put a text into a column of the first row; the file's schema stays."""
    table = pq.read_table(path)
    values = [value, *table.column(column).to_pylist()[1:]]
    place = table.schema.get_field_index(column)
    table = table.set_column(place, table.schema.field(column), pa.array(values, table.schema.field(column).type))
    pq.write_table(table, path, row_group_size=8)


def trust(run: Path) -> None:
    """Forget the hashes of the build, so that only what was planted can be wrong."""
    path = dataset(run) / "provenance.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "files"}))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_good_run_has_no_problems(run):
    assert found(run) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"key = {AWS}\n", "AWS"),
        (f"token: {HUB_TOKEN}\n", "Hugging Face Token"),
        ("-----BEGIN RSA PRIVATE " + "KEY-----\n", "Private Key"),
        ("https://someone:" + "t0psecret9@host.example/x\n", "Basic Auth"),
        ('{"api_key": "' + "q7Jw2xNf81LmPz" + '"}\n', "Secret Keyword"),
    ],
)
def test_secrets_in_text_are_refused_and_not_shown(run, text, kind):
    (run / "evaluator" / "notes.json").write_text("\n\n" + text)
    (line,) = found(run)
    assert line.startswith("evaluator tester/demo-evaluator: notes.json:3: ") and kind in line
    assert not any(part in line for part in (AWS, HUB_TOKEN, "t0psecret9", "q7Jw2xNf81LmPz"))


def test_secrets_and_paths_in_parquet_safetensors_and_variables_are_refused(run, monkeypatch):
    trust(run)
    rows = dataset(run) / "responses" / "train-00000-of-00001.parquet"
    change_rows(rows, "response", f"it says {AWS}")
    assert re.fullmatch(r".*responses/train-\S+: column response: what looks like a secret \(AWS.*", *found(run))
    change_rows(rows, "response", "see /home/somebody/clip.mp4")
    assert "column response: a path of this machine (/home/somebody/clip.mp4)" in found(run)[0]
    change_rows(rows, "response", "fine")
    for number in (1, 2, 3):
        header = json.dumps({"__metadata__": {"made": "/scratch/somebody/x"}}).encode()
        weights = run / TRAINED / f"round-{number}" / "model.safetensors"
        weights.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "model.safetensors:1: a path of this machine (/scratch/somebody/x)" in found(run)[0]
    assert found(run, "/scratch/somebody/x") == []  # a person who says it is none is believed
    monkeypatch.setenv("OTHER_API_TOKEN", "ordinary-looking-words")
    (run / "evaluator" / "notes.txt").write_text("with ordinary-looking-words in it")
    assert "the value of a secret variable of this process" in found(run, "/scratch/somebody/x")[0]


def test_paths_and_names_of_this_machine_are_refused(run, monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "zoltan")

    def lines(text: str, namespace: str = "tester") -> list[str]:
        file = PlannedFile.of("notes.json", text.encode())
        return [f"{each.where}: {each.what}" for each in Leaks((run,), (), namespace).in_file(file)]

    for text, said in (
        (f'{{"at": "{ROOT}/x"}}', f"a path of this machine ({ROOT}/x)"),
        (f'{{"at": "{run}/arms"}}', f"a path of this machine ({run}/arms)"),
        (r'{"at": "C:\\Users\\me\\clip.mp4"}', "a path of this machine"),
        ('{"at": "/data/models/base"}', "a path of this machine (/data/models/base)"),
        ('{"by": "zoltan"}', "the name of this user or machine (zoltan)"),
    ):
        (line,) = lines(f"\n{text}")
        assert "notes.json:2: " in line and said in line
    assert (
        lines('{"url": "https://host.example/home/page", "route": "/health", "either": "his/her", "s": "a/b/c"}') == []
    )
    assert lines("by zoltan", namespace="zoltan") == []  # whose namespace it is, is no secret
    (run / "evaluator" / "notes.json").write_text(f'{{"at": "{ROOT}/x"}}')
    (line,) = found(run)
    assert line.startswith("evaluator tester/demo-evaluator: notes.json:1: a path of this machine")


def test_results_lose_this_machine_on_the_way(run):
    path = run / "results" / "iter_w2s.json"
    content = json.loads(path.read_text())
    content |= {"model": f"{run}/arms/iter_w2s/round-3", "dataset": str(dataset(run))}
    path.write_text(json.dumps(content))
    assert found(run) == []
    sent = json.loads(make_plan(run, Options("tester")).repo("model").final.files["results/iter_w2s.json"].read())
    assert (sent["model"], sent["dataset"]) == ("arms/iter_w2s/round-3", "mmaip-v")
    assert sent["rows"] == content["rows"]


def test_pickles_are_refused_by_name_and_by_content(run, no_search):
    last = run / TRAINED / "round-3"
    (last / "training_args.bin").write_bytes(b"x")
    (run / TRAINED / "round-1" / "optimizer.pt").write_bytes(b"x")
    (dataset(run) / "cache.dat").write_bytes(pickle.dumps({"a": 1}))
    lines = found(run)
    assert len(lines) == 3
    for words in (
        "training_args.bin: is a pickle",
        "optimizer.pt: may be a pickle",
        "cache.dat: is a pickle by its con",
    ):
        assert any(words in line for line in lines), words


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("source", "MSVD", "MSVD: clips of YouTube"),
        ("license", "unknown", "no licence is known"),
        ("license", "house-rules", "no open licence"),
    ],
)
def test_videos_that_may_not_be_passed_on_are_refused(run, no_search, column, value, reason):
    trust(run)
    rows = dataset(run) / "benchmark" / "test-00000-of-00001.parquet"
    change_rows(rows, column, value)
    (line,) = found(run)
    assert "benchmark/test-00000-of-00001.parquet: 1 rows embed videos" in line and reason in line
    content = json.loads((dataset(run) / "provenance.json").read_text())
    content["sources"] = [{"kind": "folder", "source": "own", "license": None, "redistribute": True}]
    (dataset(run) / "provenance.json").write_text(json.dumps(content))
    assert (found(run) == []) == (value == "house-rules")  # one's own word counts for one's own videos
    table = pq.read_table(rows)
    empty = pa.nulls(len(table), table.schema.field("video").type)
    place = table.schema.get_field_index("video")
    pq.write_table(table.set_column(place, table.schema.field("video"), empty), rows)
    assert found(run) == []  # without the videos anything may be named
    (dataset(run) / "clip.mp4").write_bytes(b"x")
    assert "clip.mp4: is a video beside the rows" in found(run)[0]


def test_only_gold_labels_without_names_are_planned(run):
    place = run / "results" / "gold"
    place.mkdir(parents=True, exist_ok=True)
    for name in ("mine", "labels"):
        (place / f"{name}.jsonl").write_text("{}\n")
    files = make_plan(run, Options("tester")).repo("model").final.files
    assert "results/gold/labels.jsonl" in files and "results/gold/mine.jsonl" not in files


def test_cards_are_complete(run, no_search):
    card = run / TRAINED / "round-3" / "README.md"
    good = card.read_text()
    for old, new, words in (
        ("license: apache-2.0\n", "", "no 'license'"),
        ("license: apache-2.0\n", "license:\n", "no 'license'"),
        ("pipeline_tag: video-text-to-text\n", "pipeline_tag: ''\n", "'pipeline_tag' in its YAML block is empty"),
        ("- dpo\n", "-\n", "'tags[1]' in its YAML block is empty"),
        ("\n# demo\n", "\n# {{ name }}\n", "'{{' was left from the template"),
        ("\n# demo\n", "\n[More Information Needed]\n", "[More Information Needed]"),
        ("\n# demo\n", "\n| a | b |\n| --- | --- |\n| nan | 1 |\n", "'nan' was left"),
        ("\n# demo\n", '\n```\nload("NAMESPACE/NAME")\n```\n', "'NAMESPACE/NAME' was left"),
        ("value: 0.68", "value: 0.99", "model-index says accuracy 0.99, arms.json says 0.6800"),
        ("---\n", "", "has no YAML block"),
    ):
        assert old in good, old
        card.write_text(good.replace(old, new, 1))
        (line,) = found(run)
        assert line.startswith("model tester/demo: README.md") and words in line, line
    card.write_text(good.replace("\n# demo\n", "\n```python\nx = f'{{a}}'  # TODO\n```\n"))
    assert found(run) == []  # code may have braces
    card.unlink()
    (line,) = found(run)
    assert "README.md is missing" in line


def test_the_dataset_is_what_was_built_and_its_card_counts_right(run, no_search):
    card = dataset(run) / "README.md"
    number = yaml.safe_load(card.read_text().split("---\n")[1])["dataset_info"][0]["splits"][0]["num_examples"]
    edit(card, f"num_examples: {number}\n", f"num_examples: {number + 1}\n")
    (line,) = found(run)
    assert f"says {number + 1} rows of preferences/train, the files hold {number}" in line
    edit(card, f"num_examples: {number + 1}\n", f"num_examples: {number}\n")
    rows = dataset(run) / "questions" / "train-00000-of-00001.parquet"
    change_rows(rows, "question", "what now ?")
    assert "questions/train-00000-of-00001.parquet: is not what the build wrote" in found(run)[0]
    rows.unlink()
    assert any("questions/train-00000-of-00001.parquet: is missing" in line for line in found(run))


def test_limits_of_the_hub_and_names(run, no_search, monkeypatch):
    monkeypatch.setattr(checks, "FILE_LIMIT", 1_000_000)
    monkeypatch.setattr(checks, "ENTRIES", 4)
    lines = found(run)
    assert any("model.safetensors" in line and "shard it" in line for line in lines)
    assert any(line.startswith("evaluator") and "make larger shards" in line for line in lines)
    monkeypatch.undo()
    assert "is no id for a repo" in found(run, name="two words")[0]
    assert "cannot be a tag" in found(run, version="1 0")[0]
    for names in ({"model": "a/b"}, {"model": "-x"}, {"model": "x" * 97}):
        with pytest.raises(KitError, match="is no id for a repo"):
            check_names("tester", names)
    check_names("tester", {"model": "demo", "dataset": "mmaip-v"})


def test_a_release_whose_repos_cannot_be_called_so_does_not_start(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = Path("cards/configs/demo.yaml").read_text().replace("namespace: null", "namespace: not/one")
    (tmp_path / "release.yaml").write_text(text)
    with pytest.raises(KitError, match="not/one/mmaip-v: is no id"):
        load_config(tmp_path / "release.yaml")


def test_a_refused_push_sends_nothing(run, tmp_path, capsys):
    (run / "evaluator" / "notes.txt").write_text(f"{AWS}\n")
    (run / TRAINED / "round-3" / "training_args.bin").write_bytes(b"x")
    with LoopbackHub(tmp_path / "hub") as hub:
        done = push(run, hub, tmp_path / "home")
        assert done.code == 2 and done.out == "" and hub.repos() == [] and hub.counts()["requests"] == {}
        lines = done.err.strip().splitlines()
        assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
        assert lines[-1] == "error: 2 things to put right; nothing was sent"
    assert main(["push", str(run), "--namespace", "tester", "--check"]) == 2
    assert "2 things to put right" in capsys.readouterr().err
