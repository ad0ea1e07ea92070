"""LoRA adapters on real models: merged with stock peft they are the extrapolated weights, round after round."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from dataset_builder.errors import KitError
from dataset_builder.toy_models import save_tiny
from recipes.extrapolate import extrapolate, snapshot
from recipes.extrapolate.cli import main, run


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A checkpoint that adapters are trained on."""
    return save_tiny("qwen2_vl", tmp_path_factory.mktemp("adapters") / "base")


def fresh_model(base: Path):
    """The base's model."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(base)


def text_modules(*parts: str) -> str:
    """A pattern for linear layers of the text model only."""
    return rf".*language_model.*\.({'|'.join(parts)})"


def shake(model, seed: int, std: float = 0.02) -> None:
    """Stands for training: every trainable weight moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += std * torch.randn(parameter.shape, generator=generator)


def train(base: Path, start: Path | None, out: Path, seed: int, config: LoraConfig | None = None) -> Path:
    """One round: a fresh adapter, or the one before trained on."""
    model = fresh_model(base)
    if start is None:
        torch.manual_seed(seed)
        model = get_peft_model(model, config)
        model.peft_config["default"].base_model_name_or_path = str(base)
    else:
        model = PeftModel.from_pretrained(model, start, is_trainable=True)
    shake(model, seed)
    model.save_pretrained(out)
    return out


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """State of the base with an adapter merged in by stock peft, in fp64: only the adapter's own error counts."""
    model = PeftModel.from_pretrained(fresh_model(base).double(), adapter, autocast_adapter_dtype=False).double()
    return snapshot(model.merge_and_unload())


def close(got: dict, expected: dict, tolerance: float = 1e-6) -> None:
    """Equal, relative to the largest weight of each tensor."""
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            worst = float((got[name].double() - tensor.double()).abs().max())
            assert worst <= tolerance * float(tensor.abs().max()), name


def logits(base: Path, adapter: Path | None, state: dict | None = None) -> torch.Tensor:
    """Of a text prompt: [1, T, vocabulary]."""
    model = fresh_model(base)
    if state is not None:
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(40, 72)[None]).logits


CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": text_modules("q_proj", "v_proj", "down_proj")},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": text_modules("q_proj", "up_proj")},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": text_modules("q_proj", "v_proj", "down_proj"),
        "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
        "alpha_pattern": {"v_proj": 16},
    },
    "embedding": {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]},
    "bias": {"r": 4, "lora_alpha": 4, "target_modules": text_modules("q_proj", "v_proj"), "lora_bias": True},
    "saved": {"r": 4, "lora_alpha": 8, "target_modules": text_modules("q_proj"), "modules_to_save": ["merger"]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_two_rounds_equal_merging_in_fp32(base, tmp_path, name):
    config = LoraConfig(**CONFIGS[name])
    theta_0 = snapshot(fresh_model(base))
    one = train(base, None, tmp_path / "one", 1, config)
    moved_1 = tmp_path / "moved-1"
    content = run(base, one, 0.4, moved_1, say=quiet)
    assert content["kind"] == "fresh adapter" and content["rank"]["strong"] == content["rank"]["result"]
    expected_1 = extrapolate(merged(base, one), {n: t.double() for n, t in theta_0.items()}, 0.4)
    close(merged(base, moved_1), expected_1)

    two = train(base, moved_1, tmp_path / "two", 2)
    final = tmp_path / "final"
    lines: list[str] = []
    content = run(moved_1, two, 0.7, final, say=lines.append)
    theta_1, theta_2 = merged(base, moved_1), merged(base, two)
    expected_2 = extrapolate(theta_2, theta_1, 0.7)
    got = merged(base, final)
    close(got, expected_2)
    assert any("the rank grows" in line for line in lines) and content["kind"] == "adapter"
    assert content["realised"]["added"]["cosine"] == pytest.approx(1, abs=1e-6)
    moved = sum(float(((got[n] - theta_1[n]) ** 2).sum()) for n in got if n != "lm_head.weight") ** 0.5
    if name != "embedding":  # a tied table is in the state twice
        assert content["all"]["moved"] == pytest.approx(moved, rel=1e-4)
    if name == "embedding":
        return  # peft moves the input side of a tied table only; a state has no way to say so
    step = (logits(base, final) - logits(base, None, expected_2)).abs().max()
    assert step < 1e-4 * (logits(base, final) - logits(base, None)).abs().max()


@pytest.mark.parametrize("name", ["plain", "rslora", "patterns"])
def test_alpha_zero_and_minus_one_are_the_adapters_themselves(base, tmp_path, name):
    one = train(base, None, tmp_path / "one", 1, LoraConfig(**CONFIGS[name]))
    two = train(base, one, tmp_path / "two", 2)
    for alpha, expected in ((0.0, two), (-1.0, one)):
        out = tmp_path / f"out{alpha}"
        run(one, two, alpha, out, say=quiet)
        got, wanted = (load_file(f / "adapter_model.safetensors") for f in (out, expected))
        assert got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted)
        assert json.loads((out / "adapter_config.json").read_text())["r"] == 4
    run(base, one, 0.0, tmp_path / "fresh", say=quiet)
    got, wanted = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "fresh", one))
    assert all(torch.equal(got[n], wanted[n]) for n in wanted)
    run(base, one, -1.0, tmp_path / "base", say=quiet)
    assert torch.equal(logits(base, tmp_path / "base"), logits(base, None)), "−1 of a fresh adapter is the base"


