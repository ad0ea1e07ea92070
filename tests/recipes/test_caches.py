"""Caches of features and references: never wrong, never in the way, and no vision work for what they hold."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import save_file

from dataset_builder.errors import KitError
from recipes.video.features import FeatureStore, features_key
from recipes.video.references import ReferenceStore
from recipes.video.vision import clip_features, vision_modules, vision_parameters
from recipes.video_dpo import ClipEncoder, VideoDPOConfig, make_encoder, text_linear_names
from tests.recipes.pairs_world import (
    adapter,
    counted,
    fresh,
    losses,
    make_trainer,
    pairs,
    quick_collection,  # noqa: F401
    train,
)


def clip(seed: int, tokens: int = 16) -> dict[str, torch.Tensor]:
    """Features of one clip; 1 KiB for 16 tokens."""
    values = torch.randn(tokens, 16, generator=torch.Generator().manual_seed(seed))
    return {"features.pooler": values}


def bytes_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def two_epochs(arch, folder, rows=None, **fields):
    """(trainer after two epochs in batches of two, forwards) of a LoRA run with its reference online."""
    model, processor = fresh(arch)
    trainer = make_trainer(
        model,
        processor,
        folder / "run",
        rows,
        peft_config=adapter(model, fields.pop("targets", None)),
        max_steps=-1,
        num_train_epochs=2,
        per_device_train_batch_size=2,
        feature_cache=str(folder / "features"),
        **fields,
    )
    with counted(trainer.model) as counts:
        train(trainer)
    return trainer, counts


# keys


def key_of(model, processor, dtype="torch.float32", **settings) -> str:
    return features_key(model, ClipEncoder(processor, **settings).clip_key, dtype)


@pytest.mark.parametrize("arch", ["qwen2_5_vl", "llava_onevision"])
def test_what_changes_the_feature_key(arch):
    model, processor = fresh(arch)
    keys = {
        "as it is": key_of(model, processor),
        "num_frames": key_of(model, processor, num_frames=4),
        "fps": key_of(model, processor, fps=2.0),
        "another fps": key_of(model, processor, fps=1.0),
        "type": key_of(model, processor, "torch.bfloat16"),
    }
    video, size = processor.video_processor, processor.video_processor.size
    try:
        video.size = type(size)(**{name: 2 * side for name, side in dict(size).items() if side is not None})
        keys["resolution"] = key_of(model, processor)
    finally:
        video.size = size
    assert key_of(model, processor) == keys["as it is"]
    for name, parameter in vision_parameters(model).items():
        value = parameter.data.view(-1)[-1:]
        value.copy_(torch.nextafter(value.clone(), torch.tensor(torch.inf)))  # the smallest change there is
        keys[name] = key_of(model, processor)
    assert len(set(keys.values())) == len(keys), "every change gives a key of its own"


def test_what_leaves_the_feature_key_alone():
    model, processor = fresh("qwen2_5_vl")
    key = key_of(model, processor)
    processor.tokenizer(["a", "longer text"], padding=True)  # leaves its mark in the tokenizer
    text = next(p for n, p in model.named_parameters() if "language_model.layers" in n)
    text.data += 1
    assert key_of(model, processor) == key, "the text model has no part in a clip's features"
    adapted, clip_key = fresh("qwen2_5_vl")[0], ClipEncoder(processor).clip_key
    before = features_key(adapted, clip_key, "torch.float32")
    adapted = get_peft_model(adapted, adapter(adapted)).get_base_model()
    assert features_key(adapted, clip_key, "torch.float32") == before, "an adapter of the text model neither"


def test_another_tokenizer_gets_its_own_token_ids():
    model, processor = fresh("qwen2_5_vl")
    key = key_of(model, processor)
    other = copy.deepcopy(processor)
    other.tokenizer.add_tokens(["colour"])
    assert key_of(model, other) != key


def test_video_size_reaches_processor_and_key(tmp_path):
    def encoder(**fields):
        args = VideoDPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **fields)
        return make_encoder(copy.deepcopy(fresh("qwen2_vl")[1]), args)

    small = encoder(video_size={"shortest_edge": 1024, "longest_edge": 1024})
    assert len({encoder().clip_key, small.clip_key, encoder(num_frames=2).clip_key, encoder(fps=1).clip_key}) == 4
    few, many = (e.encode([pairs()[0]])[1][0].vision["video_grid_thw"].prod() for e in (small, encoder()))
    assert few < many


# hits


@pytest.mark.parametrize("arch", ["qwen3_vl", "llava_onevision", "smolvlm"])
def test_a_warm_run_is_bit_equal_and_does_no_vision_work(arch, tmp_path):
    cold, cold_counts = two_epochs(arch, tmp_path)
    assert cold.features.made == cold.data_collator.encoder.decoded == 3, "three clips, two epochs"
    assert cold_counts["vision"] == 3 + 2, "and the self-check looks at the first clip twice more, plainly"
    warm, warm_counts = two_epochs(arch, tmp_path)
    assert warm.features.made == warm.data_collator.encoder.decoded == warm_counts["vision"] == 0
    first, second = weights(cold), weights(warm)
    assert losses(cold) == losses(warm) and all(torch.equal(first[name], second[name]) for name in first)
    without, _ = two_epochs(arch, tmp_path / "elsewhere")
    assert all(torch.equal(p, first[n]) for n, p in weights(without).items()), "and the cache itself changes nothing"


@pytest.mark.parametrize("arch", ["qwen2_vl", "qwen3_vl", "internvl"])
def test_features_from_disk_equal_those_computed(arch, tmp_path):
    trainer, _ = two_epochs(arch, tmp_path)
    store = FeatureStore(tmp_path / "features")
    store.open(trainer.features.key)
    model, processor = fresh(arch)
    encoder = ClipEncoder(processor)
    for row in (pairs()[i] for i in (0, 2, 3)):
        key, _ = encoder.source(row)
        vision = encoder.encode([row])[1][0].vision
        with torch.no_grad():
            expected = clip_features(model.base_model, [vision])[0]
        kept = store.get(key)
        assert all(torch.equal(kept[name], value) for name, value in expected.items())
        assert set(kept) - set(expected) == ({"video_grid_thw"} & set(vision)), "positions need the grid"


def test_bfloat16_features_are_kept_exactly(tmp_path):
    store = FeatureStore(tmp_path)
    store.open("key")
    features = {name: value.bfloat16() for name, value in clip(1).items()}
    store.put("clip", {}, features)
    again = FeatureStore(tmp_path)
    again.open("key")
    kept = again.get("clip")["features.pooler"]
    assert kept.dtype == torch.bfloat16 and torch.equal(kept, features["features.pooler"])
    assert again.get("another") is None and (again.hits, again.made) == (1, 0)


PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.recipes.test_caches import two_epochs, weights
trainer, counts = two_epochs("qwen2_5_vl", Path({folder!r}))
digest = sum(p.double().abs().sum().item() for p in weights(trainer).values())
print("RESULT", trainer.features.made, trainer.data_collator.encoder.decoded, counts["vision"], repr(digest))
"""


