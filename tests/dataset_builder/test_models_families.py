"""More families behind the chat interface: with video of their own, or with frames as images where there is none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataset_builder.errors import KitError
from dataset_builder.models import TESTED_FAMILIES, ChatRequest, chat_messages, load_model, local, open_model
from dataset_builder.settings import Member
from dataset_builder.toy_models import ARCHS
from tests.dataset_builder.test_models import GREEDY, SAMPLED, ask, clip, texts
from tests.dataset_builder.tiny_families import FAMILIES, IMAGES_ONLY, NATIVE_VIDEO, save_family


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_family(family, root / family, seed=1) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders) -> dict:
    return {family: load_model(folder, device="cpu") for family, folder in folders.items()}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def test_the_families_called_tested_are_those_the_tests_answer_with(models):
    assert set(TESTED_FAMILIES) == {*ARCHS, *FAMILIES}
    assert {model.model.config.model_type for model in models.values()} == set(FAMILIES)


def test_a_processor_without_video_is_shown_images(models):
    assert {name for name, model in models.items() if model.native_video} == set(NATIVE_VIDEO)
    request = ask(0, frames=5)
    for name in IMAGES_ONLY:
        inputs = models[name].prepare([request, request])
        assert np.prod(inputs["pixel_values"].shape) == 2 * 5 * 3 * 32 * 32  # every frame of both clips
    assert [part["type"] for part in chat_messages(request, images=True)[0]["content"]] == ["image"] * 5 + ["text"]
    assert [part["type"] for part in chat_messages(request)[0]["content"]] == ["video", "text"]


def test_answers_are_a_function_of_request_and_seed(family, models):
    model, requests = models[family], [*(ask(i) for i in range(4)), ask(5, frames=4)]
    assert model.generate(requests, SAMPLED, seed=1) == model.generate(requests, SAMPLED, seed=1)
    assert texts(model.generate(requests, SAMPLED, seed=1)) != texts(model.generate(requests, SAMPLED, seed=2))
    together = model.generate(requests, GREEDY, seed=1)
    assert together == [model.generate([request], GREEDY, seed=2)[0] for request in requests]


def test_every_frame_and_the_order_of_frames_matter(family, models):
    model, frames = models[family], clip(3)
    request = ask(0)

    def seen(pixels) -> float:
        return model.choice_probability([replace(request, frames=replace(frames, array=pixels))])[0, 0]

    plain = seen(frames.array)
    assert plain == pytest.approx(seen(frames.array.copy()), abs=1e-9)
    for number in range(len(frames)):
        changed = frames.array.copy()
        changed[number] = 255 - changed[number]
        assert abs(seen(changed) - plain) > 1e-7, number
    assert abs(seen(np.ascontiguousarray(frames.array[::-1])) - plain) > 1e-7


def test_text_alone_and_a_system_turn_work(family, models):
    model, request = models[family], ask(0)
    alone = model.generate([ChatRequest(question="what colour ?", frames=None)], GREEDY, seed=0)[0]
    whole = model.generate([request], GREEDY, seed=0)[0]
    system = model.generate([replace(request, system="be short")], GREEDY, seed=0)[0]
    assert 0 < alone.prompt_tokens < whole.prompt_tokens < system.prompt_tokens


def test_another_family_is_announced_once(folders, models, monkeypatch, capsys):
    monkeypatch.setattr(local, "TESTED_FAMILIES", ("qwen2_vl",))
    monkeypatch.setattr(local, "_announced", set())
    for _ in range(2):
        load_model(folders["llava"], device="cpu")
    said = [line for line in capsys.readouterr().err.splitlines() if "untested" in line]
    assert said == ["note: model type llava is untested here (tested: qwen2_vl); look at its answers"]
    monkeypatch.undo()
    load_model(folders["llava"], device="cpu")
    assert "untested" not in capsys.readouterr().err


def test_a_member_without_an_endpoint_is_a_checkpoint(folders):
    model = open_model(Member(name="small", model=str(folders["llava"])), None, device="cpu")
    assert (model.name, model.is_endpoint) == ("small", False)


@pytest.mark.parametrize("part", ["config.json", "processor_config.json"])
def test_a_model_that_needs_remote_code_is_refused_with_one_line(part, folders, tmp_path):
    folder, trap = tmp_path / "coded", tmp_path / "trap"
    shutil.copytree(folders["llava"], folder)
    (folder / "evil.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    settings = json.loads((folder / part).read_text())
    if part == "config.json":
        settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    else:
        settings |= {"processor_class": "EvilProcessor", "auto_map": {"AutoProcessor": "evil.Processor"}}
    (folder / part).write_text(json.dumps(settings))
    with pytest.raises(KitError) as caught:
        load_model(folder, device="cpu")
    assert str(caught.value) == f"{folder}: it needs code of its own, which is never run; use another model"
    assert not trap.exists()
