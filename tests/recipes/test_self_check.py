"""The self-check passes on what is right and stops everything that is planted; what cannot share prompts says so."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from dataset_builder.errors import KitError
from recipes.video import attention, check
from recipes.video import pairs as pair_module
from recipes.video.pairs import PairForward
from recipes.video.vision import vision_modules
from tests.recipes.pairs_world import (
    FAMILIES,
    MROPE,
    adapter,
    counted,
    fresh,
    losses,
    make_trainer,
    pairs,
    plain_transformers,
    quick_collection,  # noqa: F401
    train,
)

KINDS = {"fp32": torch.float32, "autocast": torch.bfloat16, "bf16": torch.bfloat16}
_branch_mask, _positions = attention.branch_mask, PairForward._positions


def _mask(change):
    def planted(prompt_mask, length):
        mask = _branch_mask(prompt_mask, length).clone()
        change(mask, prompt_mask.shape[1], length)
        return mask

    return lambda patch, model: patch.setattr(attention, "branch_mask", planted)


def _sees_padding(patch, model):
    patch.setattr(attention, "branch_mask", lambda mask, length: _branch_mask(torch.ones_like(mask), length))


def _sees_other_branch(mask, prompt, length):
    mask[..., length:, prompt : prompt + length] = True


def _sees_the_future(mask, prompt, length):
    mask[..., :length, prompt : prompt + length] = True
    mask[..., length:, prompt + length :] = True


def _sees_no_prompt(mask, prompt, length):
    mask[..., :prompt] = False


def _position(change):
    def planted(self, prompt_ids, prompt_mask, prompt_types, vision, length):
        positions = _positions(self, prompt_ids, prompt_mask, prompt_types, vision, length).clone()
        change(positions, prompt_mask.sum(1, keepdim=True), length)
        return positions

    return lambda patch, model: patch.setattr(PairForward, "_positions", planted)


def _one_after_the_other(positions, prompt, length):
    positions[..., -length:] += length


def _off_by_one(positions, prompt, length):
    positions[..., -2 * length :] += 1


def _one_axis_only(positions, prompt, length):
    """Height and width go on from the number of tokens, as in a text model."""
    positions[1:, :, -2 * length :] = prompt + torch.arange(length).repeat(2)


def _causal(module, query, key, value, attention_mask=None, **kwargs):
    kwargs.pop("is_causal", None)
    return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **kwargs)


def _branched(module, query, key, value, attention_mask=None, **kwargs):
    length = query.shape[2]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None, length // 2 :]
    return attention.shared_prompt_attention(module, query, key, value, mask, **kwargs)


def _leak(name, function):
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])

    def plant(patch, model):
        text = (model.config, model.config.get_text_config())
        for tower in vision_modules(model).values():
            for module in tower.modules():
                if (config := getattr(module, "config", None)) is not None and all(config is not own for own in text):
                    patch.setattr(config, "_attn_implementation_internal", name)

    return plant


FAULTS = {
    "a branch sees the other": _mask(_sees_other_branch),
    "a branch sees its future": _mask(_sees_the_future),
    "a branch sees the prompt's padding": _sees_padding,
    "a branch does not see the prompt": _mask(_sees_no_prompt),
    "branches go on after each other": _position(_one_after_the_other),
    "positions are off by one": _position(_off_by_one),
    "positions are right on one axis only": _position(_one_axis_only),
    "the vision tower attends causally": _leak("leaked_causal", _causal),
    "the vision tower gets a branch mask": _leak("leaked_branch", _branched),
}


def trained_like(arch, kind):
    """A model whose vision tower depends on its attention: an untrained one attends evenly to everything."""
    model, processor = fresh(arch)
    with torch.no_grad():
        for tower in vision_modules(model).values():
            for name, parameter in tower.named_parameters():
                if "attn" in name or "attention" in name:
                    parameter.mul_(3)
                if "lambda" in name:
                    parameter.fill_(1.0)
    return (model.bfloat16() if kind == "bf16" else model), processor


def faults(arch) -> dict:
    """The faults that can be planted in a family."""
    return {name: plant for name, plant in FAULTS.items() if arch in MROPE or "axis" not in name}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", FAMILIES)
def test_limits_lie_between(arch, kind, tmp_path, monkeypatch):
    """Without a fault both differences are well below their limits, with any fault one of them is well above."""
    dtype = KINDS[kind]
    model, processor = trained_like(arch, kind)
    trainer = make_trainer(
        model, processor, tmp_path, peft_config=adapter(model), bf16=kind == "autocast", self_check=False
    )
    forward, batch = trainer._forwards[0], trainer.data_collator([pairs()[i] for i in range(4)])
    trainer.model.train()

    def measured() -> check.Difference:
        with trainer.compute_loss_context_manager(), trainer.accelerator.autocast():
            return check.compare(trainer.model, forward, batch)

    right = measured()
    limit, vision_limit = max(check.LIMIT[dtype], check.ABOVE_ROUNDING * right.rounding), check.VISION_LIMIT[dtype]
    print(f"\n{arch} {kind}: {right} (limits {limit:.2g}, {vision_limit:.2g})")
    assert right.nats < 0.5 * limit and right.vision < 0.5 * vision_limit
    for name, plant in faults(arch).items():
        with monkeypatch.context() as patch:
            plant(patch, forward.model)
            wrong = measured()
        print(f"  {name}: {wrong.nats:.2g} nats, vision {wrong.vision:.2g}")
        assert max(wrong.nats / limit, wrong.vision / vision_limit) > 1.5, f"{name}: {wrong}"
    assert measured() == right, "nothing stays behind"
    assert trainer.model.training


@pytest.mark.parametrize("kind", ["fp32", "autocast"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_stops_the_run(fault, kind, tmp_path, monkeypatch):
    model, processor = trained_like("qwen2_5_vl", kind)
    peft = adapter(model)
    trainer = make_trainer(model, processor, tmp_path, peft_config=peft, bf16=kind == "autocast")
    FAULTS[fault](monkeypatch, model)
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(KitError, match=r"self-check: .*--share_prompt false"):
        trainer.train()
    assert all(torch.equal(parameter, start[name]) for name, parameter in model.named_parameters())
    assert trainer.checked is None


def test_a_planted_fault_stops_the_precomputation(tmp_path, monkeypatch):
    model, processor = fresh("smolvlm")
    FAULTS["positions are off by one"](monkeypatch, model)
    with pytest.raises(KitError, match="self-check"):
        make_trainer(model, processor, tmp_path)
    assert not list(tmp_path.rglob("*.jsonl")), "no reference of a wrong computation is kept"


def test_the_check_can_be_switched_off(tmp_path, monkeypatch):
    model, processor = fresh("qwen2_5_vl")
    FAULTS["a branch sees the other"](monkeypatch, model)
    trainer = make_trainer(model, processor, tmp_path, peft_config=adapter(model), self_check=False)
    with counted(trainer.model) as counts:
        train(trainer)
    assert trainer.checked is None and counts["text"] == 2, "policy and reference only"


@pytest.mark.parametrize("kind", ["autocast", "bf16"])
@pytest.mark.parametrize("arch", FAMILIES)
def test_bf16_trains_and_passes(arch, kind, tmp_path):
    model, processor = fresh(arch)
    model = model.bfloat16() if kind == "bf16" else model
    trainer = make_trainer(model, processor, tmp_path, bf16=kind == "autocast", gradient_checkpointing=True)
    watch = train(trainer)
    assert trainer.checked <= check.LIMIT[torch.bfloat16]
    assert torch.isfinite(torch.tensor(losses(trainer))).all()
    assert watch.gradients and all(torch.isfinite(g).all() for g in watch.gradients.values())


def test_dropout_does_not_disturb_the_check(tmp_path):
    model, processor = fresh("llava_onevision")
    peft = adapter(model)
    peft.lora_dropout = 0.5
    trainer = make_trainer(model, processor, tmp_path, peft_config=peft, disable_dropout=False)
    train(trainer)
    assert trainer.checked < 1e-5


def test_nothing_sees_the_padding_of_the_checked_pair():
    """The checked pair is padded to twice its length, so that a later batch's padding is checked too."""
    from recipes.video_dpo import ClipEncoder, VideoDPOCollator

    batch = VideoDPOCollator(ClipEncoder(fresh("qwen2_vl")[1]))([pairs()[0], pairs()[0]])
    assert batch["prompt_mask"].all(), "no padding here"
    pair = check.first_pair(batch)
    wide = check.widened(pair, ("prompt_ids", "prompt_mask", "prompt_types"))
    prompt = pair["prompt_ids"].shape[1]
    assert wide["prompt_ids"].shape == wide["prompt_mask"].shape == (1, 2 * prompt)
    assert wide["prompt_mask"].sum() == prompt and not wide["prompt_types"]["mm_token_type_ids"][:, prompt:].any()
    assert torch.equal(wide["prompt_ids"][:, :prompt], pair["prompt_ids"])


