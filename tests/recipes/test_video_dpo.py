"""The collator against the model's own inference inputs, the trainer against plain transformers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from dataset_builder.errors import KitError
from dataset_builder.media import file_sha256, sample_frames
from dataset_builder.models import ChatRequest, LocalChatModel
from dataset_builder.models.local import video_inputs
from dataset_builder.toy_models import ARCHS, make_tiny
from eval.runner import MediaIndex
from recipes.extrapolate import distance, snapshot
from recipes.round_config import IterW2SConfig
from recipes.video_dpo import (
    ClipEncoder,
    ReferenceStore,
    VideoDPOCollator,
    VideoDPOTrainer,
    VideoSFTCollator,
    freeze_vision,
    text_linear_names,
)


def pick(rows, count=3):
    """Pairs of which the first two share a clip."""
    chosen = [rows[i] for i in range(count)]
    assert chosen[0]["video_id"] == chosen[1]["video_id"] != chosen[2]["video_id"]
    return chosen


def plain_collator(encoder, max_length=None):
    """Both sides of a pair as the model's own inputs."""
    return VideoDPOCollator(encoder, max_length, share_prompt=False, unfold=True)


def trainer_for(model, processor, rows, tmp_path, steps=1, rate=1e-3, cache=None, **fields):
    args = IterW2SConfig(
        output_dir=str(tmp_path),
        max_steps=steps,
        learning_rate=rate,
        per_device_train_batch_size=4,
        use_cpu=True,
        logging_steps=1,
        **fields,
    )
    return VideoDPOTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=processor,
        references=cache,
    )


@pytest.mark.parametrize("arch", ARCHS)
def test_batch_is_what_the_model_sees_at_inference(arch, rows):
    model, processor = make_tiny(arch)
    picked = pick(rows)
    encoder = ClipEncoder(processor)
    batch = plain_collator(encoder)(picked)
    chat = LocalChatModel(model, processor, arch, "test")
    pad = processor.tokenizer.pad_token_id
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["completion_mask"].shape
    assert len(batch["input_ids"]) == 6
    for index, row in enumerate(picked * 2):
        side = "chosen" if index < 3 else "rejected"
        frames = sample_frames(row["video"]["bytes"], 8)
        alone = chat.prepare([ChatRequest(row["question"], frames)])
        ids, completion = batch["input_ids"][index], batch["completion_mask"][index].bool()
        prompt = batch["attention_mask"][index].bool() & ~completion
        assert ids[prompt].tolist() == alone["input_ids"][0].tolist()
        text = processor.tokenizer.decode(ids[completion])
        assert text == row[side][0]["content"][0]["text"] + processor.tokenizer.eos_token
        assert (ids[~batch["attention_mask"][index].bool()] == pad).all(), "padding is on the right"
        for name, values in alone.items():
            if name in ("input_ids", "attention_mask"):
                continue
            if name in ("mm_token_type_ids", "token_type_ids"):
                assert batch[name][index][prompt].tolist() == values[0].tolist()
                assert not batch[name][index][~prompt].any()
            else:
                assert torch.equal(batch[name].chunk(6)[index], values), name
    again = plain_collator(encoder)(picked)
    assert all(torch.equal(again[name], batch[name]) for name in batch), "the cache returns the same batch"


@pytest.mark.parametrize("arch", ARCHS)
def test_log_probs_equal_plain_transformers(arch, rows, tmp_path):
    model, processor = make_tiny(arch, seed=3)
    picked = pick(rows)
    expected = []
    for side in ("chosen", "rejected"):
        for row in picked:
            messages = [
                {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": row["question"]}]},
                {"role": "assistant", "content": row[side][0]["content"][0]["text"]},
            ]
            inputs = processor(
                text=[processor.apply_chat_template(messages, tokenize=False)],
                return_tensors="pt",
                **video_inputs([sample_frames(row["video"]["bytes"], 8)]),
            )
            with torch.no_grad():
                logps = model(**inputs).logits[0, :-1].double().log_softmax(-1)
            ids = inputs["input_ids"][0, 1:]
            start = (ids == processor.tokenizer.convert_tokens_to_ids("<|assistant|>")).nonzero()[-1] + 1
            expected.append(logps[range(start, len(ids)), ids[start:]].sum().item())
    trainer = trainer_for(model, processor, rows.select(range(3)), tmp_path)
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, trainer.data_collator(picked))
    assert [*chosen.tolist(), *rejected.tolist()] == pytest.approx(expected, abs=2e-5)


