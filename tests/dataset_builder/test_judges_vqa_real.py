"""The judge of right and wrong on real models: a tiny checkpoint that has learned its replies, here and served."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest

from dataset_builder import toy_models
from dataset_builder.errors import KitError
from dataset_builder.judges import JudgeItem, make_judge
from dataset_builder.models import CallCache, ChatRequest, LocalChatModel
from tests.endpoints.asking import clip
from tests.endpoints.judge_model import judge_checkpoint
from tests.endpoints.proxy import FaultProxy, read_log
from tests.endpoints.serve import served

SPEC = {"kind": "vqa", "num_frames": 2, "max_new_tokens": 48, "max_retries": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return judge_checkpoint(tmp_path_factory.mktemp("vqa") / "judge", seed=1, steps=60, frames=(2,), kind="vqa")


@pytest.fixture(scope="module")
def local(checkpoint):
    return make_judge({**SPEC, "model": str(checkpoint)}, device="cpu")


def toy_items(count: int) -> list[JudgeItem]:
    """Answers of different lengths on different clips; some in other letters, which the checkpoint learns to doubt."""
    answers = ("red", "a blue one that moves slowly", "ðùñé¿×¡", "left", "ÆØÅæøåŒœ ßðþ")
    given = [answers[i % len(answers)] + " x" * (i // len(answers)) for i in range(count)]
    return [
        JudgeItem("what colour is the shape ?", ["red"] * (i % 2), clip(i, frames=2, side=32), text)
        for i, text in enumerate(given)
    ]


def test_a_local_verdict_does_not_depend_on_the_others(local):
    items = toy_items(10)
    together = local.score(items)
    said = [scores[0].score for scores in together if scores[0].error is None]
    assert len(said) >= 9 and min(said) < 0.5 < max(said)  # it looks at what it judges
    shuffled = random.Random(3).sample(range(10), 10)
    split = {i: s for part in (shuffled[:3], shuffled[3:]) for i, s in zip(part, local.score([items[i] for i in part]))}
    for number, scores in enumerate(together):
        for other in (split[number], *([local.score([items[number]])[0]] if number < 3 else [])):
            assert (scores[1], scores[0].rationale, scores[0].error) == (other[1], other[0].rationale, other[0].error)
            if scores[0].error is None:
                assert scores[0].score == pytest.approx(other[0].score, abs=1e-5)
                assert (scores[0].score >= 0.5) == (other[0].score >= 0.5)


def test_a_local_models_probability_is_that_of_the_word_it_writes(local):
    """As greedy decoding itself has it, at the place of the word."""
    import torch

    items = toy_items(6)
    requests = [local.request(entry) for entry in items]
    found = local.score(items)
    model, tokenizer = local.model, local.model.processor.tokenizer
    yes, no = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no"))
    compared = 0
    for request, scores in zip(requests, found, strict=True):
        if scores[0].error:
            continue
        inputs = model.prepare([request])
        with torch.inference_mode():
            output = model.model.generate(
                **inputs, max_new_tokens=16, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        written = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        place = next(i for i, token in enumerate(written) if token in (yes, no))
        assert tokenizer.decode(written[:place]).strip() == '{"correct": "'
        expected = output.logits[place][0, [yes, no]].double().softmax(-1)[0].item()
        assert scores[0].score == pytest.approx(expected, abs=1e-5) and 0 < expected < 1
        compared += 1
    assert compared >= 5


def test_a_local_judge_without_frames_reads_text_only(checkpoint):
    judge = make_judge({**SPEC, "model": str(checkpoint), "num_frames": 0}, device="cpu")
    shown = judge.score(toy_items(3))
    assert shown == judge.score([replace(entry, frames=None) for entry in toy_items(3)])
    assert all((s.score is None) == (s.error is not None) for scores in shown for s in scores)


# -------------------------------------------------------------------------------------------------------------- served


def test_a_real_server_gives_the_verdicts_of_the_same_checkpoint_here(checkpoint, local, tmp_path):
    """`transformers serve`, with frames. It gives no log-probabilities, so a verdict there is 1 or 0."""
    items, log = toy_items(10), tmp_path / "calls.jsonl"
    here, cache = local.score(items), CallCache(tmp_path / "calls.sqlite")
    with served(checkpoint, log=tmp_path / "serve.log") as url, FaultProxy(url, log) as proxy:
        endpoint = {"base_url": proxy.url, "concurrency": 2, "max_retries": 0, "timeout": 60.0, "logprobs": 2}
        spec = {**SPEC, "model": str(checkpoint), "endpoint": endpoint}
        judge = make_judge(spec, cache=cache)
        there = judge.score(items)
        assert make_judge(spec, cache=cache).score(items) == there and len(read_log(log)) == len(items)
    cache.close()
    good = [place for place, scores in enumerate(there) if scores[0].error is None]
    print(f"{len(good)} of {len(items)} served verdicts can be read; reported {judge.reported}")
    assert len(good) >= 9 and {there[place][0].score for place in good} == {0.0, 1.0}
    for place in good:
        assert there[place][0].score in (0.0, 1.0) and there[place][1].score in (2.0, 4.0)
        assert there[place][1].score == (4.0 if there[place][0].score else 2.0)  # as it was taught
        assert there[place][0].rationale == "as seen in the video"
    # JPEG on the way makes other pixels of the frames; that may move a doubtful word, not most of them.
    alike = [place for place in good if round(here[place][0].score) == there[place][0].score]
    assert len(alike) >= 0.8 * len(good)
    assert judge.model_name == "judge" and len(judge.reported) == 1
    assert re.match("judge", next(iter(judge.reported)))  # of the path it says only the name is kept


# ------------------------------------------------------------------------------- where a tokenizer cuts, and what then


def merged(text: str) -> str:
    """A tokenizer in which a quotation mark and the letters behind it are one token."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.add_tokens([AddedToken(' "yes', normalized=False), AddedToken(' "no', normalized=False)])
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def tiny_tokens():
    return toy_models._bpe()


def test_a_token_that_reaches_over_the_beginning_is_looked_up_as_it_is(tiny_tokens):
    import torch

    with patch.object(toy_models, "_bpe", lambda: merged(tiny_tokens)):
        made, processor = toy_models.make_tiny("qwen2_vl", 0)
    model = LocalChatModel(made, processor, "m", "r")
    ids = processor.tokenizer.convert_tokens_to_ids
    assert model._first_tokens(("yes", "no"), '{"correct": "') == ([ids(' "yes'), ids(' "no')], '{"correct":')
    request = ChatRequest("what ?", None)
    (found,) = model.choice_probability([request], beginning='{"correct": "')
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "what ?"}]}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=[text + '{"correct":'], return_tensors="pt")
    with torch.inference_mode():
        logits = made(**inputs).logits[0, -1]
    expected = logits[[ids(' "yes'), ids(' "no')]].double().softmax(-1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_choices_that_cannot_be_told_apart_are_said(tiny_tokens):
    made, processor = toy_models.make_tiny("qwen2_vl", 0)
    model = LocalChatModel(made, processor, "m", "r")
    for choices in (("yes", "yes"), ("yes", "no", "no")):
        with pytest.raises(KitError, match="begin with the same token"):
            model._first_tokens(choices, '{"correct": "')
    assert model._first_tokens(("yes", "no"), "") == model._first_tokens(("yes", "no"), "")
    slow = SimpleNamespace(tokenizer=SimpleNamespace(is_fast=False))
    with pytest.raises(KitError, match="probability: false"):
        LocalChatModel._first_tokens(SimpleNamespace(processor=slow, name="m"), ("yes", "no"), "{")
