"""``audit-judge`` from end to end: a real tiny judge on a built dataset, and a served judge on a set of one's own."""

import json

import pytest

from dataset_builder.errors import KitError
from dataset_builder.judges.injections import INJECTIONS
from dataset_builder.toy import generate_toy
from eval.__main__ import main
from eval.audit import audit_summary, injected
from tests.endpoints.stub import StubServer, message_text

NAMES = {"audit.json", "audit.md", "audit.png", "audit_rows.json"}


@pytest.fixture
def few_injections(monkeypatch):
    monkeypatch.setattr("dataset_builder.judges.injections.INJECTIONS", INJECTIONS[::16])
    monkeypatch.setattr(injected, "CASES", 2)


def test_a_tiny_visual_judge_on_a_built_dataset(world, tmp_path, capsys, few_injections):
    judge = tmp_path / "judge.yaml"
    judge.write_text(f"judge: {{kind: visual, model: {world.checkpoints['llava_onevision']}, num_frames: 4}}\n")
    words = ["audit-judge", str(judge), "--dataset", str(world.dataset), "--limit", "4", "--own", "qwen2_vl"]
    words += ["--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "audit of visual" in shown.err and "answer/s" in shown.err  # a bar with rate
    assert {path.name for path in (tmp_path / "out").iterdir()} == NAMES | {".audit-work"}
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert record["set"] | {"fingerprint": ""} == {
        "name": "embedded (test)",
        "fingerprint": "",
        "cases": 4,
        "videos": 2,
        "right_are_references": True,
    }
    assert record["judge"]["kind"] == "visual" and record["judge"]["fingerprint"] and record["unjudged"] == 0
    probes = {one["probe"] for one in record["findings"]}
    assert probes >= {"errors", "length", "style", "injections", "frames", "other_video", "blank", "retest", "order"}
    assert "pairs" in record["not_measured"] and "no_frames" not in record["not_measured"]
    for one in record["findings"]:
        if one["probe"] in ("retest", "order") and one["name"] == "changed":
            assert one["estimate"]["mean"] == 0
    assert "toy of 0." in audit_summary(record)  # no figure of a tiny judge reaches a card
    assert (tmp_path / "out" / "audit.md").read_text() == shown.out
    assert (tmp_path / "out" / "audit.png").read_bytes()[:4] == b"\x89PNG"

    first = {name: (tmp_path / "out" / name).read_bytes() for name in NAMES}
    shards = sorted((tmp_path / "out" / ".audit-work").rglob("*.jsonl"))
    times = [path.stat().st_mtime_ns for path in shards]
    assert main(words) == 0  # everything is kept: nothing is judged again, and the bytes are the same
    assert {name: (tmp_path / "out" / name).read_bytes() for name in NAMES} == first
    assert [path.stat().st_mtime_ns for path in shards] == times


def reads_references(body):
    """A served judge that accepts what it reads in the references, and takes the first of two answers."""
    text = message_text(body["messages"])
    if "Which answer is better" in text:
        return json.dumps({"better": "A", "reason": "it stands first"})
    said = text.split("[ANSWER", 1)[1].split("\n", 1)[1].split("\n[END", 1)[0]
    reference = text.split("frames show it): ")[-1].split("any of them is right): ")[-1].split("\n")[0]
    right = reference in said
    return json.dumps({"correct": "yes" if right else "no", "score": 5 if right else 0, "reason": "so it is"})


@pytest.fixture
def own_set(tmp_path):
    questions = generate_toy(tmp_path / "toy", seed=8, clips={"test": 3}, types=("colour", "shape"))
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows = [{**row, "video": f"toy/videos/{row['video']}"} for row in rows]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "set.jsonl"


def test_a_served_judge_goes_on_and_is_asked_twice_for_the_retest_alone(own_set, tmp_path, few_injections):
    with StubServer(reply=reads_references) as server:
        judge, pair = tmp_path / "judge.yaml", tmp_path / "pair.yaml"
        endpoint = f"endpoint: {{base_url: '{server.url}', concurrency: 8}}"
        judge.write_text(f"judge: {{kind: vqa, model: m, {endpoint}}}\n")
        pair.write_text(f"model: m\n{endpoint}\n")
        words = ["audit-judge", str(judge), "--set", str(own_set), "--output", str(tmp_path / "out")]
        words += ["--pair-judge", str(pair)]
        assert main([*words, "--probes", "errors", "length"]) == 0  # a part of the whole: as if it had been stopped
        part = server.stats()
        assert part["calls"] == part["distinct"] == 12 + 12 + 6
        assert main(words) == 0
        whole = server.stats()
        assert whole["calls"] > part["calls"] and whole["repeated"] == 2 * 6  # of six questions, for test-retest alone
        assert main(words) == 0 and server.stats() == whole
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    figures = {f"{one['probe']}.{one['name']}": one["estimate"]["mean"] for one in record["findings"]}
    assert figures["errors.accuracy"] == figures["no_frames.accuracy"] == figures["other_video.same"] == 1
    assert figures["pairs.flips"] == figures["pairs.position"] == 1 and figures["retest.changed"] == 0
    assert "a call of its own" in record["not_measured"]["order"]
    assert record["judge"]["reported"] == ["m-stub"] and record["parameters"] is None
    assert "do not follow the video" in (tmp_path / "out" / "audit.md").read_text()
    assert "saw 3 videos" in audit_summary(record)


def test_failures_give_an_exit_code_and_mistakes_one_line(own_set, tmp_path, capsys):
    judge = tmp_path / "judge.yaml"
    with StubServer(reply=lambda body: "no idea") as server:
        endpoint = f"{{base_url: '{server.url}', max_retries: 0}}"
        judge.write_text(f"judge: {{kind: vqa, model: m, endpoint: {endpoint}}}\n")
        words = ["audit-judge", str(judge), "--set", str(own_set), "--output", str(tmp_path / "out")]
        assert main([*words, "--probes", "errors"]) == 5
    shown = capsys.readouterr()
    assert "100.0% of the verdicts are missing" in shown.err and "not measured: no usable reply" in shown.out
    for more, said in (
        (["--probes", "lenght"], "did you mean 'length'"),
        (["--pair-judge", str(tmp_path / "none.yaml")], "none.yaml"),
    ):
        with pytest.raises(KitError, match=said):
            main([*words, *more])
    with pytest.raises(SystemExit):
        main([*words, "--limit", "0"])


def test_an_own_model_that_never_answered_is_a_mistake(tmp_path, own_set):
    rows = [json.loads(line) for line in own_set.read_text().splitlines()]
    said = [{"model": "qwen-7b", "response": "red", "right": True}]
    own_set.write_text("".join(json.dumps({**row, "responses": said}) + "\n" for row in rows))
    judge = tmp_path / "judge.yaml"
    judge.write_text("judge: {kind: reference}\n")
    words = ["audit-judge", str(judge), "--set", str(own_set), "--output", str(tmp_path / "out"), "--own"]
    with pytest.raises(KitError, match="nobody called 'qwen-7B' has answered; did you mean 'qwen-7b'"):
        main([*words, "qwen-7B"])
    assert main([*words, "qwen-7b"]) == 0
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert record["not_measured"]["self_preference"] == "the set holds answers of the judge's own family only"
