"""A tiny checkpoint that has learned the form of a judge's verdict, so that a real server gives replies that parse.

What it scores means nothing: answers in plain ASCII get a 4 (or are right), others a 2 (or are wrong). A tokenizer of
its own knows the words of the judge's prompt, or the prompt would be hundreds of bytes-as-tokens long.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from unittest.mock import patch

from dataset_builder import toy_models
from dataset_builder.judges.parsing import CRITERIA
from dataset_builder.judges.prompts import VERDICT_SYSTEM, VQA_SYSTEM, verdict_prompt, vqa_prompt
from dataset_builder.toy import ANSWERS, FRAMES, QUESTIONS, corpus, draw_scene, render

VOCABULARY = 1024
SYSTEMS = {"vlm": VERDICT_SYSTEM, "vqa": VQA_SYSTEM}
PROMPTS = {"vlm": verdict_prompt, "vqa": vqa_prompt}
_LETTERS = "abcdefghijklmnopqrstuvwxyz    .,"


def judge_checkpoint(
    folder: str | Path, seed: int = 0, steps: int = 130, frames: tuple[int, ...] = (2, 4), kind: str = "vlm"
) -> Path:
    """Train the tiny judge and write it as an ordinary checkpoint folder; a folder that is there is taken as it is.

    Args:
        folder: where to write.
        seed: of the weights and the examples.
        steps: of training, at 8 examples each.
        frames: numbers of frames that it is shown.
        kind: of the judge, ``vlm`` or ``vqa``.
    """
    import torch

    folder = Path(folder)
    if (folder / "config.json").exists():
        return folder
    with patch.object(toy_models, "_bpe", lambda: _bpe(kind)):
        model, processor = toy_models.make_tiny("qwen2_vl", seed)
    rng, before = random.Random(f"judge-{seed}"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _train(model.train(), processor, rng, steps, frames, kind)
    finally:
        torch.set_num_threads(before)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def verdict(response: str, kind: str = "vlm") -> str:
    """The verdict that the checkpoint learns to give on an answer."""
    score = 4 if response.isascii() else 2
    if kind == "vqa":
        return json.dumps({"correct": "yes" if score == 4 else "no", "score": score, "reason": "as seen in the video"})
    return json.dumps({**dict.fromkeys(CRITERIA, score), "reason": "as seen in the video"})


def example(rng: random.Random, kind: str = "vlm") -> tuple[str, str]:
    """A prompt and the reply to it: answers of the toy world, words of other kinds, and no sense at all."""
    asked = rng.choice(sorted(QUESTIONS))
    references = [rng.choice(ANSWERS[asked])] if rng.random() < 0.7 else []
    words = [word for answers in ANSWERS.values() for word in answers]
    response = rng.choice(
        (
            rng.choice(ANSWERS[asked]),
            " ".join(rng.choice(words) for _ in range(rng.randint(1, 8))),
            "".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, 60))),
            "".join(
                chr(rng.choice((rng.randint(33, 126), rng.randint(0xA1, 0x24F)))) for _ in range(rng.randint(1, 16))
            ),
        )
    )
    return PROMPTS[kind](QUESTIONS[asked], references, response), verdict(response, kind)


def _bpe(kind: str) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*toy_models.SPECIAL.values(), *toy_models.ROLES, "<|image_pad|>", "<|video_pad|>", "<image>", "<video>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    prompts = [SYSTEMS[kind], PROMPTS[kind]("", ["red"], "red"), verdict("a", kind), verdict("\xe9", kind)]
    tokenizer.train_from_iterator([*corpus(), *prompts] * 2, trainer)
    return tokenizer.to_str()


def _train(model, processor, rng: random.Random, steps: int, frames: tuple[int, ...], kind: str) -> None:
    import torch

    from dataset_builder.models import ChatRequest, chat_messages

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    # The scores are the only tokens of a verdict that are not always the same: they would be learned last.
    low, high = (set(processor.tokenizer(verdict(text, kind))["input_ids"]) for text in ("\xe9", "a"))
    weight = torch.ones(len(processor.tokenizer))  # [V]
    weight[sorted(low ^ high)] = 15.0 if kind == "vqa" else 5.0  # of a vqa verdict they are fewer
    for step in range(steps):
        count = frames[step % len(frames)]
        texts, answers, pictures = [], [], []
        for _ in range(8):
            prompt, reply = example(rng, kind)
            request = ChatRequest(prompt, [None] * count, SYSTEMS[kind])  # only the number of frames is looked at
            messages = chat_messages(request, images=True)
            start = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            texts.append(start + reply + toy_models.SPECIAL["eos_token"])
            answers.append(len(processor.tokenizer(reply)["input_ids"]) + 1)
            clip = render(draw_scene(rng))
            pictures.append([clip[i * (FRAMES - 1) // (count - 1)] for i in range(count)])
        batch = processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt")
        keep = max(answers)
        logits = model(**batch, logits_to_keep=keep + 1).logits[:, :-1]  # [B, keep, V]
        labels = batch["input_ids"][:, -keep:].clone()  # [B, keep]
        for row, length in enumerate(answers):
            labels[row, : keep - length] = -100
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
