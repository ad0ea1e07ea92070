"""The rehearsal of the release: what it needs, what it shows, and that a step that fails stops no other."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.rehearsal.__main__ import main
from tests.rehearsal.pages import page
from tests.rehearsal.rehearsal import FAILED, LEFT_OUT, OK, Rehearsal


def test_without_a_finished_run_it_is_one_line(tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text('{"name": "begun", "dataset": "nowhere"}')
    for name in ("nothing", "begun"):
        assert main(["--run", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 2
        said = capsys.readouterr()
        assert said.err == f"error: {tmp_path / name}: is no finished run; `make demo` makes runs/demo\n"
        assert not said.out and not (tmp_path / "out").exists()


def test_a_page_holds_its_pictures_and_names_those_that_are_missing():
    text = "---\nlicense: mit\n---\n# A & B\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n\n![x](a.png) ![y](b.png)\n"
    html, missing = page("ns/name", {"README.md": text.encode(), "a.png": b"picture"})
    assert missing == ["b.png"]
    assert f'src="data:image/png;base64,{base64.b64encode(b"picture").decode()}"' in html
    assert "<h1>A &amp; B</h1>" in html and "<td>1</td>" in html and "license: mit" in html.split("<h1>")[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run whose rounds were trained with LoRA."""
    from cards.figures import draw_all
    from cards.run_folder import Run
    from tests.cards.conftest import make_run
    from tests.cards.pushing import finish

    run = make_run(tmp_path_factory.mktemp("rehearsed"))
    draw_all(Run(run))
    finish(run)
    add_adapters(run)
    return run


def add_adapters(run: Path) -> None:
    """Random LoRA weights beside every round of the released arm, on a base in the run folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from dataset_builder.toy_models import save_tiny

    base = save_tiny("qwen2_vl", run / "models" / "base", seed=9)
    for folder in sorted((run / "arms" / "iter_w2s").glob("round-*")):
        model = AutoModelForImageTextToText.from_pretrained(base)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(model, lora).save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink()


@pytest.fixture
def rehearsal(run, tmp_path) -> Rehearsal:
    return Rehearsal(run, tmp_path / "out", limit=4)


@pytest.mark.slow
def test_what_is_no_rehearsal_is_not_replaced(run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["--run", str(run), "--output", str(tmp_path)]) == 2
    assert "is no rehearsal, and is not replaced" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_stranger_uses_everything_that_was_released(rehearsal):
    lines = []
    rehearsal.all(lines.append)
    record = json.loads((rehearsal.output / "rehearsal.json").read_text())
    states = {step["step"]: step for step in record["steps"]}
    assert len(lines) == len(states) + 2 and "1 not rehearsed" in lines[-1]
    live = states.pop("live card validation")
    assert live["state"] == LEFT_OUT and "it asks huggingface.co" in live["figure"] and "3 cards" in live["figure"]
    for name, step in states.items():
        if not name.startswith("verify"):  # the made run's figures are made up, and verifying says so
            assert step["state"] == OK, (name, step["figure"])
    assert "preferences" in states["dataset, all configs"]["figure"]
    assert "LoRA weights on tester/demo at base, equal" in states["adapter of the run by peft"]["figure"]
    assert "LoRA weights on tester/demo-base, equal" in states["adapter by peft on its base"]["figure"]
    assert states["verify tester/demo-lora"]["state"] == OK  # whose figures are measured
    assert "of an earlier rehearsal" not in states["a LoRA run by recipes and finish"]["figure"]
    assert states["verify tester/demo"]["state"] == FAILED and states["repo pages"]["state"] == OK
    html = (rehearsal.output / "pages" / "mmaip-v" / "index.html").read_text()
    assert 'src="data:image/png;base64,' in html and 'src="figures' not in html


@pytest.mark.slow
def test_a_push_that_fails_fails_the_others_too_and_all_are_tried(rehearsal, run):
    card = run / "evaluator" / "README.md"
    kept = card.read_bytes()
    card.write_bytes(kept + b"\nSee /home/somebody/secret/notes.txt\n")
    try:
        lines = []
        assert rehearsal.all(lines.append) is False
    finally:
        card.write_bytes(kept)
    states = {step["step"]: step for step in rehearsal.steps}
    assert states["push"]["state"] == FAILED and "a path of this machine" in states["push"]["figure"]
    assert states["nothing left this machine"]["state"] == OK
    alone = ("push", "nothing left this machine", "live card validation", "a LoRA run by recipes and finish")
    others = {name: step["state"] for name, step in states.items() if name not in alone}
    assert set(others.values()) == {FAILED}, others
