"""The memory formula against real models: counts exactly, the peak of a step against every tensor that lives in it."""

from __future__ import annotations

import contextlib
import functools
import json
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dataset_builder.errors import KitError
from dataset_builder.toy_models import ARCHS, make_tiny, save_tiny
from recipes import memory
from recipes.memory import CONFIGS, GB, Run, Shape, build, estimate, main, measure, read_run, read_shape
from recipes.settings import read_yaml
from recipes.video.vision import freeze_vision, text_linear_names

SHAPES = read_yaml(str(CONFIGS / "shapes.yaml"))
TOKENS = 400


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside it while they live; `peak` is the most there were at once.

    Args:
        known: tensors that were there before and do not count.
    """

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key, size):
        self._known.discard(key)
        self.now -= size


def prepare(model, run: Run):
    """The model as a trainer would have it: adapters or frozen vision, checkpointing."""
    if run.use_peft:
        names = text_linear_names(model)
        model = get_peft_model(model, LoraConfig(r=run.lora_r, target_modules=names, lora_dropout=0.0))
    else:
        freeze_vision(model)
    model.train()
    if run.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        if run.use_peft:
            model.enable_input_require_grads()
    return model


def step_peak(model, run: Run, tokens: int) -> int:
    """Peak bytes of a forward and backward pass over `tokens` positions, beside weights and gradients."""
    backbone = (model.get_base_model() if run.use_peft else model).model

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=run.bf16):
            ids = torch.zeros(1, tokens, dtype=torch.long)
            loss = backbone(input_ids=ids, use_cache=False).last_hidden_state.float().mean()
        loss.backward()

    step()  # from here on the gradients are there, as they are while they accumulate
    parameters = list(model.parameters())
    with LiveBytes([*parameters, *(p.grad for p in parameters if p.grad is not None)]) as live:
        step()
    return live.peak


def body(shape: Shape, run: Run, tokens: int) -> float:
    """The formula's working memory without the LM head, which `step_peak` leaves out."""
    moments = estimate(shape, run, tokens - 2, 1).moments
    return max(sum(parts.values()) for name, parts in moments.items() if "head" not in name)


@pytest.mark.parametrize("name", SHAPES)
def test_released_shapes_have_the_released_number_of_parameters(name):
    shape = read_shape(name)
    assert shape.parameters == SHAPES[name]["parameters"]
    assert shape.vision < shape.parameters / 2 and shape.text_linear < shape.parameters - shape.vision
    assert shape.query_norm == ("Qwen3" in name)


@pytest.mark.parametrize("arch", ARCHS)
def test_counts_are_exact(arch, tmp_path):
    model = make_tiny(arch)[0]
    shape = read_shape(str(save_tiny(arch, tmp_path)))
    assert shape == measure(model), "config.json alone gives what the model has"
    total = sum(p.numel() for p in model.parameters())
    full = estimate(shape, Run(), 100).held
    assert full["weights"] == sum(p.nbytes for p in model.parameters()) == 4 * total
    frozen = freeze_vision(model)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert shape.vision == frozen and full["gradients"] == trained and full["optimizer states"] == 2 * trained
    assert estimate(shape, Run(freeze_vision=False), 100).held["gradients"] == 4 * total
    run = Run(use_peft=True, lora_r=3)
    adapted = prepare(make_tiny(arch)[0], run)
    lora = estimate(shape, run, 100).held
    assert lora["gradients"] == sum(p.nbytes for p in adapted.parameters() if p.requires_grad)
    assert lora["weights"] == sum(p.nbytes for p in adapted.parameters())


def test_optimizer_states_are_exact():
    model = prepare(make_tiny("qwen2_vl")[0], Run())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim)
    assert estimate(measure(model), Run(), 100).held["optimizer states"] == states


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("arch", ["qwen2_5_vl", "qwen3_vl", "internvl"])
def test_peak_of_a_step(arch, peft, bf16, checkpointing):
    run = Run(per_device_train_batch_size=1, use_peft=peft, bf16=bf16, gradient_checkpointing=checkpointing)
    model = prepare(make_tiny(arch)[0], run)
    shape = measure(make_tiny(arch)[0])
    assert body(shape, run, TOKENS) / step_peak(model, run, TOKENS) == pytest.approx(1, abs=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["qwen2_5_vl_3b_lora", "qwen2_vl_2b", "llava_next_video_7b_lora"])
