"""The chat interface over local checkpoints, for every tiny architecture, loaded as any other checkpoint is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dataset_builder.errors import KitError
from dataset_builder.media import Frames
from dataset_builder.models import ChatReply, ChatRequest, Decoding, checkpoint_revision, load_model
from dataset_builder.toy import FPS, FRAMES, QUESTIONS, SIZE
from dataset_builder.toy_models import ARCHS, make_tiny, save_tiny

SAMPLED = Decoding(temperature=1.0, max_new_tokens=6)
GREEDY = Decoding(temperature=0.0, max_new_tokens=6)


def clip(seed: int, frames: int = FRAMES) -> Frames:
    """A clip of noise with its times, as :func:`~dataset_builder.media.sample_frames` gives it."""
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, SIZE, SIZE, 3), dtype=np.uint8)
    times = [i / FPS for i in range(frames)]
    return Frames(
        array=pixels, timestamps=times, fps=FPS, indices=list(range(frames)), total=frames, duration=frames / FPS
    )


def ask(seed: int, frames: int = FRAMES) -> ChatRequest:
    questions = list(QUESTIONS.values())
    return ChatRequest(question=questions[seed % len(questions)], frames=clip(seed, frames))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {arch: save_tiny(arch, root / arch, seed=2) for arch in ARCHS}


@pytest.fixture(scope="module")
def models(folders) -> dict:
    return {arch: load_model(folder, device="cpu") for arch, folder in folders.items()}


@pytest.fixture(params=ARCHS)
def arch(request) -> str:
    return request.param


def texts(replies: list[ChatReply]) -> list[str]:
    return [reply.text for reply in replies]


def test_an_ordinary_checkpoint_loads_with_its_weights(arch, folders, models):
    model, folder = models[arch], folders[arch]
    assert {"model.safetensors", "config.json", "processor_config.json", "chat_template.jinja"} <= {
        path.name for path in folder.iterdir()
    }
    assert model.model.config.model_type == arch == json.loads((folder / "config.json").read_text())["model_type"]
    made = make_tiny(arch, seed=2)[0].state_dict()
    loaded = model.model.state_dict()
    assert set(made) == set(loaded)
    assert all(torch.equal(made[name], loaded[name]) for name in made)
    assert (model.name, model.revision) == (arch, checkpoint_revision(folder))
    assert not model.model.training


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(arch, models):
    requests = [ask(i) for i in range(6)]
    first = models[arch].generate(requests, SAMPLED, seed=1)
    torch.rand(7)  # whatever was drawn in between
    before = torch.get_rng_state()
    assert models[arch].generate(requests, SAMPLED, seed=1) == first
    assert torch.equal(torch.get_rng_state(), before)  # nor does sampling disturb anybody else's randomness
    assert texts(models[arch].generate(requests, SAMPLED, seed=2)) != texts(first)
    assert len(set(texts(first))) > 1


def test_greedy_answers_do_not_depend_on_the_batch_or_the_seed(arch, models):
    # Questions of different lengths (so with different padding), and a clip that is shorter than the others.
    requests = [*(ask(i) for i in range(5)), ask(5, frames=4)]
    together = models[arch].generate(requests, GREEDY, seed=1)
    alone = [models[arch].generate([request], GREEDY, seed=2)[0] for request in requests]
    pairs = models[arch].generate(requests[::-1], GREEDY, seed=3, batch_size=2)[::-1]
    assert together == alone == pairs


def test_probabilities_do_not_depend_on_the_batch(arch, models):
    requests = [*(ask(i) for i in range(5)), ask(5, frames=4)]
    together = models[arch].choice_probability(requests)
    alone = np.concatenate([models[arch].choice_probability([request]) for request in requests])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (6, 2) and (together > 0).all()
    np.testing.assert_allclose(together.sum(1), 1, atol=1e-12)
    four = models[arch].choice_probability(requests, ("red", "green", "blue", "yellow"))
    np.testing.assert_allclose(four.sum(1), 1, atol=1e-12)


def test_the_clip_and_the_question_both_matter(arch, models):
    same = ask(0)
    other_clip, other_question = replace(same, frames=clip(9)), replace(same, question=QUESTIONS["shape"])
    p = models[arch].choice_probability([same, other_clip, other_question])[:, 0]
    assert abs(p[0] - p[1]) > 1e-6 and abs(p[0] - p[2]) > 1e-6


def test_prompt_tokens_count_what_is_not_padding(arch, models):
    model = models[arch]
    requests = [ask(0), replace(ask(0), question=QUESTIONS["colour"] + " " + QUESTIONS["shape"])]
    single = [model.prepare([request])["input_ids"].shape[1] for request in requests]
    assert single[0] < single[1]
    assert [reply.prompt_tokens for reply in model.generate(requests, GREEDY, seed=0)] == single
    without = model.generate([ChatRequest(question=QUESTIONS["colour"], frames=None)], GREEDY, seed=0)
    assert 0 < without[0].prompt_tokens < single[0]
    system = model.generate([replace(requests[0], system="what shape is it ?")], GREEDY, seed=0)
    assert system[0].prompt_tokens > single[0]


def test_finish_reason_tells_cut_answers_from_finished_ones(arch, folders, models, tmp_path):
    requests = [ask(i) for i in range(4)]
    cut = models[arch].generate(requests, SAMPLED, seed=1)
    assert all(reply.completion_tokens == 6 for reply in cut if reply.finish_reason == "length")
    assert "length" in {reply.finish_reason for reply in cut}
    # The same weights, declared to end at any token: every answer is over with its first.
    folder = tmp_path / arch
    shutil.copytree(folders[arch], folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = list(range(models[arch].model.get_input_embeddings().num_embeddings))
    (folder / "generation_config.json").write_text(json.dumps(settings))
    ended = load_model(folder, device="cpu").generate(requests, SAMPLED, seed=1)
    assert [(r.finish_reason, r.completion_tokens, r.text, r.error) for r in ended] == [("stop", 1, "", None)] * 4


def test_choices_that_begin_alike_are_refused(models):
    with pytest.raises(KitError, match="begin with the same token"):
        models[ARCHS[0]].choice_probability([ask(0)], ("yes", "yes"))


# -------------------------------------------------------------------------------------------------- checkpoint folders


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_revision_changes_with_one_weight_and_not_with_a_readme(folders, tmp_path):
    folder = copy_of(folders[ARCHS[0]], tmp_path / "copy")
    before = checkpoint_revision(folder)
    assert before == checkpoint_revision(folders[ARCHS[0]])  # the path is no part of it
    assert len(before) == 16 and int(before, 16) >= 0
    (folder / "README.md").write_text("# a card\n")
    (folder / "metrics.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"x")
    assert checkpoint_revision(folder) == before
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert checkpoint_revision(folder) != before


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"])
def test_revision_changes_with_what_else_decides_an_answer(folders, tmp_path, name):
    folder = copy_of(folders[ARCHS[0]], tmp_path / "copy")
    before = checkpoint_revision(folder)
    (folder / name).write_text((folder / name).read_text() + " ")
    assert checkpoint_revision(folder) != before


def one_line_from(path: str | Path) -> str:
    with pytest.raises(KitError) as caught:
        load_model(path, device="cpu")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_pickle_weights_are_never_read(folders, tmp_path):
    folder = copy_of(folders[ARCHS[0]], tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "pickle" in one_line_from(folder)


def test_a_missing_or_empty_folder_or_a_file_is_one_line(folders, tmp_path):
    assert "no checkpoint folder" in one_line_from(tmp_path / "nothing")
    assert "no checkpoint folder" in one_line_from(folders[ARCHS[0]] / "config.json")
    (tmp_path / "empty").mkdir()
    assert "safetensors" in one_line_from(tmp_path / "empty")


def test_damaged_checkpoints_are_one_line(folders, tmp_path):
    unknown = copy_of(folders[ARCHS[0]], tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**config, "model_type": "nobody_knows", "architectures": ["No"]}))
    one_line_from(unknown)
    cut = copy_of(folders[ARCHS[0]], tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    one_line_from(cut)
    other_size = copy_of(folders[ARCHS[0]], tmp_path / "other_size")
    tensors = load_file(other_size / "model.safetensors")
    name = next(name for name in sorted(tensors) if name.endswith("mlp.down_proj.weight"))
    save_file({**tensors, name: tensors[name][:-1]}, other_size / "model.safetensors", metadata={"format": "pt"})
    one_line_from(other_size)


def test_a_weight_that_is_missing_is_never_drawn_at_random(folders, tmp_path):
    folder = copy_of(folders[ARCHS[0]], tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in sorted(tensors) if name.endswith("mlp.down_proj.weight"))]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "weights are missing in the checkpoint (1, first model." in one_line_from(folder)


def test_code_of_a_checkpoint_is_never_run(folders, tmp_path):
    folder = copy_of(folders[ARCHS[0]], tmp_path / "coded")
    trap = tmp_path / "trap"
    (folder / "modeling_evil.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModelForImageTextToText": "modeling_evil.EvilModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    one_line_from(folder)
    assert not trap.exists()
