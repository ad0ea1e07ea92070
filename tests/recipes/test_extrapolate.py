"""theta + alpha · (theta − theta_ref): known answers, bits, precision, adapters."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataset_builder.errors import KitError
from dataset_builder.toy_models import make_tiny
from recipes.extrapolate import distance, extrapolate, realised, scale_lora, snapshot
from recipes.extrapolate.states import PIECE

FLOATS = st.floats(-1e3, 1e3, width=32)
PAIRS = hnp.arrays(np.float32, (2, 5), elements=FLOATS)


def test_known_answers():
    theta = {"w": torch.tensor([2.0, -1.0]), "n": torch.tensor([3])}
    ref = {"w": torch.tensor([1.0, 1.0]), "n": torch.tensor([1])}
    assert extrapolate(theta, ref, 1.0)["w"].tolist() == [3.0, -3.0]
    assert extrapolate(theta, ref, 0.5)["w"].tolist() == [2.5, -2.0]
    assert extrapolate(theta, ref, -1.0)["w"].tolist() == [1.0, 1.0]
    assert extrapolate(theta, ref, 1.0)["n"].tolist() == [3], "counters are not extrapolated"
    assert distance(theta, ref) == pytest.approx(math.sqrt(5))


@given(PAIRS, st.floats(-2, 4))
@settings(deadline=None, max_examples=60)
def test_against_fp64(pair, alpha):
    theta, ref = torch.tensor(pair[0]), torch.tensor(pair[1])
    got = extrapolate({"w": theta}, {"w": ref}, alpha)["w"]
    expected = pair[0].astype(np.float64) + alpha * (pair[0].astype(np.float64) - pair[1])
    scale = np.abs(pair).max(0) * (1 + abs(alpha)) * 4
    assert np.all(np.abs(got.double().numpy() - expected) <= scale * 2.0**-23 + 1e-30)


@given(PAIRS)
@settings(deadline=None, max_examples=60)
def test_alpha_zero_and_unchanged_weights_are_bit_equal(pair):
    theta, ref = torch.tensor(pair[0]), torch.tensor(pair[1])
    bits = theta.view(torch.int32)
    assert torch.equal(extrapolate({"w": theta}, {"w": ref}, 0.0)["w"].view(torch.int32), bits)
    assert torch.equal(extrapolate({"w": theta}, {"w": theta.clone()}, 0.7)["w"].view(torch.int32), bits)


@given(PAIRS)
@settings(deadline=None, max_examples=60)
def test_alpha_minus_one_is_the_reference_bit_for_bit(pair):
    theta, ref = torch.tensor(pair[0]), torch.tensor(pair[1])
    got = extrapolate({"w": theta}, {"w": ref}, -1.0)["w"]
    assert torch.equal(got.view(torch.int32), ref.view(torch.int32)) and got.data_ptr() != ref.data_ptr()


def test_where_the_step_cancels_the_weight_the_error_stays_relative():
    theta, ref = {"w": torch.tensor([1.0])}, {"w": torch.tensor([11.0 + 2**-20])}
    expected = 1.0 + 0.1 * (1.0 - float(ref["w"][0]))
    assert float(extrapolate(theta, ref, 0.1)["w"][0]) == pytest.approx(expected, rel=1e-7)


def test_tensors_of_several_pieces_and_other_strides():
    theta, ref = torch.randn(3, PIECE // 2 + 5), torch.randn(PIECE // 2 + 5, 3).T
    got = extrapolate({"w": theta}, {"w": ref}, 0.5)["w"]
    torch.testing.assert_close(got, theta + 0.5 * (theta - ref))


def test_refusals():
    w = {"w": torch.ones(2)}
    with pytest.raises(KitError, match="only one of them has v"):
        extrapolate(w, {"v": torch.ones(2)}, 1.0)
    with pytest.raises(KitError, match="shapes differ"):
        extrapolate(w, {"w": torch.ones(3)}, 1.0)
    with pytest.raises(KitError, match="finite"):
        extrapolate(w, w, math.nan)
    with pytest.raises(KitError, match=r"bfloat16.*fp32 masters"):
        extrapolate({"w": torch.ones(2, dtype=torch.bfloat16)}, w, 1.0)
    with pytest.raises(KitError, match="DoRA"):
        scale_lora({"x.lora_magnitude_vector": torch.ones(1)}, 0.5)
    with pytest.raises(KitError, match="not a LoRA matrix"):
        scale_lora({"x.modules_to_save.weight": torch.ones(1)}, 0.5)


def test_realised_shows_what_bf16_loses():
    generator = torch.Generator().manual_seed(0)
    start = {"w": 0.02 * torch.randn(20_000, generator=generator)}
    meant = {"w": start["w"] + 1e-5 * torch.randn(20_000, generator=generator)}
    exact = realised(meant, meant, start)
    assert exact.cosine == pytest.approx(1) and exact.ratio == pytest.approx(1) and exact.moved == 1

    def low(state):
        return {"w": state["w"].to(torch.bfloat16)}

    kept = realised(low(meant), meant, low(start))
    assert kept.moved < 0.3
    assert realised(low(meant), meant, start).cosine < 0.4
    assert math.isnan(realised(meant, start, start).cosine)


def test_tied_weights_count_once():
    model, _ = make_tiny("qwen2_vl")
    before = snapshot(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 3.0
    assert distance(snapshot(model), before) == pytest.approx(3.0)
    model.load_state_dict(extrapolate(snapshot(model), before, 1.0))
    assert distance(snapshot(model), before) == pytest.approx(6.0)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_scaled_adapter_merges_to_the_extrapolated_weights(alpha):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    from recipes.video_dpo import text_linear_names

    model, _ = make_tiny("qwen2_5_vl")
    start = snapshot(model)
    twin = copy.deepcopy(model)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=text_linear_names(model))
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    scaled = scale_lora(get_peft_model_state_dict(adapted), alpha)
    other = get_peft_model(twin, config)
    set_peft_model_state_dict(other, scaled)
    expected = extrapolate(snapshot(adapted.merge_and_unload()), start, alpha)
    merged = snapshot(other.merge_and_unload())
    assert distance(expected, start) > 0.1
    for name in expected:
        if alpha == 0:
            assert torch.equal(merged[name], expected[name]), name
        torch.testing.assert_close(merged[name], expected[name], rtol=1e-5, atol=1e-6)
