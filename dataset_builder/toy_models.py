"""Tiny checkpoints of real transformers architectures, made from config: the toy world's zoo, base and verifier.

They differ from the released models of their families in size only: the same model and processor classes, a chat
template, safetensors weights, and a tokenizer of their own. `AutoModelForImageTextToText` and `AutoProcessor` load them
like any other checkpoint. A frame of 32×32 px becomes one visual token (Qwen families: one per two frames).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dataset_builder.toy import SIZE, corpus

PATCH = 16
WIDTH = 96  # hidden size of the text model
LAYERS = 2
VISION_WIDTH = 64
# The families' usual 0.02 is meant for widths in the thousands: at 96 the toy questions are learned five times slower.
INIT_STD = 0.08
ARCHS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl")

SPECIAL = {
    "pad_token": "<|pad|>",
    "eos_token": "<|end|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
}
# The placeholder a family's processor replaces by a clip's or an image's visual tokens.
VIDEO_TOKEN = {"qwen": "<|video_pad|>", "other": "<video>"}
IMAGE_TOKEN = {"qwen": "<|image_pad|>", "llava_onevision": "<image>", "internvl": "<IMG_CONTEXT>"}
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

# Roles, then the content parts in their order; an assistant turn ends with the end-of-sequence token.
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}{{ 'VIDEO' }}{% elif part['type'] == 'image' %}{{ 'IMAGE' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Where an answer begins and ends. A server that knows the Qwen families by name would look for their released roles.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {"content": {"close": "<|end|>", "content": "text"}},
}


def _qwen(arch: str) -> bool:
    return arch.startswith("qwen")


@cache
def _bpe(*texts: str) -> str:
    """A byte-level BPE whose merges cover the toy world's words, and these texts'; others fall back to bytes. JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    frames = [f"Frame{i}: " for i in range(1, 9)] + [f"<{i / 4:.1f} seconds>" for i in range(8)]
    judging = [" Answer: ", " Right, yes or no?", "yes", "no"]
    special = [*SPECIAL.values(), *ROLES, "<|image_pad|>", "<|video_pad|>", "<image>", "<video>"]
    trainer = trainers.BpeTrainer(
        vocab_size=1024 if texts else 512,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*corpus(), *frames, *judging, *texts] * 2, trainer)
    return tokenizer.to_str()


def _tokenizer(arch: str, texts: tuple[str, ...]):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe(*texts)),
        pad_token=SPECIAL["pad_token"],
        eos_token=SPECIAL["eos_token"],
        padding_side="left",
        model_max_length=4096,
        response_template=RESPONSE_TEMPLATE,
        extra_special_tokens={
            **{name: token for name, token in SPECIAL.items() if name not in ("pad_token", "eos_token")},
            "image_token": IMAGE_TOKEN["qwen" if _qwen(arch) else arch],
            "video_token": VIDEO_TOKEN["qwen" if _qwen(arch) else "other"],
        },
    )
    return tokenizer


def _template(arch: str) -> str:
    if _qwen(arch):
        wrap = "{}" if arch == "qwen3_vl" else "<|vision_start|>{}<|vision_end|>"  # Qwen3-VL wraps every frame itself
        video, image = wrap.format("<|video_pad|>"), "<|vision_start|><|image_pad|><|vision_end|>"
    else:
        video, image = VIDEO_TOKEN["other"], IMAGE_TOKEN[arch]
    return TEMPLATE.replace("VIDEO", video).replace("IMAGE", image)


