"""What an evaluator's repo carries: everything, so that a person without the kit can judge and run the tasks."""

import ast
import json
import math
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dataset_builder.errors import KitError
from eval.audit import audit
from eval.audit.run import TITLES
from eval.details import load_results
from eval.evaluator import VQAEvaluator
from eval.evaluator.closure import KIT, Source, closure, data_files, moved, outside
from eval.evaluator.config import read_config
from eval.evaluator.folders import PACKAGE
from eval.evaluator.repo import kit_pins, package_modules, requirements
from tests.eval.conftest import REPO
from tests.eval.planted_judges import planted_cases
from tests.eval.test_evaluator import contents
from tests.eval.test_lighteval_bare import planted  # noqa: F401 (a fixture)
from tests.hub import LoopbackHub
from tests.hub.client import Client

NAME = "tester/mmaip-v-evaluator"
QUIET = {"HF_HUB_DISABLE_UPDATE_CHECK": "1"}  # `hf` looks for a newer version of itself on PyPI
SITE = Path(metadata.distribution("lighteval").locate_file(""))


# The closure ---------------------------------------------------------------------------------------------------------


START = """from __future__ import annotations

from typing import TYPE_CHECKING

POINT = "·"; from eval.sub import part; import eval.alias as alias

if TYPE_CHECKING:
    from eval.hints import Hint


def late():
    from importlib import import_module

    import yaml
    from dataset_builder  import (
        deep,
    )

    return import_module("eval.named"), "see eval.unused", open("own.yaml"), yaml
"""


def small_kit(home: Path, wrong: str = "") -> Path:
    """A kit of a few modules below ``home``."""
    sources = {
        "eval/start.py": START,
        "eval/wrong.py": wrong,
        "eval/sub/part.py": "from eval.alias import x\n",
        "dataset_builder/deep.py": "import av\n",
    }
    empty = ("eval/__init__.py", "eval/sub/__init__.py", "eval/sub/other.py", "dataset_builder/__init__.py")
    empty += ("eval/alias.py", "eval/named.py", "eval/hints.py", "eval/unused.py", "eval/own.yaml", "eval/other.yaml")
    for name, text in {**dict.fromkeys(empty, ""), **sources}.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return home


def test_every_import_is_followed_and_moved(tmp_path):
    home = small_kit(tmp_path)
    found = closure(["eval.start"], home)
    rooms = ["dataset_builder", "dataset_builder.deep", "eval"]
    assert list(found) == [*rooms, *(f"eval.{m}" for m in ("alias", "hints", "named", "start", "sub", "sub.part"))]
    assert data_files(found) == [home / "eval" / "own.yaml"]
    assert outside(found) >= {"yaml", "av"} and not outside(found) & set(KIT)
    text = moved(found["eval.start"], "pack", home).decode()
    assert re.findall(r"pack\.[\w.]+", text) == [
        "pack.eval.sub",
        "pack.eval.alias",
        "pack.eval.hints",
        "pack.dataset_builder",
        "pack.eval.named",
    ]
    assert text.replace("pack.", "") == found["eval.start"].text.decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import eval.alias\n", "write `from … import …`"),
        ("from . import alias\n", "a relative import"),
        ("from eval.nowhere import x\n", "there is no module eval.nowhere"),
        ('x = ("eval."\n     "alias")\n', "cannot be moved"),
    ],
)
def test_what_cannot_be_moved_is_refused(tmp_path, text, said):
    home = small_kit(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(said)):
        moved(closure(["eval.wrong"], home)["eval.wrong"], "pack", home)


def test_the_kits_own_closure_is_closed(saved):
    modules = package_modules(REPO)
    assert {"eval.tasks", "eval.video_model", "eval.metric", "dataset_builder.judges.visual"} <= modules.keys()
    assert not [name for name in modules if name.split(".")[0] in ("recipes", "cards", "tests")]
    files = sorted((saved / PACKAGE).rglob("*.py"))
    assert len(files) == len(modules) + 1
    for file in files:
        compile(file.read_bytes(), str(file), "exec")
        for node in ast.walk(Source.read(file).tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split(".")[0] not in KIT, f"{file}:{node.lineno} leads to the kit"
                if name.split(".")[0] == PACKAGE:
                    place = saved.joinpath(*name.split("."))
                    assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), f"{file}: {name}"
    assert (saved / PACKAGE / "dataset_builder" / "sources" / "licenses.yaml").is_file()


