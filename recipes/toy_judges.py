"""The toy world's further judges, tiny and trained in a minute or three: one that only reads, one for open questions.

* `text_judge` has learned the two text-only protocols (`video_chatgpt`, `hound`): it says yes where the answer is the
  reference, and nothing else can be expected of a judge that does not see.
* `open_judge` has learned to look for colours in clips of `dataset_builder.toy_open`, with and without a reference.
"""

from __future__ import annotations

import random
from pathlib import Path

from dataset_builder.judges.legacy import HOUND_RIGHT
from dataset_builder.judges.prompts import CHATGPT_SYSTEM, HOUND_SYSTEM, chatgpt_prompt, hound_prompt
from dataset_builder.judges.visual import REFERENCE_PROMPT, VERIFIER_PROMPT
from dataset_builder.toy import ANSWERS, COLOURS, QUESTIONS, Scene
from dataset_builder.toy_open import QUESTION, OpenScene

TEXT_STEPS, TEXT_BATCH, TEXT_RATE = 700, 32, 3e-3
OPEN_STEPS, OPEN_BATCH, OPEN_RATE = 300, 16, 2e-3
OPEN = "open"  # the kind of `toy_open`'s question, beside those of the toy world
_DECISIVE = 5.0  # weight of the tokens in which a yes differs from a no: the others are always the same


def caption_of(scene: Scene) -> str:
    """What a caption would say of a toy clip: all that is asked about it."""
    parts = [f"a {scene.colour} {scene.shape} moves {scene.direction}", f"{scene.truth('count')} dots"]
    return ", ".join([*parts, f"the {scene.truth('order')} lamp is lit first"])


def reply(protocol: str, right: bool) -> str:
    """What the text judge learns to say."""
    if protocol == "hound":
        return f"Score: {5 if right else HOUND_RIGHT - 2}"
    return str({"pred": "yes" if right else "no", "score": 5 if right else 0})


def text_example(rng: random.Random) -> tuple[str, str, str]:
    """System turn, prompt and reply of one judging; right and wrong are equally likely."""
    kind = rng.choice([*sorted(QUESTIONS), OPEN])
    question, answers = (QUESTION, tuple(COLOURS)) if kind == OPEN else (QUESTIONS[kind], ANSWERS[kind])
    reference, right = rng.choice(answers), rng.random() < 0.5
    answer = reference if right else rng.choice([word for word in answers if word != reference])
    if rng.random() < 0.5:
        return CHATGPT_SYSTEM, chatgpt_prompt(question, [reference], answer), reply("video_chatgpt", right)
    caption = _some_caption(rng, kind, reference)
    return HOUND_SYSTEM, hound_prompt(caption, question, [reference], answer), reply("hound", right)


def _some_caption(rng: random.Random, kind: str, value: str) -> str:
    from dataclasses import replace

    from dataset_builder.toy import NUMBERS, draw_scene

    scene = draw_scene(rng)
    if kind == OPEN:
        return f"a {value} {scene.shape} and another shape"
    if kind == "count":
        return caption_of(replace(scene, dots=NUMBERS.index(value)))
    if kind == "order":
        first, last = sorted(scene.lamp_on)
        return caption_of(replace(scene, lamp_on=(first, last) if value == "left" else (last, first)))
    return caption_of(replace(scene, **{kind: value}))


def train_text_judge(folder: str | Path, seed: int = 0, steps: int = TEXT_STEPS) -> Path:
    """Train the judge that only reads and write it as an ordinary checkpoint folder, complete or absent."""
    import torch

    from dataset_builder.models import ChatRequest, chat_messages
    from dataset_builder.toy_models import SPECIAL, make_tiny
    from recipes.checkpoints import place, save_checkpoint

    rng = random.Random(f"text-judge-{seed}")
    shown = [part for _ in range(64) for part in text_example(rng)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = make_tiny("qwen2_vl", seed, texts=tuple(shown))
        tokenizer = processor.tokenizer
        optimizer = torch.optim.AdamW(model.parameters(), lr=TEXT_RATE, weight_decay=0.0, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TEXT_RATE, total_steps=steps, pct_start=0.1)
        weight = torch.ones(len(tokenizer))  # [V]
        for protocol in ("hound", "video_chatgpt"):
            yes, no = (set(tokenizer(reply(protocol, right))["input_ids"]) for right in (True, False))
            weight[sorted(yes ^ no)] = _DECISIVE
        model.train()
        for _ in range(steps):
            texts, lengths = [], []
            for _ in range(TEXT_BATCH):
                system, prompt, answer = text_example(rng)
                messages = chat_messages(ChatRequest(prompt, None, system))
                start = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                texts.append(start + answer + SPECIAL["eos_token"])
                lengths.append(len(tokenizer(answer)["input_ids"]) + 1)
            batch = processor(text=texts, padding=True, padding_side="left", return_tensors="pt")
            keep = max(lengths)
            logits = model(**batch, logits_to_keep=keep + 1).logits[:, :-1]  # [B, keep, V]
            labels = batch["input_ids"][:, -keep:].clone()  # [B, keep]
            for row, length in enumerate(lengths):
                labels[row, : keep - length] = -100
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    place(Path(folder), lambda partial: save_checkpoint(model.eval(), processor, partial))
    return Path(folder)


def train_open_judge(
    folder: str | Path, start: str | Path, clips: list[tuple[Path, OpenScene]], seed: int = 0, steps: int = OPEN_STEPS
) -> Path:
    """Teach a judge that sees colours already to look for each of two, and write it as a checkpoint folder.

    Args:
        folder: where to write.
        start: checkpoint to begin with, such as the toy verifier.
        clips: training clips of `dataset_builder.toy_open.generate_open`.
        seed: of the order of the examples.
        steps: of training.
    """
    from dataset_builder.models import load_model
    from recipes.checkpoints import place, save_checkpoint
    from recipes.sft import train
    from recipes.sft_data import Clip, Turn
    from recipes.toy import tiny_arguments

    def turns(scene: OpenScene) -> list[Turn]:
        made = []
        for colour in COLOURS:
            verdict = "yes" if colour in scene.colours else "no"
            known = {"question": QUESTION, "answer": colour}
            made.append(Turn(VERIFIER_PROMPT.format(**known), verdict, 0.25))
            made.append(Turn(REFERENCE_PROMPT.format(**known, references=scene.reference), verdict, 0.25))
        return made

    loaded = load_model(start, device="cpu", dtype="float32")
    arguments = tiny_arguments(OPEN_BATCH, steps, OPEN_RATE, seed)
    train(loaded.model, loaded.processor, [Clip(path, turns(scene)) for path, scene in clips], arguments, pack=False)
    place(Path(folder), lambda partial: save_checkpoint(loaded.model, loaded.processor, partial))
    return Path(folder)
