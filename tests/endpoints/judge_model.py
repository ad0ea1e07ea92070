"""A tiny checkpoint that has learned the form of a judge's verdict, so that a real server gives replies that parse.

What it scores means nothing: answers in plain ASCII get a 4, others a 2. A tokenizer of its own knows the words of
the judge's prompt, or the prompt would be hundreds of bytes-as-tokens long.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from unittest.mock import patch

from dataset_builder import toy_models
from dataset_builder.judges.parsing import CRITERIA
from dataset_builder.judges.prompts import VERDICT_SYSTEM, verdict_prompt
from dataset_builder.toy import ANSWERS, FRAMES, QUESTIONS, corpus, draw_scene, render

VOCABULARY = 1024
_LETTERS = "abcdefghijklmnopqrstuvwxyz    .,"


def judge_checkpoint(folder: str | Path, seed: int = 0, steps: int = 130, frames: tuple[int, ...] = (2, 4)) -> Path:
    """Train the tiny judge and write it as an ordinary checkpoint folder; a folder that is there is taken as it is.

    Args:
        folder: where to write.
        seed: of the weights and the examples.
        steps: of training, at 8 examples each.
        frames: numbers of frames that it is shown.
    """
    import torch

    folder = Path(folder)
    if (folder / "config.json").exists():
        return folder
    with patch.object(toy_models, "_bpe", _bpe):
        model, processor = toy_models.make_tiny("qwen2_vl", seed)
    rng, before = random.Random(f"judge-{seed}"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _train(model.train(), processor, rng, steps, frames)
    finally:
        torch.set_num_threads(before)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def verdict(response: str) -> str:
    """The verdict that the checkpoint learns to give on an answer."""
    score = 4 if response.isascii() else 2
    return json.dumps({**dict.fromkeys(CRITERIA, score), "reason": "as seen in the video"})


def example(rng: random.Random) -> tuple[str, str]:
    """A prompt and the reply to it: answers of the toy world, words of other kinds, and no sense at all."""
    kind = rng.choice(sorted(QUESTIONS))
    references = [rng.choice(ANSWERS[kind])] if rng.random() < 0.7 else []
    words = [word for answers in ANSWERS.values() for word in answers]
    response = rng.choice(
        (
            rng.choice(ANSWERS[kind]),
            " ".join(rng.choice(words) for _ in range(rng.randint(1, 8))),
            "".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, 60))),
            "".join(
                chr(rng.choice((rng.randint(33, 126), rng.randint(0xA1, 0x24F)))) for _ in range(rng.randint(1, 16))
            ),
        )
    )
    return verdict_prompt(QUESTIONS[kind], references, response), verdict(response)


def _bpe() -> str:
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
    prompts = [VERDICT_SYSTEM, verdict_prompt("", ["red"], "red"), verdict("a"), verdict("\xe9")]
    tokenizer.train_from_iterator([*corpus(), *prompts] * 2, trainer)
    return tokenizer.to_str()


def _train(model, processor, rng: random.Random, steps: int, frames: tuple[int, ...]) -> None:
    import torch

    from dataset_builder.models import ChatRequest, chat_messages

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    # The scores are the only tokens of a verdict that are not always the same: they would be learned last.
    low, high = (set(processor.tokenizer(verdict(text))["input_ids"]) for text in ("\xe9", "a"))
    weight = torch.ones(len(processor.tokenizer))  # [V]
    weight[sorted(low ^ high)] = 5.0
    for step in range(steps):
        count = frames[step % len(frames)]
        texts, answers, pictures = [], [], []
        for _ in range(8):
            prompt, reply = example(rng)
            request = ChatRequest(prompt, [None] * count, VERDICT_SYSTEM)  # only the number of frames is looked at
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
