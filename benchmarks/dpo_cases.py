"""Models, rows and the stock collator that the video DPO benchmarks share.

A Qwen2.5-VL from config: the text model has 4.7 M parameters (hidden 256, 6 layers, embedding not counted). The vision
tower of three layers does 0.28 times the text model's floating-point work (the released 7B: 0.39, 3B: 0.92) and takes
about 0.4 times its seconds on a CPU, so that what is saved on vision is not overstated. The vocabulary is an argument:
1,024, or Qwen's own 151,936 with its special tokens at their released ids.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SMALL_VOCABULARY, QWEN_VOCABULARY = 1_024, 151_936
# Qwen2.5-VL's special tokens in the order of their ids, 151643 to 151664.
SPECIAL = (
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    + [f"<|{name}_{side}|>" for name in ("object_ref", "box", "quad") for side in ("start", "end")]
    + ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    + ["<tool_call>", "</tool_call>"]
    + [f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")]
)
QWEN_BASE = 151_643  # entries of Qwen's byte-level BPE; the special tokens follow
FPS = 2  # frames a second that Qwen2.5-VL samples; the clips are written at four times that
WRITTEN_FPS = 8
MAX_ANSWER = 63  # tokens, end of turn included
PATCH, MERGE = 14, 2

# Qwen's turns. The line break that the released template writes after every turn stands before the next one here, so
# that nothing follows an answer's end token: trainers differ in whether they train on that line break.
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "<|im_start|>{{ message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = """
a the one two three red green blue white small large round square box ball cube person hand car dog street room
table door moves turns stops falls starts stays left right up down near behind before after then while and not
slowly quickly twice again first last same other video shows scene frame camera light shadow colour shape side what
which where who when how does happens seen clearly between under over into out of to from with at is are
"""
WORDS = TEXT.split()


@dataclass(frozen=True)
class Length:
    """A prompt length: what a clip's frames come to in tokens, plus the words of the question.

    Attributes:
        name: tokens of the whole prompt, roughly.
        frames: frames of a clip at :data:`FPS`.
        height, width: pixels of a frame, multiples of 28.
        question: tokens of the question.
    """

    name: str
    frames: int
    height: int
    width: int
    question: int

    @property
    def video_tokens(self) -> int:
        """Tokens that a clip takes in the prompt: two frames and 28×28 px a token."""
        return self.frames // 2 * (self.height // (PATCH * MERGE)) * (self.width // (PATCH * MERGE))


LENGTHS = {
    length.name: length
    for length in (
        Length("860", frames=16, height=280, width=280, question=38),
        Length("2000", frames=32, height=280, width=336, question=58),
        Length("340", frames=4, height=336, width=336, question=38),  # what the peers train on: 288 video tokens
        Length("60", frames=4, height=56, width=56, question=30),  # tests
    )
}


@cache
def _vocabulary(base: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE over :data:`WORDS`, filled up to ``base`` entries with names that no text reaches."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=min(base, 900), min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS), "system user assistant You are a helpful assistant."], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for number in range(len(vocabulary), base):
        vocabulary[f"filler{number}"] = number
    return vocabulary, [tuple(pair) for pair in model["merges"]]


def make_processor(vocabulary: int, length: Length):
    """Qwen2.5-VL's processor classes with a tokenizer of ``vocabulary`` ids, for clips of one length.

    The bounds on pixels are the clip's own size: nothing is rescaled.
    """
    import transformers as tf
    from tokenizers import AddedToken

    base = QWEN_BASE if vocabulary == QWEN_VOCABULARY else vocabulary - len(SPECIAL)
    vocab, merges = _vocabulary(base)
    tokenizer = tf.Qwen2Tokenizer(vocab=dict(vocab), merges=list(merges), unk_token=None, padding_side="right")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    pixels = length.height * length.width
    # A video processor bounds the pixels of a frame here, and of a whole clip in some releases: both are met.
    size = {"shortest_edge": 28 * 28, "longest_edge": pixels}
    common = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2, "size": size}
    return tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(**common),
        tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(**common),
        chat_template=TEMPLATE,
    )


def make_model(vocabulary: int, processor, seed: int = 0, width: int = 256, layers: int = 6, tiny: bool = False):
    """The benchmark's Qwen2.5-VL with weights drawn from ``seed``, fp32.

    Args:
        vocabulary: rows of the embedding.
        processor: gives the special tokens' ids.
        seed: of the weights.
        width, layers: of the text model; 256 and 6 are 4.7 M parameters without the embedding.
        tiny: one layer in each tower, for tests.
    """
    import torch
    import transformers as tf

    token = processor.tokenizer.convert_tokens_to_ids
    heads = width // 64
    config = tf.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": 1 if tiny else layers,
            "num_attention_heads": heads,
            "num_key_value_heads": max(1, heads // 2),
            "max_position_embeddings": 32_768,
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        vision_config={
            "depth": 1 if tiny else 3,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 3,
            "out_hidden_size": width,
            "fullatt_block_indexes": [0] if tiny else [2],
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "window_size": 112,
            "tokens_per_second": 2,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model


def render_clip(length: Length, seed: int) -> bytes:
    """An H.264 mp4 at :data:`WRITTEN_FPS` of a bright square moving over a rough background, as bytes."""
    from dataset_builder.media.transforms import mp4_bytes

    rng = np.random.default_rng(seed)
    total = length.frames * WRITTEN_FPS // FPS
    rough = rng.integers(40, 120, (length.height // 14, length.width // 14, 3), dtype=np.uint8)
    frames = np.repeat(rough.repeat(14, 0).repeat(14, 1)[None], total, 0)
    side = length.height // 4
    start, speed = rng.integers(0, length.height - side, 2), rng.uniform(-3, 3, 2)
    colour = rng.integers(150, 255, 3, dtype=np.uint8)
    for number in range(total):
        top = int(start[0] + speed[0] * number) % (length.height - side)
        left = int(start[1] + speed[1] * number) % (length.width - side)
        frames[number, top : top + side, left : left + side] = colour
    return mp4_bytes(frames, WRITTEN_FPS)


def make_rows(length: Length, count: int, processor, seed: int = 0) -> list[dict[str, Any]]:
    """Preference rows, each with a clip of its own.

    Returns:
        Rows with ``question_id``, ``video_id``, ``video`` {bytes, path}, and conversational ``prompt``, ``chosen`` and
        ``rejected``; an answer has 31 to :data:`MAX_ANSWER` tokens, its end token included.
    """
    from dataset_builder.schema import assistant_message, user_message

    rng = random.Random(seed)
    tokenize = processor.tokenizer

    def text(tokens: int) -> str:
        words: list[str] = [rng.choice(WORDS)]
        while len(tokenize(" ".join([*words, "a"]))["input_ids"]) <= tokens:
            words.append(rng.choice(WORDS))
        return " ".join(words[:-1] if len(tokenize(" ".join(words))["input_ids"]) > tokens else words)

    rows = []
    for number in range(count):
        question, chosen, rejected = (text(n) for n in (length.question, *(rng.randint(30, 62) for _ in range(2))))
        rows.append(
            {
                "question_id": f"q{number:04}",
                "video_id": f"clip{seed}-{number:04}",
                "video": {"bytes": render_clip(length, 1_000 * seed + number), "path": f"clip{number:04}.mp4"},
                "prompt": [user_message(question)],
                "chosen": [assistant_message(chosen)],
                "rejected": [assistant_message(rejected)],
            }
        )
    return rows


def as_dataset(rows: list[dict], stock: bool):
    """Rows as a `datasets.Dataset`.

    Args:
        rows: of :func:`make_rows`.
        stock: adds an empty ``images`` column: TRL then takes the rows for vision data, which it hands to the collator
            as they are. The class itself stays untouched.
    """
    from datasets import Dataset

    return Dataset.from_list([{**row, "images": []} for row in rows] if stock else rows)


class StockVideoCollator:
    """The plain way to give stock `trl.DPOTrainer` videos: its own vision collator with ``videos`` for ``images``.

    The clips of a batch are decoded once, then doubled for chosen and rejected like TRL doubles images; the processor
    runs on the videos of both sides. ``input_ids``, ``attention_mask``, ``completion_mask`` and
    ``mm_token_type_ids`` are [2B, L], chosen rows first; ``pixel_values_videos`` holds the patches of 2B clips.
    """

    def __init__(self, processor, num_frames: int):
        self.processor, self.num_frames = processor, num_frames

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate B rows."""
        import torch
        from trl.data_utils import apply_chat_template
        from trl.trainer.utils import flush_left

        from dataset_builder.media import sample_frames
        from dataset_builder.models.local import video_inputs

        texts = [
            apply_chat_template({k: row[k] for k in ("prompt", "chosen", "rejected")}, self.processor) for row in rows
        ]
        frames = [sample_frames(row["video"]["bytes"], self.num_frames) for row in rows] * 2
        batch = self.processor(
            text=[text["prompt"] for text in texts] * 2,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            **video_inputs(frames),
        )
        answers = self.processor.tokenizer(
            [text[side] for side in ("chosen", "rejected") for text in texts],
            padding=True,
            padding_side="right",
            return_tensors="pt",
            add_special_tokens=False,
        )
        prompt_mask, answer_mask = batch["attention_mask"], answers["attention_mask"]
        mask, ids, completion, types = flush_left(
            torch.cat((prompt_mask, answer_mask), 1),
            torch.cat((batch["input_ids"], answers["input_ids"]), 1),
            torch.cat((torch.zeros_like(prompt_mask), answer_mask), 1),
            torch.cat((batch["mm_token_type_ids"], torch.zeros_like(answer_mask)), 1),
        )
        changed = {"input_ids": ids, "attention_mask": mask, "completion_mask": completion, "mm_token_type_ids": types}
        return {**batch, **changed}


def save_checkpoint(folder: Path, vocabulary: int, length: Length, **sizes) -> Path:
    """Write model and processor as an ordinary checkpoint folder, for tools that load from one."""
    processor = make_processor(vocabulary, length)
    make_model(vocabulary, processor, **sizes).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