def test_peak_of_a_step_at_full_size(config):
    """The shipped configs' own shapes, on tensors that have a size but no content."""
    run = replace(read_run(CONFIGS / f"{config}.yaml"), per_device_train_batch_size=1)
    shape, tokens = read_shape(run.model_name_or_path), 1400
    values = SHAPES[run.model_name_or_path]["config"]
    from transformers import AutoConfig

    model = prepare(build(AutoConfig.for_model(**values)), run)
    with FakeTensorMode():
        sized: dict[int, torch.nn.Parameter] = {}
        for module in model.modules():
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    if tensor is not None and id(tensor) not in sized:
                        real = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                        is_weight = kind is module._parameters
                        sized[id(tensor)] = torch.nn.Parameter(real, tensor.requires_grad) if is_weight else real
                    kind[name] = sized.get(id(tensor))
        peak = step_peak(model, run, tokens)
    assert body(shape, run, tokens) / peak == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_vision_tower(trained):
    model = make_tiny("qwen2_vl")[0]
    tower, shape = model.model.visual, replace(measure(model), frame_tokens=1, frame_patches=128)
    grid = torch.tensor([[4, 16, 16]])  # eight frames: two share a grid of 256 patches
    pixels = torch.zeros(1024, 3 * 2 * 16 * 16)
    with LiveBytes([*tower.parameters(), pixels]) as live, contextlib.nullcontext() if trained else torch.no_grad():
        output = tower(pixels, grid)
        if trained:
            sum(tensor.float().mean() for tensor in tree_leaves(output) if torch.is_tensor(tensor)).backward()
    run = Run(per_device_train_batch_size=1, freeze_vision=not trained)
    moments = estimate(shape, run, 100).moments
    found = moments["the forward pass ends"]["vision tower"] if trained else moments["the vision tower"]["one block"]
    assert 0.5 < found / live.peak < 2


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_lm_head(trained):
    """Few tokens, and no way back to frozen weights: a CPU makes fp32 copies there, which a GPU's kernels do not."""
    from trl.kernels import ChunkedLogProbFunction

    hidden, weight = torch.randn(4, 96, requires_grad=True), torch.randn(40_000, 96, requires_grad=trained)
    targets = torch.zeros(4, dtype=torch.long)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ("log_probs",))
        if trained:
            outputs[0].sum().backward()

    step()
    known = (hidden, weight, targets, hidden.grad, weight.grad)
    with LiveBytes([tensor for tensor in known if tensor is not None]) as live:
        step()
    shape = replace(measure(make_tiny("qwen2_vl")[0]), vocabulary=40_000)
    run = Run(per_device_train_batch_size=1, use_peft=not trained, bf16=True)
    moments = estimate(shape, run, 1, 2).moments
    found = moments["going back through the head"] if trained else moments["the forward pass ends"]
    head = sum(found.get(name, 0) for name in ("hidden states", "one tile", "head's gradient"))
    assert 0.5 < head / live.peak < 2


RUNS = st.builds(
    Run,
    per_device_train_batch_size=st.integers(1, 4),
    num_frames=st.integers(1, 64),
    use_peft=st.booleans(),
    freeze_vision=st.booleans(),
    share_prompt=st.booleans(),
    bf16=st.booleans(),
    gradient_checkpointing=st.booleans(),
    rounds=st.integers(0, 3),
)


@functools.cache
def seen() -> Shape:
    """The shape of the example to begin with."""
    return read_shape("Qwen/Qwen2.5-VL-3B-Instruct")