def start(folder):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    code = PROCESS.format(root=root, folder=str(folder))
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process) -> list[str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return next(line for line in out.splitlines() if line.startswith("RESULT")).split()[1:]


@pytest.mark.slow
def test_processes_share_a_folder(tmp_path):
    both = [result(process) for process in [start(tmp_path), start(tmp_path)]]  # both fill it at once
    assert both[0][3] == both[1][3]
    later = two_epochs("qwen2_5_vl", tmp_path)
    assert later[0].features.made == later[0].data_collator.encoder.decoded == later[1]["vision"] == 0
    digest = sum(p.double().abs().sum().item() for p in weights(later[0]).values())
    assert repr(digest) == both[0][3], "another process, the same weights"
    assert not [path for path in (tmp_path / "features").rglob(".*")], "nothing half-written is left"


# limits and damage


def test_the_folder_stays_below_its_limit(tmp_path):
    limit = 40 << 10
    store = FeatureStore(tmp_path, limit_bytes=limit, memory_bytes=1)
    store.open("key")
    for number in range(100):
        store.put(f"clip{number}", {}, clip(number))
        os.utime(tmp_path / "key" / f"clip{number}.safetensors", (number, number))
        if number:
            assert store.get("clip0") is not None, "used all the time, so it stays"
            os.utime(tmp_path / "key" / "clip0.safetensors", (number + 0.5, number + 0.5))
        assert bytes_of(tmp_path) <= limit * 1.1
    left = {int(path.stem[4:]) for path in (tmp_path / "key").glob("*.safetensors")}
    assert left == {0, *range(101 - len(left), 100)} and len(left) > 20, "the newest, and the one in use"


def test_many_short_runs_stay_below_the_limit_together(tmp_path):
    limit = 20 << 10
    for number in range(40):  # each writes less than what makes a store look
        store = FeatureStore(tmp_path, limit_bytes=limit, memory_bytes=1)
        store.open(f"key{number}")
        store.put("clip", {}, clip(number, tokens=8))
    assert bytes_of(tmp_path) <= limit * 1.1


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "changed", "other"])
def test_a_damaged_file_is_made_again(damage, tmp_path):
    cold, _ = two_epochs("qwen2_5_vl", tmp_path)
    files = sorted((tmp_path / "features").rglob("*.safetensors"))
    whole = [path.read_bytes() for path in files]
    bad = bytearray(whole[0])
    bad[-100] ^= 1
    content = {"truncated": whole[0][:-50], "garbage": b"\xff" * 999, "empty": b"", "changed": bytes(bad)}
    if damage == "other":
        save_file({"something": torch.ones(3)}, files[0])
    else:
        files[0].write_bytes(content[damage])
    again, _ = two_epochs("qwen2_5_vl", tmp_path)
    assert again.features.made == again.data_collator.encoder.decoded == 1
    assert [path.read_bytes() for path in files] == whole
    first, second = weights(cold), weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_damaged_prompt_is_encoded_again(tmp_path):
    two_epochs("qwen2_5_vl", tmp_path)
    prompts = sorted((tmp_path / "features").rglob("*.json"))
    assert len(prompts) == 4
    whole = [path.read_bytes() for path in prompts]
    for path, content in zip(prompts, (b"[[1, 2", b"7", b"", b"{}"), strict=True):
        path.write_bytes(content)
    again, _ = two_epochs("qwen2_5_vl", tmp_path)
    assert again.features.made == 0 and again.data_collator.encoder.decoded == 3
    assert [path.read_bytes() for path in prompts] == whole


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    store = FeatureStore(tmp_path / "features")
    store.open("key")
    (tmp_path / "features" / "key" / "clip.safetensors").mkdir()
    with pytest.raises(KitError, match=r"feature_cache: .*cannot be written"):
        store.put("clip", {}, clip(1))


