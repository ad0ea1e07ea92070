"""Tiny checkpoints of more families than the toy world uses, made from config: real classes, small sizes."""

from __future__ import annotations

from pathlib import Path

from dataset_builder.toy import SIZE
from dataset_builder.toy_models import PATCH, TEMPLATE, _bpe

WIDTH = 64
TOKENS_PER_FRAME = (SIZE // PATCH) ** 2
NATIVE_VIDEO = ("llava_next_video", "smolvlm")
IMAGES_ONLY = ("gemma3", "idefics3", "llava")
FAMILIES = (*NATIVE_VIDEO, *IMAGES_ONLY)


def _tokenizer(family: str):
    """The toy world's tokenizer, with special tokens of its own in the parts that these families ask for."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    gemma = family == "gemma3"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_bpe()),
        pad_token="<|pad|>",
        eos_token="<|end|>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens={
            "image_token": "<IMG_CONTEXT>" if gemma else "<image>",
            "video_token": "<video>",
            "boi_token": "<img>",
            "eoi_token": "</img>",
            "fake_image_token": "<|vision_start|>",
            "global_image_token": "<|vision_end|>",
        },
    )


def _processor(family: str, tokenizer):
    import transformers as tf

    template = TEMPLATE.replace("VIDEO", "<video>").replace("IMAGE", "<img>" if family == "gemma3" else "<image>")
    square, longest = {"height": SIZE, "width": SIZE}, {"longest_edge": SIZE}
    common = {"tokenizer": tokenizer, "chat_template": template}
    if family == "gemma3":
        images = tf.Gemma3ImageProcessor(size=square)
        return tf.Gemma3Processor(image_processor=images, image_seq_length=TOKENS_PER_FRAME, **common)
    if family == "llava":
        images = tf.CLIPImageProcessor(size=square, crop_size=square)
        return tf.LlavaProcessor(
            image_processor=images, patch_size=PATCH, vision_feature_select_strategy="full", **common
        )
    if family == "llava_next_video":
        return tf.LlavaNextVideoProcessor(
            image_processor=tf.LlavaNextImageProcessor(
                size={"shortest_edge": SIZE}, crop_size=square, image_grid_pinpoints=[[SIZE, SIZE]]
            ),
            video_processor=tf.LlavaNextVideoVideoProcessor(size=square, crop_size=square),
            patch_size=PATCH,
            vision_feature_select_strategy="full",
            **common,
        )
    kind = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
    images = getattr(tf, f"{kind}ImageProcessor")(size=longest, max_image_size=longest, do_image_splitting=False)
    videos = {"video_processor": tf.SmolVLMVideoProcessor(size=longest, max_image_size=longest, num_frames=64, fps=1)}
    return getattr(tf, f"{kind}Processor")(
        image_processor=images,
        image_seq_len=TOKENS_PER_FRAME // 4,
        **(videos if family == "smolvlm" else {}),
        **common,
    )


def _config(family: str, tokenizer):
    import transformers as tf

    def token(text: str) -> int:
        return tokenizer.convert_tokens_to_ids(text)

    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        **ids,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    if family == "gemma3":
        return tf.Gemma3Config(
            text_config={**text, "head_dim": WIDTH // 4, "sliding_window": 512, "query_pre_attn_scalar": WIDTH // 4},
            vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
            mm_tokens_per_image=TOKENS_PER_FRAME,
            boi_token_index=token("<img>"),
            eoi_token_index=token("</img>"),
            image_token_index=token("<IMG_CONTEXT>"),
            **ids,
        )
    if family in ("llava", "llava_next_video"):
        siglip = {"model_type": "siglip_vision_model", "vision_use_head": False, **vision}
        common = {
            "text_config": {"model_type": "llama", **text},
            "vision_config": siglip,
            "image_token_index": token("<image>"),
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
            **ids,
        }
        if family == "llava":
            return tf.LlavaConfig(**common)
        return tf.LlavaNextVideoConfig(
            **common, video_token_index=token("<video>"), image_grid_pinpoints=[[SIZE, SIZE]]
        )
    kind = {"idefics3": tf.Idefics3Config, "smolvlm": tf.SmolVLMConfig}[family]
    return kind(
        text_config={"model_type": "llama", **text},
        vision_config=vision,
        image_token_id=token("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def save_family(family: str, folder: Path, seed: int = 0) -> Path:
    """Write an untrained tiny checkpoint of one of :data:`FAMILIES` as an ordinary folder."""
    import torch
    from transformers import AutoModelForImageTextToText

    tokenizer = _tokenizer(family)
    processor, config = _processor(family, tokenizer), _config(family, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.08)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
