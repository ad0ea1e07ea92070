"""The shipped configs: each parses, names its own file in its launch command, and the table of estimates is current."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from dataset_builder.errors import KitError
from dataset_builder.models.local import TESTED_FAMILIES
from dataset_builder.settings.judges import ReferenceJudgeConfig, VisualJudgeConfig
from recipes.memory import CONFIGS, Run, read_run, table
from recipes.settings import parse, precheck

RUNS = sorted(
    p.name
    for p in CONFIGS.glob("*.yaml")
    if p.name
    not in ("toy.yaml", "arms.yaml", "sft.yaml", "evaluator.yaml", "shapes.yaml", "fsdp2.yaml", "multi_node.yaml")
)
README = (CONFIGS / "README.md").read_text(encoding="utf-8")
SHAPES = yaml.safe_load((CONFIGS / "shapes.yaml").read_text())


def commands(path: Path) -> list[list[str]]:
    """The launch commands of a header comment, as words."""
    text = "\n".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#   "))
    return [
        shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.startswith("accelerate launch")
    ]


def parse_judge(spec: dict):
    """A judge spec as a build reads it: unknown fields are refused."""
    kinds = {"reference": ReferenceJudgeConfig, "visual": VisualJudgeConfig}
    return kinds[spec["kind"]](**spec)


def parsed(name: str, folder: Path, *words: str):
    """A config as the recipe reads it, with a dataset that exists."""
    return parse(["--config", str(CONFIGS / name), "--dataset_name", str(folder), "--use_cpu", "true", *words])


def test_every_family_has_a_config():
    types = {SHAPES[read_run(CONFIGS / name).model_name_or_path]["config"]["model_type"] for name in RUNS}
    wanted = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video", "smolvlm", "internvl"}
    assert types == wanted <= set(TESTED_FAMILIES)


@pytest.mark.parametrize("name", RUNS)
def test_it_parses_and_is_what_the_readme_says(name, tmp_path):
    content = yaml.safe_load((CONFIGS / name).read_text())
    settings = parsed(name, tmp_path)
    holders = (settings.script, settings.training, settings.model)
    for key, value in content.items():
        found = next(getattr(holder, key) for holder in holders if hasattr(holder, key))
        if key not in ("dataset_name", "report_to"):  # the Trainer turns `none` into an empty list
            assert found == value, f"{name}: {key}"
    assert settings.training.share_prompt and settings.training.freeze_vision and settings.training.bf16
    assert settings.training.gradient_checkpointing and settings.training.precompute_ref_log_probs
    assert settings.model.lora_target_modules is None, "the kit knows the text model's layers by full name"
    assert settings.model.use_peft == ("lora" in name)
    assert settings.script.pairs == "fixed" and 0.0 in settings.script.alphas
    assert content["output_dir"] == f"runs/{Path(name).stem}"


@pytest.mark.parametrize("name", RUNS)
def test_the_estimate_reads_what_the_recipe_reads(name, tmp_path):
    settings, run = parsed(name, tmp_path), read_run(CONFIGS / name)
    holders = (settings.model, settings.training, settings.script)
    for key in Run.__dataclass_fields__:
        found = next(getattr(holder, key) for holder in holders if hasattr(holder, key))
        assert found == getattr(run, key) or (key == "dtype" and found in (None, "float32")), key


def test_defaults_of_the_estimate_are_the_recipes(tmp_path):
    words = ["--model_name_or_path", str(tmp_path), "--dataset_name", str(tmp_path), "--max_steps", "1"]
    settings = parse([*words, "--output_dir", str(tmp_path), "--use_cpu", "true"])
    holders, run = (settings.model, settings.training, settings.script), Run()
    for key in set(Run.__dataclass_fields__) - {"model_name_or_path", "rounds", "dtype"}:
        assert next(getattr(holder, key) for holder in holders if hasattr(holder, key)) == getattr(run, key), key


@pytest.mark.parametrize("name", [*RUNS, "toy.yaml"])
def test_launch_command_names_its_own_file(name):
    first = commands(CONFIGS / name)[0]
    assert first[:3] == ["accelerate", "launch", "recipes/iter_w2s.py"]
    assert first[first.index("--config") + 1] == f"recipes/configs/{name}"
    for word in (w for w in first if w.startswith("recipes/")):
        assert (CONFIGS.parents[1] / word).is_file()


def test_a_hub_id_passes_the_check_and_a_missing_dataset_does_not(tmp_path, monkeypatch):
    config = ["--config", str(CONFIGS / RUNS[0])]
    precheck([*config, "--dataset_name", "someone/mmaip-v"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError, match="mmaip-v is missing"):
        precheck(config)


def test_the_on_policy_example_parses(tmp_path):
    text = (CONFIGS / "qwen2_5_vl_3b_lora.yaml").read_text()
    assert text.count("#| ") > 5 and text.count("pairs: fixed ") == 1
    (tmp_path / "own.yaml").write_text(text.replace("#| ", "").replace("pairs: fixed ", "pairs: on_policy "))
    words = ["--config", str(tmp_path / "own.yaml"), "--dataset_name", str(tmp_path), "--use_cpu", "true"]
    script = parse(words).script
    assert script.pairs == "on_policy" and script.own_samples == 4 and script.error_below == 0.5
    names = [parse_judge(spec).name for spec in script.judges]
    assert names == ["reference", "verifier"]


def test_unknown_keys_are_refused(tmp_path):
    text = (CONFIGS / RUNS[0]).read_text() + "lora_rank: 16\n"
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(KitError, match="lora_rank"):
        parse(["--config", str(tmp_path / "bad.yaml"), "--dataset_name", str(tmp_path), "--use_cpu", "true"])


def test_fsdp2_is_what_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    path = CONFIGS / "fsdp2.yaml"
    config = load_config_from_file(str(path))  # refuses unknown keys
    assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2
    (words,) = commands(path)
    assert words[words.index("--config_file") + 1] == "recipes/configs/fsdp2.yaml"
    script = words.index("recipes/dpo.py")
    words = [*words[script + 1 :], "--use_cpu", "true"]
    from recipes import dpo

    _, training, model = dpo.parse(words)
    assert training.bf16 and training.gradient_checkpointing and training.share_prompt
    assert model.use_peft and model.model_name_or_path in SHAPES


def test_fsdp2_keys_are_accelerates():
    """Every key under fsdp_config reaches accelerate's plugin: a misspelt one would be ignored there."""
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    keys = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
    assert set(keys) <= known, set(keys) - known


def test_the_readme_names_every_file_and_prints_the_table():
    assert re.search(r"<!-- table[^\n]*\n(.*?)\n<!-- end of table -->", README, re.S).group(1) == table()
    for path in CONFIGS.glob("*.yaml"):
        assert f"[{path.name}]({path.name})" in README
    rows = table().splitlines()[2:]
    assert len(rows) == 2 * len(RUNS) and all(row.endswith("| estimate (formula) |") for row in rows)