# vision that is trained


def test_trained_vision_uses_no_cache(tmp_path):
    said, (model, processor) = [], fresh("qwen2_5_vl")
    fields = {"freeze_vision": False, "feature_cache": str(tmp_path / "features"), "max_steps": 2}
    trainer = make_trainer(model, processor, tmp_path, say=said.append, **fields)
    with counted(trainer.model) as counts:
        train(trainer)
    # Two steps, and clips of two shapes.
    assert counts["vision_grad"] == 2 * 2 and trainer.features.made == 0 and not (tmp_path / "features").exists()
    assert said == ["feature_cache is not used: vision is trained, so its outputs change with every step"]


def test_an_adapter_in_the_vision_tower_is_named(tmp_path):
    said = []
    trainer, counts = two_epochs("qwen2_5_vl", tmp_path, targets=["up_proj", "q_proj"], say=said.append)
    assert trainer.features.made == 0 and not (tmp_path / "features").exists()
    assert counts["vision_grad"] and counts["vision"] >= 8
    assert "reaches into the vision tower" in said[0] and "visual.blocks.0.mlp.up_proj.lora_A" in said[0]
    assert "feature_cache is not used" in said[1] and len(said) == 2
    assert not any("visual" in name for name in text_linear_names(fresh("qwen2_5_vl")[0]))


# references


def with_references(folder, model=None, processor=None, **fields):
    """A trainer that has precomputed its references."""
    own, own_processor = fresh("qwen2_5_vl")
    return make_trainer(model or own, processor or own_processor, folder, per_device_train_batch_size=2, **fields)


def files_in(folder):
    return sorted((folder / "references").glob("*.jsonl"))