def _processor(arch: str, texts: tuple[str, ...]):
    import transformers as tf

    tokenizer, template = _tokenizer(arch, texts), _template(arch)
    if _qwen(arch):
        kind = "Qwen3VL" if arch == "qwen3_vl" else "Qwen2VL"
        name = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
        # The bounds are a toy clip's own size: nothing is rescaled, and larger clips shrink to it. Qwen3-VL bounds the
        # pixels of the whole clip, the others those of a frame.
        frame = SIZE * SIZE
        size = {"shortest_edge": frame, "longest_edge": frame * (8 if arch == "qwen3_vl" else 1)}
        common = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
        image_processor = tf.Qwen2VLImageProcessor(**common, size={"shortest_edge": frame, "longest_edge": frame})
        video_processor = getattr(tf, f"{kind}VideoProcessor")(**common, size=size, cap_pixels_per_frame=False)
        return getattr(tf, name[arch])(
            image_processor=image_processor,
            tokenizer=tokenizer,
            video_processor=video_processor,
            chat_template=template,
        )
    size = {"height": SIZE, "width": SIZE}
    if arch == "llava_onevision":
        return tf.LlavaOnevisionProcessor(
            image_processor=tf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[SIZE, SIZE]]),
            tokenizer=tokenizer,
            video_processor=tf.LlavaOnevisionVideoProcessor(size=size),
            num_image_tokens=(SIZE // PATCH) ** 2,
            vision_feature_select_strategy="full",
            chat_template=template,
        )
    return tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        tokenizer=tokenizer,
        video_processor=tf.InternVLVideoProcessor(size=size),
        image_seq_length=(SIZE // PATCH // 2) ** 2,
        chat_template=template,
    )


def _config(arch: str, tokenizer):
    import transformers as tf

    def token(text: str) -> int:
        return tokenizer.convert_tokens_to_ids(text)

    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        **ids,
    }
    head = WIDTH // 4
    mrope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [head // 2 - 8, 4, 4]}
    if _qwen(arch):
        vision = {"depth": 1, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
        if arch == "qwen2_vl":
            vision |= {"embed_dim": VISION_WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}
        else:
            vision |= {"hidden_size": VISION_WIDTH, "intermediate_size": 2 * VISION_WIDTH, "out_hidden_size": WIDTH}
        if arch == "qwen2_5_vl":
            vision |= {"fullatt_block_indexes": [0], "window_size": SIZE}
        if arch == "qwen3_vl":
            vision |= {"num_position_embeddings": (SIZE // PATCH) ** 2, "deepstack_visual_indexes": [0]}
            text |= {"head_dim": head}
            mrope |= {"mrope_interleaved": True}
        cls = {"qwen2_vl": tf.Qwen2VLConfig, "qwen2_5_vl": tf.Qwen2_5_VLConfig, "qwen3_vl": tf.Qwen3VLConfig}[arch]
        return cls(
            text_config={**text, "rope_parameters": mrope},
            vision_config=vision,
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
            tie_word_embeddings=True,
            **ids,
        )
    if arch == "llava_onevision":
        return tf.LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text},
            vision_config={
                "model_type": "siglip_vision_model",
                "hidden_size": VISION_WIDTH,
                "intermediate_size": 2 * VISION_WIDTH,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "image_size": SIZE,
                "patch_size": PATCH,
                "vision_use_head": False,
            },
            image_token_index=token("<image>"),
            video_token_index=token("<video>"),
            image_grid_pinpoints=[[SIZE, SIZE]],
            vision_feature_select_strategy="full",
            tie_word_embeddings=True,
            **ids,
        )
    return tf.InternVLConfig(
        text_config={"model_type": "qwen2", **text},
        vision_config={
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": [SIZE, SIZE],
            "patch_size": [PATCH, PATCH],
        },
        image_token_id=token("<IMG_CONTEXT>"),
        image_seq_length=(SIZE // PATCH // 2) ** 2,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
        **ids,
    )


def make_tiny(arch: str, seed: int = 0, texts: tuple[str, ...] = ()):
    """Make an untrained tiny model and its processor.

    Args:
        arch: one of :data:`ARCHS`.
        seed: of the weights.
        texts: further texts that the tokenizer should know by the word, such as the prompts of a judge.

    Returns:
        (model in fp32 and eval mode, processor).

    Raises:
        ValueError: for an architecture that is not in :data:`ARCHS`.
    """
    if arch not in ARCHS:
        raise ValueError(f"unknown tiny architecture {arch!r}; there are {', '.join(ARCHS)}")
    import torch
    from transformers import AutoModelForImageTextToText

    processor = _processor(arch, texts)
    config = _config(arch, processor.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=INIT_STD)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model.eval(), processor


def save_tiny(arch: str, folder: str | Path, seed: int = 0) -> Path:
    """Write an untrained tiny checkpoint as an ordinary folder (weights, config, processor, chat template)."""
    model, processor = make_tiny(arch, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
