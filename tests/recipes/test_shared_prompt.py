"""Sharing a prompt changes nothing but the time: log-probabilities, gradients and weights of the plain computation."""

from __future__ import annotations

import functools

import pytest
import torch

from recipes.video.attention import branch_mask
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
    relative_error,
    sequence_log_probs,
    train,
)

LIMIT = 1e-4  # nats a sequence, and relative error of gradients
MODES = ("full", "trained_vision", "lora")


def one_step(arch, folder, mode, **fields):
    """(policy's log-probabilities, gradients, loss, trainer, forwards) of a step of the real trainer."""
    model, processor = fresh(arch)
    if mode == "lora":
        fields["peft_config"] = adapter(model)
    elif mode == "full":
        fields["ref_model"] = fresh(arch, seed=4)[0]  # with a vision tower of its own
    trainer = make_trainer(model, processor, folder, freeze_vision=mode != "trained_vision", **fields)
    logps = sequence_log_probs(trainer)
    with counted(trainer.model) as counts:
        watch = train(trainer)
    return logps, watch, losses(trainer)[0], trainer, counts


@functools.cache
def plain_step(arch, mode):
    """As the plain layout does it, once per family and mode."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        logps, watch, loss, trainer, _ = one_step(arch, folder, mode, share_prompt=False)
    assert not trainer.data_collator.share_prompt
    return logps, watch.gradients, loss


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("arch", FAMILIES)
def test_equals_the_plain_layout(arch, mode, checkpointing, tmp_path):
    logps, watch, loss, trainer, counts = one_step(arch, tmp_path, mode, gradient_checkpointing=checkpointing)
    expected, gradients, plain_loss = plain_step(arch, mode)
    assert trainer.data_collator.share_prompt and len(trainer._forwards) == (2 if mode == "full" else 1)
    difference = (logps - expected).abs().max().item()
    error = relative_error(watch.gradients, gradients)
    print(f"\n{arch} {mode}: log-prob difference {difference:.1e}, relative gradient error {error:.1e}")
    assert difference <= LIMIT and error <= LIMIT
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    # Checkpointing is on for real: the backward pass runs every decoder layer once more.
    assert watch.checkpointing is checkpointing
    own_reference = 1 if mode == "lora" else 0  # counted on the policy only; "full" has a reference model
    checked = 3 if mode != "trained_vision" else 0  # shared, plain twice; there, precomputing met the first batch
    assert counts["text"] == 1 + own_reference + checked + checkpointing
    vision = {n: g for n, g in watch.gradients.items() if "visual" in n or "vision" in n}
    if mode == "trained_vision":
        assert vision and counts["vision_grad"]
    else:
        assert not vision and not counts["vision_grad"], "frozen vision takes no part in the backward pass"


@pytest.mark.parametrize("arch", FAMILIES)
def test_equals_transformers_itself(arch, tmp_path):
    logps, watch, loss, *_ = one_step(arch, tmp_path, "trained_vision")
    model, processor = fresh(arch)
    expected = plain_transformers(model, processor, pairs())
    margins = expected[:4] - expected[4:]
    plain_loss = -torch.nn.functional.logsigmoid(0.1 * (margins - margins.detach())).mean()
    plain_loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    got = {n: g for n, g in watch.gradients.items() if n in gradients}
    assert not any(g.any() for n, g in watch.gradients.items() if n not in gradients)
    difference, error = (logps - expected).abs().max().item(), relative_error(got, gradients)
    print(f"\n{arch}: log-prob difference {difference:.1e}, relative gradient error {error:.1e}")
    assert difference <= LIMIT and error <= LIMIT
    assert loss == pytest.approx(plain_loss.item(), abs=1e-5)


def test_the_pairs_are_not_too_easy():
    """Two pairs share a clip, prompts and answers differ in length, and grids have three different axes."""
    for arch in FAMILIES:
        batch = _batch(fresh(arch)[1])
        assert batch["clip_index"].tolist() == [0, 0, 1, 2]
        assert len(set(batch["prompt_mask"].sum(1).tolist())) == 4
        lengths = batch["completion_mask"].sum(1)
        assert len(set(lengths.tolist())) > 4 and (lengths[:4] != lengths[4:]).sum() >= 3
        if arch in MROPE:
            grids = [clip["video_grid_thw"][0].tolist() for clip in batch["clips"]]
            assert grids == [[4, 4, 6], [4, 6, 4], [2, 2, 2]]


def _batch(processor):
    from recipes.video_dpo import ClipEncoder, VideoDPOCollator

    return VideoDPOCollator(ClipEncoder(processor))([pairs()[i] for i in range(4)])


def test_clips_are_looked_at_once(tmp_path):
    model, processor = fresh("qwen2_5_vl")
    trainer = make_trainer(model, processor, tmp_path, peft_config=adapter(model), self_check=False)
    with counted(trainer.model) as counts:
        train(trainer)
    assert trainer.features.made == counts["vision"] == 3, "four pairs, two answers, policy and reference: three clips"


@pytest.mark.parametrize("arch", ["qwen2_5_vl", "llava_onevision"])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_steps_end_with_equal_weights(arch, mode, tmp_path):
    ends, starts = [], []
    for share in (True, False):
        model, processor = fresh(arch)
        peft = {"peft_config": adapter(model)} if mode == "lora" else {}
        trainer = make_trainer(
            model,
            processor,
            tmp_path / str(share),
            share_prompt=share,
            max_steps=3,
            per_device_train_batch_size=2,
            max_grad_norm=1.0,
            optim="adamw_torch",
            adam_epsilon=1e-5,  # or Adam makes steps of full size out of rounding where a gradient is nought
            learning_rate=1e-3,
            **peft,
        )
        starts.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
        train(trainer)
        ends.append({n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad})
    moved = [{n: end[n] - start[n] for n in end} for start, end in zip(starts, ends, strict=True)]
    assert all(any(m.any() for m in side.values()) for side in moved)
    assert relative_error(*moved) <= 1e-3
    assert all(torch.allclose(ends[0][n], ends[1][n], rtol=0, atol=1e-6) for n in ends[0])


def test_branch_mask_by_hand():
    mask = branch_mask(torch.tensor([[1, 1, 0]]), 2)
    assert mask[0, 0].int().tolist() == [
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]