def test_requirements_are_the_kits_pins_and_enough():
    modules, pins = package_modules(REPO), kit_pins(REPO)
    needed = requirements(modules, pins)
    assert set(needed) <= set(pins) and "xxhash<4" in needed and not any(pin.startswith("trl") for pin in needed)
    reached, waiting = set(), [re.match(r"[\w-]+", pin)[0] for pin in needed]
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in reached:
            reached.add(name)
            try:
                lines = metadata.requires(name) or []
            except metadata.PackageNotFoundError:  # of another system
                continue
            waiting += [re.match(r"[\w.-]+", line)[0] for line in lines if "extra ==" not in line]
    brought = metadata.packages_distributions()
    for name in sorted(outside(modules) - set(sys.stdlib_module_names)):
        assert {dist.lower().replace("_", "-") for dist in brought[name]} & reached, f"{name} comes from nowhere"


def test_its_own_judge_is_the_default_and_only_the_default(saved, tmp_path, monkeypatch):
    from eval import settings
    from eval.evaluator.own import main, use_own_judge

    monkeypatch.setattr(settings, "DEFAULT_JUDGE", settings.DEFAULT_JUDGE)
    monkeypatch.delenv("MMAIP_V_EVAL", raising=False)
    assert settings.load_settings().judge == {"kind": "reference"}
    use_own_judge(saved)
    assert settings.load_settings().judge["model"] == str(saved / "judge" / "qwen2_vl")
    for text, kind in (("num_frames: 4\n", "visual"), ("judge: {kind: reference}\n", "reference")):
        file = tmp_path / f"{kind}.yaml"
        file.write_text(text)
        monkeypatch.setenv("MMAIP_V_EVAL", str(file))
        assert settings.load_settings().judge["kind"] == kind
    assert main(saved, ["--help"]) == 0 and main(saved, ["compare"]) == 2
    with pytest.raises(KitError, match="no such file"):
        use_own_judge(tmp_path)


def test_in_the_hubs_cache_every_file_is_a_link(saved, without_kit, tmp_path):
    for number, file in enumerate(path for path in sorted(saved.rglob("*")) if path.is_file()):
        link = tmp_path / "snapshots" / file.relative_to(saved)
        link.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "blobs" / str(number)).write_bytes(file.read_bytes())
        link.symlink_to(tmp_path / "blobs" / str(number))
    done = without_kit("snapshots/run.py", "--help")
    assert f"{tmp_path}/snapshots/video_model.py" in done.stdout
    loaded = VQAEvaluator.from_pretrained(tmp_path / "snapshots", device="cpu")
    assert loaded.fingerprint == VQAEvaluator.from_pretrained(saved, device="cpu").fingerprint
    loaded.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(saved)
    assert not any(path.is_symlink() for path in (tmp_path / "again").rglob("*"))


# Bias ----------------------------------------------------------------------------------------------------------------


def audit_record(evaluator: VQAEvaluator, parameters: int | None = None) -> dict:
    """A record as `python -m eval audit-judge` writes it, of one probe."""
    record = audit(evaluator.judge, planted_cases(30), probes=["length"], draws=100)
    return {**record, "parameters": parameters}


def test_an_audit_stands_in_the_card(tmp_path):
    evaluator = VQAEvaluator({"kind": "reference"})
    for parameters, shown in ((None, True), (450_000, False)):
        folder = tmp_path / f"audit-{parameters}"
        folder.mkdir()
        (folder / "audit.json").write_text(json.dumps(audit_record(evaluator, parameters)))
        (folder / "audit.png").write_bytes(b"\x89PNG")
        out = tmp_path / f"E-{parameters}"
        VQAEvaluator({"kind": "reference"}, audit=folder).save_pretrained(out)
        card = (out / "README.md").read_text()
        bias = card.split("## Bias")[1].split("## ")[0]
        assert (f"| {TITLES['length']} |" in bias) == shown == ("](audit.png)" in bias)
        assert ("**not measured**" in bias) != shown
        again = VQAEvaluator.from_pretrained(out)
        again.save_pretrained(tmp_path / "again")
        assert contents(tmp_path / "again") == contents(out)


def test_an_audit_of_another_judge_is_refused(saved, tmp_path):
    file = tmp_path / "audit.json"
    record = audit_record(VQAEvaluator({"kind": "reference"}))
    file.write_text(json.dumps({**record, "judge": read_config(saved)["record"]}))
    with pytest.raises(KitError, match="audits another judge"):
        VQAEvaluator({"kind": "reference"}, audit=file).save_pretrained(tmp_path / "E")
    for text, said in (
        ('{"format": "x"}', "is no bias audit"),
        (json.dumps({**record, "set": 3}), "is no whole audit"),
    ):
        file.write_text(text)
        with pytest.raises(KitError, match=said):
            VQAEvaluator({"kind": "reference"}, audit=file).save_pretrained(tmp_path / "E")
    assert not (tmp_path / "E").exists()