@settings(max_examples=60, deadline=None)
@given(RUNS, st.integers(1, 9000), st.integers(1, 500))
def test_more_is_never_less(run, prompt, answer):
    found = estimate(seen(), run, prompt, answer)
    assert all(
        value >= 0 for part in (found.held, found.evaluation, *found.moments.values()) for value in part.values()
    )
    assert estimate(seen(), run, prompt + 1, answer).total >= found.total
    assert estimate(seen(), run, prompt, answer + 1).working >= found.working
    assert (
        estimate(seen(), replace(run, share_prompt=False), prompt, answer).working >= found.working or prompt < answer
    )
    assert estimate(seen(), replace(run, use_peft=True), prompt, answer).total <= found.total
    assert estimate(seen(), run, prompt, answer, gpus=8).held["weights"] < found.held["weights"]
    sizes = [found.fits(card) for card in (1, 24, 40, 48, 80, 10_000)]
    assert sizes == sorted(sizes) and not sizes[0] and sizes[-1]


def test_masters_are_fp32_with_lora_too():
    run = read_run(CONFIGS / "qwen2_5_vl_7b_lora.yaml")
    shape = read_shape(run.model_name_or_path)
    found = estimate(shape, run)
    assert found.prompt_tokens == 8 * 149.5 + 64
    assert found.held["weights"] > 33 * GB and not found.fits(24)
    half = estimate(shape, replace(run, dtype="bfloat16"))
    assert half.held["weights"] < 17 * GB and half.fits(24)
    assert found.host == 16 * shape.parameters and found.evaluation["weights"] == 4 * shape.parameters
    for alone in (estimate(shape, replace(run, rounds=0)), half, estimate(shape, run, gpus=2)):
        assert alone.host == 0 and not alone.evaluation, "one run of dpo.py evaluates nothing"
    online = estimate(shape, replace(run, use_peft=False, precompute_ref_log_probs=False))
    assert online.held["reference model"] == online.held["weights"]


def test_what_is_printed(capsys, tmp_path):
    path = CONFIGS / "qwen2_5_vl_3b_lora.yaml"
    assert main([str(path), "--prompt-tokens", "2000", "--answer-tokens", "30"]) == 0
    printed = capsys.readouterr().out
    assert "estimate (formula) for one GPU" in printed and "2,000 prompt and 30 answer tokens" in printed
    found = estimate(read_shape("Qwen/Qwen2.5-VL-3B-Instruct"), read_run(path), 2000, 30)
    assert f"at the peak{found.total / GB:>29.2f} GB" in printed and "fits a card of 24 GB" in printed
    assert main([str(path), "--gpus", "4", "--dtype", "bfloat16"]) == 0
    assert "one of 4 GPUs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ({}, [], "field 'model_name_or_path': which model"),
        ({"model_name_or_path": "no/such"}, [], "no/such: no checkpoint folder, and no entry in .*shapes.yaml"),
        ({"model_name_or_path": "TEXT"}, [], "no vision_config|cannot|nrecognized"),
        ({"model_name_or_path": "TINY"}, [], "how many tokens is a prompt"),
        ({"model_name_or_path": "TINY", "lora_r": "many"}, [], "field 'lora_r': 'many'"),
        ({"model_name_or_path": "TINY", "num_frames": True}, [], "field 'num_frames': True"),
        ({"model_name_or_path": "TINY"}, ["--prompt-tokens", "0"], "must be at least 1"),
        (None, [], "which config"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(content, words, message, tmp_path):
    if content is None:
        with pytest.raises(KitError, match=message):
            main(words)
        return
    for name, values in (("TEXT", {"model_type": "llama"}), ("TINY", make_tiny("internvl")[0].config.to_dict())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values, default=str))
    if (name := content.get("model_name_or_path")) in ("TEXT", "TINY"):
        content = {**content, "model_name_or_path": str(tmp_path / name)}
    (tmp_path / "run.yaml").write_text(json.dumps(content))
    with pytest.raises(KitError, match=message) as caught:
        main([str(tmp_path / "run.yaml"), *words])
    assert "\n" not in str(caught.value)


def test_cards_are_compared_with_the_gaps():
    total = estimate(seen(), Run(use_peft=True), 1000)
    assert total.fits(total.total * memory.GAPS / GB * 1.001) and not total.fits(total.total / GB)
