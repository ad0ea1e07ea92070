"""A Qwen2.5-VL checkpoint of the released shape, narrow: everything that decides what a row looks like is the real one.

Real: model and processor classes, special tokens at their released ids, roles and separators of the chat template,
patches of 14 px in twos over time and space, window attention with full attention in every other block, grouped-query
attention, time positions (2 a second), sections of M-RoPE in the released proportion, bounds on the pixels of a frame.
Small: widths, layers, and a text vocabulary without merges (words are bytes, the other ids name nothing).
"""

from __future__ import annotations

from pathlib import Path

TEXT_TOKENS = 151_643  # entries of Qwen's byte-level BPE; the special tokens follow it
VOCABULARY = 151_936  # rows of the embedding
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
IDS = {"<|im_start|>": 151_644, "<|im_end|>": 151_645, "<|vision_start|>": 151_652, "<|video_pad|>": 151_656}

# Same output as the released template: a system turn of its own when there is none, a line break after every turn.
TEMPLATE = (
    "{%- macro turn(role, content) -%}{{ '<|im_start|>' ~ role ~ '\n' }}"
    "{%- for part in ([{'type': 'text', 'text': content}] if content is string else content) -%}"
    "{%- if part.type in ('image', 'video') -%}"
    "{{ '<|vision_start|><|' ~ part.type ~ '_pad|><|vision_end|>' }}"
    "{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{{ '<|im_end|>\n' }}{%- endmacro -%}"
    "{%- if messages[0].role != 'system' -%}{{ turn('system', 'You are a helpful assistant.') }}{%- endif -%}"
    "{%- for message in messages -%}{{ turn(message.role, message.content) }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def make_processor():
    """`Qwen2_5_VLProcessor` with the default bounds: 128 to 768 tokens for two frames."""
    import transformers as tf
    from tokenizers import AddedToken, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"unused{i}" for i in range(TEXT_TOKENS - len(alphabet)))]
    tokenizer = tf.Qwen2Tokenizer(vocab={n: i for i, n in enumerate(names)}, merges=[], unk_token=None)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    return tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=tf.Qwen2VLVideoProcessor(cap_pixels_per_frame=False),
        chat_template=TEMPLATE,
    )


def make_config(width: int = 64):
    """`Qwen2_5_VLConfig` as released, with two layers of `width` in the text model and in the vision tower."""
    import transformers as tf

    head = 32  # 128 in the released models, whose M-RoPE sections are [16, 24, 24]
    return tf.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": width // head,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128_000,
            "rms_norm_eps": 1e-6,
            "bos_token_id": TEXT_TOKENS,
            "eos_token_id": IDS["<|im_end|>"],
            "pad_token_id": TEXT_TOKENS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [section * head // 128 for section in (16, 24, 24)],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 86,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
    )


def save_real_shape(folder: str | Path, seed: int = 0) -> Path:
    """Write an ordinary checkpoint with weights drawn from a seed."""
    import torch
    import transformers as tf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = tf.Qwen2_5_VLForConditionalGeneration(make_config()).float()
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the released 0.02 belongs to wide layers; here it would leave every answer alike
                torch.nn.init.normal_(parameter, std=0.1)
    model.generation_config.eos_token_id = [IDS["<|im_end|>"], TEXT_TOKENS]
    model.generation_config.pad_token_id = TEXT_TOKENS
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return Path(folder)