# Without the kit -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluator") / "E"
    spec = {"kind": "visual", "model": str(world.checkpoints["qwen2_vl"]), "num_frames": 4}
    VQAEvaluator(spec, device="cpu").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """Python in an environment that has the kit's dependencies and not the kit."""
    folder = tmp_path_factory.mktemp("without-kit")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    own = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (own / "dependencies.pth").write_text(f"{SITE}\n")  # .pth files in there, such as the kit's, are not read
    return folder / "venv" / "bin" / "python"


@pytest.fixture
def without_kit(bare_python, tmp_path):
    """Run that Python in a folder of its own."""

    def run(*arguments: str, ok: bool = True, **variables: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "home"), **QUIET, **variables}
        done = subprocess.run(
            [bare_python, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert not ok or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    return run


@pytest.fixture
def hub(saved, tmp_path):
    """A Hub on which ``NAME`` is the evaluator at the tag v1, and another one without weights on main."""
    with LoopbackHub(tmp_path / "hub") as hub:
        with Client(hub.environment(tmp_path / "pusher")) as client:
            client.run(
                f"""
                from eval.evaluator import VQAEvaluator
                from huggingface_hub import HfApi
                VQAEvaluator.from_pretrained({str(saved)!r}, device="cpu").push_to_hub({NAME!r}, private=True)
                HfApi().create_tag({NAME!r}, tag="v1")
                other = VQAEvaluator({{"kind": "reference"}})
                other.save_pretrained({str(tmp_path / "other")!r}, push_to_hub=True, repo_id={NAME!r})
                """
            )
            refused = client.refuses("VQAEvaluator({'kind': 'reference'}).push_to_hub('somebody/else')")
            assert refused.kind == "KitError" and "somebody/else: cannot be pushed" in str(refused)
        yield hub


HF = "import sys; from huggingface_hub.cli.hf import main; sys.argv[0] = 'hf'; main()"

# Everything that such a person does, in one process, for LightEval's imports take ten seconds.
PERSON = f"""
import dataclasses, importlib, importlib.util, json, pkgutil, runpy, sys

rooms = {(*KIT, "benchmarks", "tests")!r}
print("kit:", [name for name in rooms if importlib.util.find_spec(name)])

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in rooms:
            raise ImportError(f"the kit is asked for {{name}}")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, "E")
import mmaip_v_evaluator
from mmaip_v_evaluator import VQAEvaluator

rows = json.load(open("rows.json"))
loaded = VQAEvaluator.from_pretrained({NAME!r}, revision="v1", device="cpu")
said = [dataclasses.asdict(verdict) for verdict in loaded.batch(rows)]
json.dump({{"verdicts": said, "record": loaded.record}}, open("said.json", "w"))
loaded.save_pretrained("again")

for module in pkgutil.walk_packages(mmaip_v_evaluator.__path__, "mmaip_v_evaluator."):
    importlib.import_module(module.name)
sys.path.remove("E")

sys.argv = ["E/run.py", *sys.argv[1:]]
try:
    runpy.run_path("E/run.py", run_name="__main__")
except SystemExit as end:
    print("exit code:", end.code)
print("loaded of the kit:", sorted(name for name in sys.modules if name.split(".")[0] in rooms))
"""


def asked(world) -> list[dict]:
    clips = sorted((world.root / "toy" / "videos").glob("test-*.mp4"))[:3]
    answers = ("red", "green", "I cannot help with that.", "two")
    return [
        {"video": str(clip), "question": "what colour is the shape ?", "answer": a} for clip in clips for a in answers
    ]


def local_verdicts(saved: Path, world) -> dict:
    from dataclasses import asdict

    evaluator = VQAEvaluator.from_pretrained(saved, device="cpu")
    verdicts = [asdict(verdict) for verdict in evaluator.batch(asked(world))]
    return json.loads(json.dumps({"verdicts": verdicts, "record": evaluator.record}))


def same_results(output: Path, saved: Path, world) -> None:
    """LightEval's saved verdicts are the evaluator's."""
    results, evaluator = load_results(output), VQAEvaluator.from_pretrained(saved, device="cpu")
    assert results.judge["fingerprint"] == evaluator.fingerprint and len(results.rows) == 12
    from eval.runner import load_benchmark

    items = {item.question_id: item for item in load_benchmark(world.dataset, "test")}
    rows = [
        {"video": items[row["question_id"]].video, "question": row["question"], "answer": row["response"]}
        for row in results.rows
    ]
    for row, verdict in zip(results.rows, evaluator.batch(rows), strict=True):
        assert (row["correct"], row["error"]) == (verdict.correct, verdict.error)
        assert math.isclose(row["probability"] or 0, verdict.probability or 0, abs_tol=1e-5)


def test_a_person_without_the_kit(hub, saved, world, without_kit, tmp_path):
    assert sorted(path for path in hub.files(NAME) if "judge/" in path.split(PACKAGE)[0]) == []  # main has no weights
    assert hub.settings(NAME)["private"] is True
    variables = hub.environment(tmp_path / "home")
    without_kit("-c", HF, "download", NAME, "--revision", "v1", "--local-dir", "E", **variables)
    pushed = {path: content for path, content in contents(tmp_path / "E").items() if not path.startswith(".cache")}
    ours = contents(saved)
    assert pushed.keys() - {".gitattributes"} == ours.keys()
    assert [path for path in ours if pushed[path] != ours[path]] == ["README.md"]  # it names the repo
    assert NAME in pushed["README.md"].decode()

    (tmp_path / "rows.json").write_text(json.dumps(asked(world)))
    candidate = str(world.checkpoints["llava_onevision"])
    run = ["custom", candidate, "E/video_model.py", "mmaip_v_toy", "--custom-tasks", "E/tasks.py", "--save-details"]
    done = without_kit(
        *("-c", PERSON, *run, "--output-dir", "out"), **variables, MMAIP_V_DATA=str(world.dataset), MMAIP_V_EVAL=""
    )
    assert "kit: []" in done.stdout and "loaded of the kit: []" in done.stdout
    assert "exit code: 0" in done.stdout, done.stderr[-4000:]
    assert json.loads((tmp_path / "said.json").read_text()) == local_verdicts(saved, world)  # to the last bit
    again = contents(tmp_path / "again")
    assert again == ours
    same_results(tmp_path / "out", saved, world)


@pytest.mark.slow
def test_its_commands_in_processes_of_their_own(hub, saved, world, without_kit, planted, tmp_path):  # noqa: F811
    with Client(hub.environment(tmp_path / "kit")) as client:  # with the kit, another process than the one that pushed
        (tmp_path / "rows.json").write_text(json.dumps(asked(world)))
        found = client.run(
            f"""
            import dataclasses, json
            from eval.evaluator import VQAEvaluator
            loaded = VQAEvaluator.from_pretrained({NAME!r}, revision="v1", device="cpu")
            rows = json.load(open({str(tmp_path / "rows.json")!r}))
            {{"verdicts": [dataclasses.asdict(v) for v in loaded.batch(rows)], "record": loaded.record}}
            """
        )
        assert found == local_verdicts(saved, world)
        wrong = client.refuses(f"VQAEvaluator.from_pretrained({NAME!r}, revision='v9')")
        assert wrong.kind == "KitError" and "cannot be downloaded" in str(wrong)
    variables = {**hub.environment(tmp_path / "home"), "MMAIP_V_DATA": str(world.dataset), "MMAIP_V_EVAL": ""}
    assert "None" in without_kit("-c", "import importlib.util; print(importlib.util.find_spec('eval'))").stdout
    without_kit("-c", HF, "download", NAME, "--revision", "v1", "--local-dir", "E", **variables)
    listed = without_kit("E/run.py", "tasks", "list", **variables).stdout
    assert "mmaip_v_toy\t" in listed and "msvd_qa\t" in listed
    command = ["custom", str(world.checkpoints["llava_onevision"]), "E/video_model.py", "mmaip_v_toy", "--save-details"]
    without_kit("E/run.py", *command, "--output-dir", "own", **variables)
    same_results(tmp_path / "own", saved, world)

    # LightEval's own command, in the environment that tests/eval/test_lighteval_bare.py describes
    path = os.pathsep.join([str(planted), os.environ["PYTHONPATH"]])
    lighteval = "import sys; from lighteval.__main__ import app; sys.argv[0] = 'lighteval'; app()"
    arguments = [*command, "--custom-tasks", "E/tasks.py", "--output-dir", "bare"]
    without_kit("-c", lighteval, *arguments, **variables, PYTHONPATH=path, NLTK_DATA=str(planted / "nltk"))
    assert load_results(tmp_path / "bare").rows == load_results(tmp_path / "own").rows
    assert load_results(tmp_path / "bare").judge == load_results(tmp_path / "own").judge

    (tmp_path / "eval.yaml").write_text("judge: {kind: reference}\n")
    without_kit("E/run.py", *command, "--output-dir", "other", **{**variables, "MMAIP_V_EVAL": "eval.yaml"})
    assert load_results(tmp_path / "other").judge["kind"] == "reference"

    (tmp_path / "E" / "config.json").write_text("{}")
    broken = without_kit("E/run.py", "tasks", "list", ok=False, **variables)
    assert broken.returncode == 2 and "this is no evaluator" in broken.stderr and "Traceback" not in broken.stderr