def test_references_are_kept_with_the_run_and_reused(tmp_path):
    first = with_references(tmp_path)
    assert first.references.computed == 4
    (path,) = files_in(tmp_path)
    assert len(path.read_text().splitlines()) == 4
    second = with_references(tmp_path)
    with counted(second.model) as counts:
        batch = second.data_collator(list(pairs()))
    assert second.references.computed == 0 and counts["text"] == 0
    online = second.compute_ref_log_probs(second.model, batch)
    assert torch.allclose(torch.stack(online), torch.stack([batch["ref_chosen_logps"], batch["ref_rejected_logps"]]))
    first_batch = first.data_collator(list(pairs()))
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert torch.equal(first_batch[name], batch[name]), "bit-equal after the file"


def test_a_cut_last_line_is_computed_again(tmp_path):
    first = with_references(tmp_path)
    (path,) = files_in(tmp_path)
    whole = path.read_text()
    for cut in (1, 20, len(whole.splitlines()[-1]) - 1):
        path.write_text(whole[:-cut])
        again = with_references(tmp_path)
        assert again.references.computed == (0 if cut == 1 else 1)  # only the line's end is missing: the line is whole
        known = again.references.scope(path.stem)
        for pair, logps in first.references.scope(path.stem).items():
            assert known[pair] == pytest.approx(logps, abs=1e-4)
        assert ReferenceStore(path.parent).scope(path.stem) == known, "and the file is whole for the next reader"


def test_references_are_kept_while_they_are_computed(tmp_path):
    """A stop loses at most the batch in progress."""
    store, kept = ReferenceStore(tmp_path / "references"), []
    add = store.add

    def stopped(key, found, write=True):
        add(key, found, write)
        kept.extend(found)
        if len(kept) >= 2:
            raise KeyboardInterrupt

    store.add = stopped
    with pytest.raises(KeyboardInterrupt):
        with_references(tmp_path, references=store)
    assert with_references(tmp_path).references.computed == 2


def test_references_of_something_else_are_never_served(tmp_path):
    processor = fresh("qwen2_5_vl")[1]
    changed = copy.deepcopy(processor)
    changed.chat_template = "{{ '<|system|>' }}" + changed.chat_template
    moved = fresh("qwen2_5_vl")[0]
    text = next(p for n, p in moved.named_parameters() if "language_model.layers" in n and p.ndim > 1)
    text.data[0, 0] = torch.nextafter(text.data[0, 0], torch.tensor(torch.inf))
    looked = fresh("qwen2_5_vl")[0]
    next(iter(vision_modules(looked).values())).patch_embed.proj.weight.data.view(-1)[0] += 1e-3
    small = {"shortest_edge": 1024, "longest_edge": 1024}
    cases = [
        {},
        {"num_frames": 4},
        {"fps": 2.0},
        {"video_size": small, "processor": copy.deepcopy(processor)},
        {"processor": changed},
        {"model": moved},
        {"model": looked},
        {"max_length": 60},
        {"ld_alpha": 0.5},
        {"bf16": True},
    ]
    for number, case in enumerate(cases, 1):
        trainer = with_references(tmp_path, **case)
        assert trainer.references.computed == 4, case
        assert len(files_in(tmp_path)) == number, case
        batch = trainer.data_collator(list(pairs()))
        online = torch.stack(trainer.compute_ref_log_probs(trainer.model, batch))
        kept = torch.stack([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
        assert torch.allclose(online, kept, rtol=0, atol=0.3 if "bf16" in case else 1e-4), case
    assert with_references(tmp_path).references.computed == 0


def test_other_rows_are_added_to_what_is_known(tmp_path):
    with_references(tmp_path, rows=pairs().select([0, 1]))
    trainer = with_references(tmp_path)
    assert trainer.references.computed == 2
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs()]
    assert with_references(tmp_path, rows=Dataset.from_list(swapped)).references.computed == 4


def test_reference_lines_of_any_kind_are_survived(tmp_path):
    store, generator = ReferenceStore(tmp_path), random.Random(0)
    values = [(f"pair{i}", generator.uniform(-90, 0), generator.uniform(-90, 0)) for i in range(50)]
    store.add("scope", values)
    path = tmp_path / "scope.jsonl"
    path.write_bytes(b"null\n[1]\n{}\n\n\xff\n" + path.read_bytes() + b'["pair1", 3')
    again = ReferenceStore(tmp_path)
    assert again.scope("scope") == {name: (chosen, rejected) for name, chosen, rejected in values}
    again.add("scope", [("new", -1.0, -2.0)])
    assert ReferenceStore(tmp_path).scope("scope")["new"] == (-1.0, -2.0)
