"""The command on checkpoint folders: exactness, bits, types, ties, shards, what is copied, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file, save_file

from dataset_builder.errors import KitError
from dataset_builder.toy_models import make_tiny
from recipes.extrapolate import extrapolate
from recipes.extrapolate.cli import main, run, size
from recipes.extrapolate.stream import PIECE, Progress


def quiet(line: str) -> None:
    """Say nothing."""


def write(folder: Path, weights: dict[str, torch.Tensor], **config) -> Path:
    """A checkpoint of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", **config}))
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a checkpoint."""
    result = {}
    for file in sorted(folder.glob("*.safetensors")):
        result |= load_file(file)
    return result


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[Path, Path]:
    """WEAK in one file and STRONG in shards: a real architecture with tied embeddings, fp32."""
    folder = tmp_path_factory.mktemp("tiny")
    model, processor = make_tiny("qwen2_vl")
    model.save_pretrained(folder / "weak")
    processor.save_pretrained(folder / "weak")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder / "strong", max_shard_size="300KB")
    processor.save_pretrained(folder / "strong")
    assert len(list((folder / "strong").glob("*.safetensors"))) > 2
    return folder / "weak", folder / "strong"


@pytest.fixture
def small(tmp_path) -> tuple[Path, Path]:
    """Two checkpoints small enough to break: a matrix, a vector, a counter."""
    generator = torch.Generator().manual_seed(0)
    weak = {"m.a.weight": torch.randn(8, 4, generator=generator), "m.b.bias": torch.randn(3, generator=generator)}
    strong = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in weak.items()}
    count = {"m.count": torch.tensor([7])}
    return write(tmp_path / "weak", weak | {"m.count": torch.tensor([5])}), write(tmp_path / "strong", strong | count)


@pytest.mark.parametrize("alpha", [0.3, 1.0, -0.5, 2.5])
def test_fp32_equals_a_float64_reference(tiny, tmp_path, alpha):
    run(*tiny, alpha, tmp_path / "out", say=quiet)
    weak, strong, got = (read(folder) for folder in (*tiny, tmp_path / "out"))
    assert got.keys() == strong.keys() and "lm_head.weight" not in got
    for name, end in strong.items():
        expected = end.double() + alpha * (end.double() - weak[name].double())
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name].double(), expected, rtol=1e-6, atol=0)
    in_memory = extrapolate(strong, weak, alpha)
    assert all(torch.equal(got[name], in_memory[name]) for name in got), "the command and the library are one"


def test_alpha_zero_is_strong_and_minus_one_is_weak_bit_for_bit(tiny, tmp_path):
    for alpha, expected in ((0.0, tiny[1]), (-1.0, tiny[0])):
        content = run(*tiny, alpha, tmp_path / f"out{alpha}", say=quiet)
        got, wanted = read(tmp_path / f"out{alpha}"), read(expected)
        assert all(torch.equal(got[n].view(torch.int32), wanted[n].view(torch.int32)) for n in wanted)
        assert content["all"]["moved"] == pytest.approx(content["all"]["trained"] if alpha == 0 else 0, abs=1e-6)
    assert run(*tiny, 0.0, tmp_path / "x", say=quiet)["realised"]["added"]["cosine"] is None


def test_the_result_loads_and_moves_logits(tiny, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run(*tiny, 1.0, tmp_path / "out", shard_size=size("200KB"), say=quiet)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 3
    model, loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"] and not loaded["mismatched_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    AutoProcessor.from_pretrained(tmp_path / "out")
    copied = {p.name for p in tiny[1].iterdir() if p.suffix != ".safetensors"}
    assert copied <= {p.name for p in (tmp_path / "out").iterdir()}
    for name in copied - {"model.safetensors.index.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (tiny[1] / name).read_bytes()
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in read(tmp_path / "out").values())


def test_bf16_storage_reports_its_cosine(tiny, tmp_path):
    lines: list[str] = []
    content = run(*tiny, 0.01, tmp_path / "out", dtype="bfloat16", say=lines.append)
    weak, strong, got = (read(folder) for folder in (*tiny, tmp_path / "out"))
    assert {t.dtype for t in got.values()} == {torch.bfloat16}
    added = torch.cat([(got[n].double() - strong[n].double()).flatten() for n in strong])
    meant = torch.cat([(strong[n].double() - weak[n].double()).flatten() for n in strong])
    cosine = float(added @ meant / (added.norm() * meant.norm()))
    assert content["realised"]["added"]["cosine"] == pytest.approx(cosine, rel=1e-9)
    assert cosine < 0.5 and any("bfloat16 swallows" in line for line in lines)
    assert content["realised"]["from_weak"]["cosine"] > 0.9
    assert content["all"]["moved"] == pytest.approx(float((added + meant).norm()), rel=1e-9)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == "bfloat16" and "float32" not in json.dumps(config)
    exact = run(*tiny, 0.01, tmp_path / "exact", say=lines.append)
    assert exact["realised"]["added"]["cosine"] > 0.999


def test_bf16_inputs_that_hold_little_of_the_training_are_warned_about(tmp_path):
    weak = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    strong = weak + 1e-4 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    a, b = (write(tmp_path / n, {"w.weight": t.bfloat16()}) for n, t in (("a", weak), ("b", strong)))
    lines: list[str] = []
    content = run(a, b, 0.5, tmp_path / "out", say=lines.append)
    assert content["dtype"] == "bfloat16" and content["differing"] < 0.2
    assert any("extrapolate from their fp32 copies" in line for line in lines)


def test_the_more_precise_copies_are_used(tmp_path):
    weak = {"w.weight": torch.randn(50, 50, generator=torch.Generator().manual_seed(0))}
    strong = {"w.weight": weak["w.weight"] + 1e-5}
    a = write(tmp_path / "a", weak)
    b = write(tmp_path / "run/round-2", {"w.weight": strong["w.weight"].bfloat16()})
    save_file(strong, tmp_path / "run/.handover.safetensors.2")
    lines: list[str] = []
    run(a, b, 1.0, tmp_path / "out", dtype="float32", say=lines.append)
    assert torch.equal(read(tmp_path / "out")["w.weight"], extrapolate(strong, weak, 1.0)["w.weight"])
    assert any(".handover.safetensors.2" in line for line in lines)
    renamed = {"model.inner.w.weight": strong["w.weight"], "model.v.weight": torch.randn(50, 50)}
    save_file(renamed, tmp_path / "run/.handover.safetensors.2")
    run(a, b, 1.0, tmp_path / "named", dtype="float32", say=quiet)
    assert torch.equal(read(tmp_path / "named")["w.weight"], read(tmp_path / "out")["w.weight"]), "another name"
    save_file({"w.weight": strong["w.weight"] * 1.1}, tmp_path / "run/.handover.safetensors.2")
    run(a, b, 1.0, tmp_path / "stale", dtype="float32", say=quiet)
    stored = {"w.weight": strong["w.weight"].bfloat16().float()}
    assert torch.equal(read(tmp_path / "stale")["w.weight"], extrapolate(stored, weak, 1.0)["w.weight"]), "not its copy"
    (tmp_path / "run/.handover.safetensors.2").unlink()
    save_file(strong, b / "model.fp32.safetensors")
    content = run(a, b, 1.0, tmp_path / "out2", say=quiet)
    assert content["dtype"] == "bfloat16" and content["inputs"]["strong"] == "float32"
    assert torch.equal(read(tmp_path / "out2")["w.weight"], extrapolate(strong, weak, 1.0)["w.weight"].bfloat16())


@given(
    pair=hnp.arrays(np.float32, (2, 7), elements=st.floats(-1e4, 1e4, width=32)),
    alpha=st.floats(-3, 3),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_property_result_and_norms(pair, alpha, dtype, tmp_path):
    shutil.rmtree(tmp_path / "p", ignore_errors=True)
    weak, strong = (write(tmp_path / "p" / n, {"l.w": torch.tensor(row)}) for n, row in zip("ab", pair, strict=True))
    content = run(weak, strong, alpha, tmp_path / "p/out", dtype=dtype, say=quiet)
    wide = pair.astype(np.float64)
    exact = torch.tensor(wide[1] + alpha * (wide[1] - wide[0]) if alpha != -1 else wide[0])
    got = read(tmp_path / "p/out")["l.w"]
    assert torch.equal(got, exact.to(getattr(torch, dtype)))
    same = torch.tensor(pair[0] == pair[1])
    strong_cast = torch.tensor(pair[1]).to(got.dtype)
    bits = torch.int32 if dtype == "float32" else torch.int16
    if alpha != -1:
        assert torch.equal(got.view(bits)[same], strong_cast.view(bits)[same]), "no step, no change, −0.0 included"
    moved = np.linalg.norm(got.double().numpy() - wide[0])
    assert content["all"]["moved"] == pytest.approx(moved, rel=1e-6, abs=1e-6 * (1 + np.abs(wide).max()))
    assert content["all"]["trained"] == pytest.approx(np.linalg.norm(wide[1] - wide[0]), rel=1e-12)


def test_tensors_larger_than_a_piece_scalars_and_empty_ones(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weak = {"a.big": torch.randn(PIECE + 3, 3, generator=generator), "a.one": torch.tensor(2.0), "a.no": torch.empty(0)}
    strong = {n: t + 1e-3 * torch.randn(t.shape, generator=generator) for n, t in weak.items()}
    strong["a.half"] = weak["a.half"] = torch.ones(5, dtype=torch.float16)
    strong["a.flag"] = weak["a.flag"] = torch.tensor([True, False, True])
    strong["a.wide"], weak["a.wide"] = torch.tensor([1.0 + 1e-12]).double(), torch.ones(1).double()
    out = tmp_path / "out"
    run(write(tmp_path / "w", weak), write(tmp_path / "s", strong), 0.7, out, say=quiet)
    expected = extrapolate(
        {n: t for n, t in strong.items() if n != "a.half"}, {n: weak[n] for n in strong if n != "a.half"}, 0.7
    )
    got = read(out)
    assert got.keys() == strong.keys() and torch.equal(got["a.half"], strong["a.half"])
    assert all(torch.equal(got[n], t) and got[n].dtype == t.dtype for n, t in expected.items())


def test_masks_with_infinity_pass_and_broken_weights_do_not(tmp_path):
    mask = torch.tensor([0.0, -torch.inf])
    weak, strong = ({"l.mask": mask, "l.w": torch.tensor([1.0, x])} for x in (1.0, 2.0))
    run(write(tmp_path / "w", weak), write(tmp_path / "s", strong), 1.0, tmp_path / "out", say=quiet)
    assert read(tmp_path / "out")["l.mask"].tolist() == [0.0, -torch.inf]
    assert read(tmp_path / "out")["l.w"].tolist() == [1.0, 3.0]
    broken = write(tmp_path / "n", {**strong, "l.w": torch.tensor([1.0, torch.nan])})
    with pytest.raises(KitError, match=r"l\.w: .*not finite"):
        run(tmp_path / "w", broken, 1.0, tmp_path / "o2", say=quiet)
    large = write(tmp_path / "l", {**strong, "l.w": torch.tensor([1.0, 6e4])})
    with pytest.raises(KitError, match=r"l\.w: the result does not fit float16"):
        run(tmp_path / "w", large, 1.0, tmp_path / "o2", dtype="float16", say=quiet)
    assert not (tmp_path / "o2").exists() and not list(tmp_path.glob(".o2*"))


@pytest.mark.parametrize("owner", ["weak", "strong", "both"])
def test_a_tied_weight_in_one_of_both_files(tmp_path, owner):
    weak, strong = ({"model.embed_tokens.weight": torch.randn(6, 4)} for _ in range(2))
    for role, held in (("weak", weak), ("strong", strong)):
        if owner in (role, "both"):
            held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
    a, b = write(tmp_path / "w", weak, tie_word_embeddings=True), write(tmp_path / "s", strong)
    lines: list[str] = []
    content = run(a, b, 0.5, tmp_path / "out", say=lines.append)
    got = read(tmp_path / "out")
    assert ("lm_head.weight" in got) == (owner == "both") and content["all"]["weights"] == 24
    if owner == "both":
        assert torch.equal(got["lm_head.weight"], got["model.embed_tokens.weight"])
    else:
        assert any("lm_head.weight is a copy of model.embed_tokens.weight" in line for line in lines)
    alone = {**strong, "lm_head.weight": torch.randn(6, 4)}
    with (
        pytest.raises(KitError, match=r"lm_head\.weight: only .* holds it")
        if owner != "both"
        else pytest.raises(KitError)
    ):
        run(
            write(tmp_path / "x", {"model.embed_tokens.weight": torch.randn(6, 4)}),
            write(tmp_path / "y", alone),
            1,
            tmp_path / "z",
        )


def test_report_for_the_card(small, tmp_path):
    content = run(*small, 0.5, tmp_path / "out", say=quiet)
    assert content == json.loads((tmp_path / "out/extrapolation.json").read_text())
    assert content["alpha"] == 0.5 and set(content["modules"]) == {"m.a", "m.b"}
    weak, strong = read(small[0])["m.a.weight"].double(), read(small[1])["m.a.weight"].double()
    module = content["modules"]["m.a"]
    assert module["weights"] == 32 and module["norm"] == pytest.approx(float(weak.norm()))
    assert module["trained"] == pytest.approx(float((strong - weak).norm()))
    assert module["moved"] == pytest.approx(1.5 * module["trained"], rel=1e-5)
    assert module["relative"] == pytest.approx(module["moved"] / module["norm"])
    assert read(tmp_path / "out")["m.count"].tolist() == [7], "counters are STRONG's"
    from dataset_builder.models import checkpoint_revision

    assert content["strong"]["fingerprint"] == checkpoint_revision(small[1]) != content["weak"]["fingerprint"]


def test_trainer_state_pickle_and_cards_stay_behind(small, tmp_path):
    for name in (
        "optimizer.pt",
        "training_args.bin",
        "trainer_state.json",
        "README.md",
        "metrics.json",
        "rng_state_0.pth",
    ):
        (small[1] / name).write_text("x")
    (small[1] / "checkpoint-3").mkdir()
    (small[1] / "additional_chat_templates").mkdir()
    (small[1] / "additional_chat_templates/tool.jinja").write_text("t")
    (small[1] / "modeling_own.py").write_text("# own code")
    lines: list[str] = []
    run(*small, 0.5, tmp_path / "out", say=lines.append)
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    expected = {"model.safetensors", "config.json", "extrapolation.json", "modeling_own.py"}
    assert found == expected | {"additional_chat_templates/tool.jinja"}
    assert any("README.md" in line and "optimizer.pt" in line for line in lines)


def fault(small, tmp_path, kind: str) -> None:
    """Break STRONG."""
    weak, strong = small
    weights = read(strong)
    if kind == "truncated":
        file = strong / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
    elif kind == "missing shard":
        shutil.move(strong / "model.safetensors", strong / "model-00001-of-00002.safetensors")
        index = {
            "weight_map": {
                **dict.fromkeys(weights, "model-00001-of-00002.safetensors"),
                "z": "model-00002-of-00002.safetensors",
            }
        }
        (strong / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "index":
        shutil.move(strong / "model.safetensors", strong / "model-00001-of-00001.safetensors")
        index = {"weight_map": dict.fromkeys([*weights, "z"], "model-00001-of-00001.safetensors")}
        (strong / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "extra":
        write(strong, {**weights, "m.extra.weight": torch.ones(2, 2)})
    elif kind == "lacking":
        write(strong, {n: t for n, t in weights.items() if n != "m.b.bias"})
    elif kind == "shape":
        write(strong, {**weights, "m.a.weight": torch.ones(8, 5)})
    elif kind == "type":
        write(strong, {**weights, "m.a.weight": torch.ones(8, 4, dtype=torch.int64)})
    elif kind == "fp8":
        write(strong, {**weights, "m.a.weight": torch.ones(8, 4).to(torch.float8_e4m3fn)})
    elif kind == "pickle":
        (strong / "model.safetensors").unlink()
        (strong / "pytorch_model.bin").write_bytes(b"x")
    elif kind == "architecture":
        write(strong, weights, model_type="other")
    elif kind == "quantized":
        write(strong, weights, quantization_config={"bits": 4})
    elif kind == "no config":
        (strong / "config.json").unlink()
    elif kind == "exists":
        (tmp_path / "out").mkdir()
        (tmp_path / "out/kept").write_text("x")
    elif kind == "no folder":
        shutil.rmtree(weak)


FAULTS = {
    "truncated": r"model\.safetensors: cut short or damaged",
    "missing shard": r"model-00002-of-00002\.safetensors: there is no such file",
    "index": r"z is not in it, though the index says so",
    "extra": r"m\.extra\.weight: only .*strong holds it",
    "lacking": r"m\.b\.bias: only .*weak holds it",
    "shape": r"m\.a\.weight: shapes differ, \[8, 4\] in .*weak, \[8, 5\] in .*strong",
    "type": r"m\.a\.weight: types differ",
    "fp8": r"m\.a\.weight is of type F8_E4M3: quantized",
    "pickle": r"pytorch_model\.bin is pickle",
    "architecture": r"model_type is toy .* and other",
    "quantized": r"quantized weights",
    "no config": r"config\.json: no such file",
    "exists": r"out: is there already",
    "no folder": r"weak: there is no such folder",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_one_line_and_leave_nothing(small, tmp_path, kind, capsys):
    fault(small, tmp_path, kind)
    before = {p for p in tmp_path.iterdir()}
    assert main([*map(str, small), "--alpha", "0.5", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    with pytest.raises(KitError, match=FAULTS[kind]):
        run(*small, 0.5, tmp_path / "out", say=quiet)
    assert {p for p in tmp_path.iterdir()} == before


def test_vocabularies_that_differ(tiny, tmp_path):
    other = shutil.copytree(tiny[1], tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    a, b = [token for token in vocab if token not in {t["content"] for t in content["added_tokens"]}][-2:]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(KitError, match=r"embed_tokens\.weight: the vocabularies differ: token"):
        run(tiny[0], other, 0.5, tmp_path / "out", say=quiet)
    weak = write(tmp_path / "w", {"model.embed_tokens.weight": torch.ones(6, 4)})
    strong = write(tmp_path / "s", {"model.embed_tokens.weight": torch.ones(7, 4)})
    with pytest.raises(KitError, match=r"embed_tokens\.weight: shapes differ.*\(the vocabularies differ\)"):
        run(weak, strong, 0.5, tmp_path / "out", say=quiet)


def test_output_is_never_an_input_and_overwrite_replaces(small, tmp_path):
    for output in (small[1], tmp_path):
        with pytest.raises(KitError, match="which is read"):
            run(*small, 0.5, output, overwrite=True, say=quiet)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("x")
    run(*small, 0.5, tmp_path / "out", overwrite=True, say=quiet)
    assert not (tmp_path / "out/old").exists() and (tmp_path / "out/model.safetensors").exists()


def test_arguments(small, capsys):
    for words in (["--alpha", "nan"], ["--alpha", "x"], ["--alpha", "1", "--shard-size", "0"]):
        with pytest.raises(SystemExit):
            main([*map(str, small), *words, "--output", "o"])
    assert "finite number" in capsys.readouterr().err
    assert [size(t) for t in ("5GB", "1.5 MiB", "300", "7B")] == [5 * 10**9, 3 * 2**19, 300, 7]


def test_progress_names_rate_and_time_left():
    lines: list[str] = []
    clock = Progress(10**9, lines.append, every=0.0)
    clock.started -= 2.0
    clock.add(10**8)
    assert "0.1 of 1.0 GB written" in lines[0] and "MB/s" in lines[0] and lines[0].endswith("s left")
    clock.add(9 * 10**8)
    assert len(lines) == 1, "nothing is left to say at the end"


def test_killed_in_the_middle_leaves_no_half_folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {f"l.{i}.weight": torch.randn(512, 4096, generator=generator) for i in range(8)}
    weak = write(tmp_path / "weak", weights)
    strong = write(tmp_path / "strong", {name: tensor + 0.01 for name, tensor in weights.items()})
    output = tmp_path / "out"
    words = [sys.executable, "-m", "recipes.extrapolate", weak, strong, "--alpha", "0.5", "--output", output]
    child = subprocess.Popen([*words, "--shard-size", "10MB"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".out.partial"
    while child.poll() is None and len(list(partial.glob("*.safetensors"))) < 3:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert partial.exists() and not output.exists()
    done = subprocess.run([*words, "--shard-size", "10MB"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not partial.exists() and "cosine 1.0000" in done.stdout
    expected = extrapolate(load_file(strong / "model.safetensors"), weights, 0.5)
    got = read(output)
    assert got.keys() == expected.keys() and all(torch.equal(got[n], t) for n, t in expected.items())