@pytest.mark.parametrize("shared", ["lora_A", "lora_B"])
def test_a_shared_factor_keeps_the_rank(base, tmp_path, shared):
    one = train(base, None, tmp_path / "one", 1, LoraConfig(**CONFIGS["plain"]))
    two = train(base, one, tmp_path / "two", 2)
    weights, old = (load_file(f / "adapter_model.safetensors") for f in (two, one))
    save_file({n: old[n] if shared in n else t for n, t in weights.items()}, two / "adapter_model.safetensors")
    content = run(one, two, 0.6, tmp_path / "out", say=quiet)
    assert content["rank"] == {"strong": "4", "result": "4"}
    theta_1, theta_2 = merged(base, one), merged(base, two)
    close(merged(base, tmp_path / "out"), extrapolate(theta_2, theta_1, 0.6))
    assert (tmp_path / "out/adapter_config.json").read_text() == json.dumps(
        json.loads((two / "adapter_config.json").read_text()), indent=2
    ) + "\n"


def test_a_saved_output_head_starts_from_the_tied_embedding(base, tmp_path):
    config = LoraConfig(**{**CONFIGS["saved"], "modules_to_save": ["lm_head"]})
    model = get_peft_model(fresh_model(base), config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    shake(model, 3)
    model.save_pretrained(tmp_path / "one")
    weights = load_file(tmp_path / "one/adapter_model.safetensors")
    name = next(n for n in weights if n.endswith("lm_head.weight"))
    run(base, tmp_path / "one", 0.5, tmp_path / "out", say=quiet)
    got = load_file(tmp_path / "out/adapter_model.safetensors")[name]
    start = fresh_model(base).get_input_embeddings().weight.detach()
    assert float((weights[name] - start).norm()) > 0.1
    torch.testing.assert_close(got, weights[name] + 0.5 * (weights[name] - start), rtol=1e-6, atol=1e-7)


def test_bf16_adapter_reports_its_cosine(base, tmp_path):
    one = train(base, None, tmp_path / "one", 1, LoraConfig(**CONFIGS["plain"]))
    two = train(base, one, tmp_path / "two", 2)
    content = run(one, two, 0.5, tmp_path / "out", dtype="bfloat16", say=quiet)
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    theta = [merged(base, f) for f in (one, two, tmp_path / "out")]
    step = torch.cat([(theta[1][n] - theta[0][n]).flatten() for n in theta[0] if n != "lm_head.weight"])
    added = torch.cat([(theta[2][n] - theta[1][n]).flatten() for n in theta[0] if n != "lm_head.weight"])
    cosine = float(step @ added / (step.norm() * added.norm()))
    assert content["realised"]["added"]["cosine"] == pytest.approx(cosine, abs=1e-5) and cosine < 1 - 1e-7


def test_module_names_that_end_alike_keep_their_own_rank(base, tmp_path):
    """`^` anchors a written pattern: `layers.1.…` of one tower is not `…layers.1.…` of another."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], rank_pattern={r"layers\.0\..*": 3})
    one = train(base, None, tmp_path / "one", 1, config)
    two = train(base, one, tmp_path / "two", 2)
    run(one, two, 0.5, tmp_path / "out", say=quiet)
    written = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert written["rank_pattern"] == written["alpha_pattern"] and set(written["rank_pattern"].values()) | {
        written["r"]
    } == {6, 8}
    assert all(key.startswith("^") for key in written["rank_pattern"])
    close(merged(base, tmp_path / "out"), extrapolate(merged(base, two), merged(base, one), 0.5))


@pytest.fixture(scope="session")
def rounds(base, tmp_path_factory) -> tuple[Path, Path]:
    """Two rounds of one adapter."""
    folder = tmp_path_factory.mktemp("rounds")
    one = train(base, None, folder / "one", 1, LoraConfig(**CONFIGS["plain"]))
    return one, train(base, one, folder / "two", 2)


def edited(folder: Path, **changes) -> Path:
    """Change fields of an adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


FAULTS = {
    "dora": ({"use_dora": True}, "DoRA"),
    "kind": ({"peft_type": "LOHA"}, "LOHA is not LORA"),
    "init": ({"init_lora_weights": "pissa"}, "pissa is not a plain LoRA"),
    "parameters": ({"target_parameters": ["experts.w"]}, "field 'target_parameters'"),
    "rank": ({"r": 5}, "has rank 4, and the configuration says 5"),
    "base": ({"base_model_name_or_path": "someone/other"}, "an adapter of .*other"),
    "field": ({"fan_in_fan_out": True}, "field 'fan_in_fan_out'"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_refused_configurations(rounds, tmp_path, kind, capsys):
    changes, message = FAULTS[kind]
    strong = edited(shutil.copytree(rounds[1], tmp_path / "strong"), **changes)
    with pytest.raises(KitError, match=message):
        run(rounds[0], strong, 0.5, tmp_path / "out", say=quiet)
    assert main([str(rounds[0]), str(strong), "--alpha", "0.5", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert [p.name for p in tmp_path.iterdir()] == ["strong"]
    if kind == "base":
        run(rounds[0], strong, 0.5, tmp_path / "out", same_base=True, say=quiet)


def test_refused_files(base, rounds, tmp_path):
    def broken(name: str, change) -> Path:
        folder = shutil.copytree(rounds[1], tmp_path / name)
        weights = load_file(folder / "adapter_model.safetensors")
        save_file(change(weights), folder / "adapter_model.safetensors")
        return folder

    first = next(iter(load_file(rounds[1] / "adapter_model.safetensors")))
    module = first.rpartition(".lora_")[0]
    cases = [
        (lambda w: {n: t for n, t in w.items() if not n.startswith(module)}, f"{module}: only .*one holds it"),
        (lambda w: {n: t for n, t in w.items() if n != first}, f"{module}: lora_A or lora_B is missing"),
        (lambda w: w | {"base_model.model.x.weight": torch.ones(1)}, r"x\.weight: only .* holds it"),
        (lambda w: w | {first: torch.full_like(w[first], torch.nan)}, "not finite"),
        (lambda w: w | {f"{module}.lora_magnitude_vector": torch.ones(1)}, "DoRA"),
    ]
    for number, (change, message) in enumerate(cases):
        with pytest.raises(KitError, match=message):
            run(rounds[0], broken(f"b{number}", change), 0.5, tmp_path / "out", say=quiet)
    own = broken("own", lambda w: w | {"base_model.model.x.y.weight": torch.ones(3)})
    with pytest.raises(KitError, match=r"x\.y\.weight: .* holds no tensor it could have started from"):
        run(base, own, 0.5, tmp_path / "out", say=quiet)
    cut = shutil.copytree(rounds[1], tmp_path / "cut") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(KitError, match="cut short"):
        run(rounds[0], cut.parent, 0.5, tmp_path / "out", say=quiet)
    cut.unlink()
    (cut.parent / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(KitError, match="pickle"):
        run(rounds[0], cut.parent, 0.5, tmp_path / "out", say=quiet)
    with pytest.raises(KitError, match=r"is an adapter and .* is not"):
        run(rounds[0], base, 0.5, tmp_path / "out", say=quiet)


def test_another_base_and_a_base_by_name(base, rounds, tmp_path):
    other = shutil.copytree(base, tmp_path / "another")
    with pytest.raises(KitError, match="was trained on"):
        run(other, rounds[0], 0.5, tmp_path / "out", say=quiet)
    named = edited(shutil.copytree(rounds[0], tmp_path / "named"), base_model_name_or_path="org/model")
    content = run("org/model", named, 0.5, tmp_path / "out", say=quiet)
    assert content["weak"] == {"path": "model", "fingerprint": None} and content["all"]["relative"] is None
    with pytest.raises(KitError, match="neither a folder nor the base"):
        run("org/else", named, 0.5, tmp_path / "out2", say=quiet)


def test_convolutions(tmp_path):
    """Factors of more than two dimensions are stacked along the rank too."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3))
    states = []
    for seed in (1, 2):
        model = get_peft_model(copy.deepcopy(plain), LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
        shake(model, seed)
        model.save_pretrained(tmp_path / str(seed))
        states.append(snapshot(model.merge_and_unload()))
    run(tmp_path / "1", tmp_path / "2", 0.5, tmp_path / "out", say=quiet)
    got = snapshot(PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "out").merge_and_unload())
    expected = extrapolate(states[1], states[0], 0.5)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)