def hybrid():
    """A tiny Qwen3.5: linear attention in one layer, full attention in the other."""
    from transformers import AutoModelForImageTextToText, Qwen3_5Config

    base, processor = fresh("qwen3_vl")
    text = base.config.text_config.to_dict()
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings")
    vision = base.config.vision_config.to_dict()
    config = Qwen3_5Config(
        text_config={
            **{name: text[name] for name in keep},
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4]},
            "pad_token_id": processor.tokenizer.pad_token_id,
            "eos_token_id": processor.tokenizer.eos_token_id,
        },
        vision_config={n: v for n, v in vision.items() if n not in ("model_type", "deepstack_visual_indexes")},
        **{name: getattr(base.config, name) for name in ids},
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32), processor


def sliding():
    """A Qwen2.5-VL whose second layer attends within a window."""
    from transformers import AutoModelForImageTextToText

    base, processor = fresh("qwen2_5_vl")
    config = copy.deepcopy(base.config)
    config.text_config.layer_types, config.text_config.sliding_window = ["full_attention", "sliding_attention"], 16
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=torch.float32), processor


def unknown():
    """A family that nobody has tried."""
    return fresh("llava_onevision")


CASES = {
    "hybrid": (hybrid, "model type qwen3_5 is not one that was tested"),
    "sliding": (sliding, "its text model has layers of type sliding_attention"),
    "unknown": (unknown, "model type llava_onevision is not one that was tested"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_share_says_so_and_trains(case, tmp_path, monkeypatch):
    make, reason = CASES[case]
    model, processor = make()
    if case == "unknown":
        monkeypatch.setattr(pair_module, "FAMILIES", tuple(f for f in FAMILIES if f != "llava_onevision"))
    with torch.no_grad():
        expected = plain_transformers(model, processor, pairs())
    said = []
    trainer = make_trainer(model, processor, tmp_path, peft_config=adapter(model), say=said.append)
    assert len(said) == 1 and reason in said[0] and "plain layout with vision once" in said[0]
    assert not trainer.data_collator.share_prompt
    batch = trainer.data_collator([pairs()[i] for i in range(4)])
    got = torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))  # without the adapter
    assert (got - expected).abs().max() < 1e-4
    with counted(trainer.model) as counts:
        gradients = train(trainer).gradients
    assert any(g.any() for g in gradients.values()) and losses(trainer)
    assert counts["vision"] == 0 and trainer.features.made == 3, (
        "the clips' features of above serve policy and reference"
    )


def test_a_known_family_with_recurrent_layers_is_not_shared(monkeypatch):
    model, _ = hybrid()
    monkeypatch.setattr(pair_module, "FAMILIES", (*FAMILIES, "qwen3_5"))
    assert pair_module.why_not_shared(model) == "its text model has layers of type linear_attention"
    assert all(pair_module.why_not_shared(fresh(arch)[0]) is None for arch in FAMILIES)


def test_a_model_that_takes_no_features_gets_pixels(tmp_path, monkeypatch):
    import recipes.video_dpo as module

    monkeypatch.setattr(module, "takes_features", lambda backbone: False)
    model, processor = fresh("internvl")
    expected = plain_transformers(model, processor, pairs()).detach()
    said = []
    trainer = make_trainer(model, processor, tmp_path, peft_config=adapter(model), say=said.append)
    got = torch.cat(trainer.compute_ref_log_probs(trainer.model, trainer.data_collator(list(pairs()))))
    assert (got - expected).abs().max() < 1e-4 and losses(train(trainer) and trainer)
    assert not trainer.data_collator.share_prompt and len(said) == 1 and "vision for every sequence" in said[0]