def test_training_lowers_the_loss_and_leaves_a_plain_model(rows, tmp_path):
    model, processor = make_tiny("qwen2_vl")
    start, cache = snapshot(model), ReferenceStore()
    stock = model.forward
    trainer = trainer_for(model, processor, rows.select(range(4)).select([0, 1, 2, 3] * 8), tmp_path, 8, cache=cache)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4), "policy and reference are the same at the start"
    assert losses[-1] < 0.6 * losses[0]
    assert len(losses) == 8
    trained = trainer.finish()
    assert "forward" not in vars(trained) and trained.forward == stock
    assert distance(snapshot(trained), start) > 0
    # The next run has another reference: values of the first are not reused for it, but kept for a third.
    trainer_for(trained, processor, rows.select(range(4)), tmp_path, cache=cache).finish()
    assert len(cache._scopes) == 2
    trained.load_state_dict(start)
    trainer = trainer_for(trained, processor, rows.select(range(4)), tmp_path, cache=cache)
    assert len(cache._scopes) == 2
    batch = trainer.data_collator([rows[i] for i in range(4)])
    online = trainer.compute_ref_log_probs(trainer.model, batch)[0]
    torch.testing.assert_close(batch["ref_chosen_logps"], online, rtol=0, atol=1e-5)


def test_references_depend_on_frames_and_template(rows):
    _, processor = make_tiny("qwen2_vl")
    keys = {ClipEncoder(processor, frames).settings_key for frames in (4, 8)}
    processor.chat_template = processor.chat_template + " "
    keys.add(ClipEncoder(processor, 8).settings_key)
    assert len(keys) == 3


def test_videos_outside_the_dataset(rows, tmp_path):
    _, processor = make_tiny("llava_onevision")
    row = rows[0]
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(row["video"]["bytes"])
    sha = file_sha256(clip)
    (tmp_path / "media.json").write_text(json.dumps({sha: str(clip)}))
    bare = {**row, "video": None, "video_id": sha[:16]}
    with pytest.raises(KitError, match="--media"):
        plain_collator(ClipEncoder(processor))([bare])
    media = MediaIndex(tmp_path / "media.json")
    attached = plain_collator(ClipEncoder(processor, media=media))([bare])
    embedded = plain_collator(ClipEncoder(processor))([row])
    assert all(torch.equal(attached[name], embedded[name]) for name in embedded)


def test_prompts_are_never_cut(rows):
    _, processor = make_tiny("qwen2_vl")
    encoder = ClipEncoder(processor)
    full = plain_collator(encoder)([rows[0]])["completion_mask"]
    prompt = int((full[0] == 0).sum())
    with pytest.raises(KitError, match=f"max_length is {prompt}"):
        plain_collator(encoder, max_length=prompt)([rows[0]])
    longest = full.shape[1] - 1
    cut = plain_collator(encoder, max_length=longest)([rows[0]])
    assert cut["input_ids"].shape[1] == longest and cut["completion_mask"].sum() == full.sum() - 2


def test_memory_of_the_cache_is_bounded(rows):
    _, processor = make_tiny("qwen2_vl")
    encoder = ClipEncoder(processor, cache_bytes=3 * 64 * 384 * 4)
    plain = ClipEncoder(processor)
    for i in range(0, 24, 4):
        some = [rows[j] for j in range(i, i + 4)]
        bounded, free = plain_collator(encoder)(some), plain_collator(plain)(some)
        assert all(torch.equal(bounded[name], free[name]) for name in free)
        assert encoder._vision.used <= encoder._vision.limit
    assert plain._vision.used > encoder._vision.limit


def test_sft_labels_cover_the_chosen_answer_only(rows):
    _, processor = make_tiny("internvl")
    batch = VideoSFTCollator(ClipEncoder(processor))(pick(rows))
    for row, ids, labels in zip(pick(rows), batch["input_ids"], batch["labels"], strict=True):
        kept = labels != -100
        assert torch.equal(ids[kept], labels[kept])
        assert processor.tokenizer.decode(ids[kept], skip_special_tokens=True) == row["answer"]


@pytest.mark.parametrize("arch", ARCHS)
def test_vision_tower_is_found(arch):
    model, _ = make_tiny(arch)
    total = sum(p.numel() for p in model.parameters())
    frozen = freeze_vision(model)
    assert 0 < frozen == total - sum(p.numel() for p in model.parameters() if p.requires_grad)
    names = text_linear_names(model)
    assert any("self_attn.q_proj" in name for name in names)
    assert not any("vision" in name or "visual" in name or "lm_head" in name for name in names)
