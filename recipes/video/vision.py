"""The vision side of a model: what belongs to it, whether it is trained, and its outputs clip by clip.

`transformers` models take what their vision tower and projector made of a clip as ``mm_encoder_outputs``. Here these
outputs are taken apart into one small dict of tensors per clip and put together again for any batch of rows, so that a
clip is looked at once however many rows, models or epochs ask for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dataset_builder.errors import KitError

TOWERS = ("visual", "vision_tower", "vision_model")  # Qwen-VL; LLaVA and InternVL; SmolVLM
PROJECTORS = ("multi_modal_projector", "connector")  # LLaVA and InternVL; SmolVLM (Qwen's is inside the tower)
PIXELS = ("pixel_values_videos", "pixel_values")
PREFIX = "features."
ADAPTERS = ("lora_", "modules_to_save", "hada_", "lokr_", "oft_", "ia3_")


def vision_modules(model) -> dict[str, torch.nn.Module]:
    """The vision towers and projectors of a model, by full name; the outermost ones only."""
    found: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name.split(".")[-1] in (*TOWERS, *PROJECTORS) and not inside:
            found[name] = module
    return found


def vision_parameters(model) -> dict[str, torch.nn.Parameter]:
    """Parameters that decide a clip's features, by full name; LLaVA's separator between frames is one of them."""
    modules = vision_modules(model)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if any(name.startswith(f"{module}.") for module in modules) or name.split(".")[-1] == "image_newline"
    }


def freeze_vision(model) -> int:
    """Take the vision tower and its projector out of training.

    Returns:
        How many parameters were frozen.

    Raises:
        KitError: when no module has a known vision tower's name; name it in ``TOWERS``.
    """
    parameters = vision_parameters(model)
    if not parameters:
        raise KitError(f"{type(model).__name__}: found no vision tower to freeze; run with --freeze_vision false")
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in parameters.values())


def is_frozen(model) -> bool:
    """Whether nothing of the vision side is trained. Adapters there train even while they are switched off."""
    parameters = vision_parameters(model)
    trained = any(parameter.requires_grad for parameter in parameters.values())
    return bool(parameters) and not trained and not adapters_in_vision(model)


def adapters_in_vision(model) -> list[str]:
    """Names of adapter weights that landed in the vision side: a pattern such as ``up_proj`` matches there too."""
    return sorted(
        name for name, parameter in vision_parameters(model).items() if any(part in name for part in ADAPTERS)
    )


def text_linear_names(model) -> list[str]:
    """Full names of the text model's linear layers, the default LoRA targets.

    Name patterns such as ``up_proj`` would match the vision tower's layers too, and the LM head cannot carry an adapter
    in TRL's DPO.
    """
    head, outside = model.get_output_embeddings(), tuple(f"{name}." for name in vision_modules(model))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and not name.startswith(outside)
    ]


def takes_features(backbone) -> bool:
    """Whether a backbone accepts what its vision tower made earlier."""
    return "mm_encoder_outputs" in inspect.signature(type(backbone).forward).parameters


def is_stored(clip: dict) -> bool:
    """Whether a clip's inputs are features already."""
    return any(name.startswith(PREFIX) for name in clip)


def clip_features(backbone, clips: Sequence[dict]) -> list[dict[str, torch.Tensor]]:
    """Run the vision side on clips of one shape in one call.

    Args:
        backbone: such as `Qwen2_5_VLModel`.
        clips: their inputs; the first dimension of every tensor counts patches, frames or clips.

    Returns:
        For every clip ``features.pooler`` [visual tokens, width] and, for Qwen3-VL, ``features.deepstack.K`` alike.
    """
    kind = "video" if PIXELS[0] in clips[0] else "image"
    method = getattr(backbone, f"get_{kind}_features")
    wanted = set(inspect.signature(method).parameters) & set(clips[0])
    inputs = {name: torch.cat([clip[name] for clip in clips]) for name in wanted}
    output = method(**inputs, return_dict=True)
    parts = {"pooler": output.pooler_output}
    for number, layer in enumerate(getattr(output, "deepstack_features", None) or ()):
        parts[f"deepstack.{number}"] = layer
    split = {name: _per_clip(part, len(clips)) for name, part in parts.items()}
    return [{PREFIX + name: part[index] for name, part in split.items()} for index in range(len(clips))]


def _per_clip(part, count: int) -> list[torch.Tensor]:
    """A list has one entry per clip, a tensor equal shares."""
    pieces = part if isinstance(part, list | tuple) else part.chunk(count)
    if len(pieces) != count:
        raise KitError(
            f"the vision tower returned {len(pieces)} outputs for {count} clips; run with --share_prompt false"
        )
    return [piece.reshape(-1, piece.shape[-1]) for piece in pieces]


def encoder_outputs(model_type: str, kind: str, features: Sequence[dict[str, torch.Tensor]]) -> dict:
    """What a backbone takes as ``mm_encoder_outputs``: the features of every row's clip, in the family's own form.

    Args:
        model_type: of the whole model's configuration.
        kind: ``video`` or ``image``: which placeholder the clip stands at.
        features: one dict per row, as :func:`clip_features` gives them.
    """
    pooler = [part[PREFIX + "pooler"] for part in features]
    if model_type == "llava_onevision":
        pooler = torch.cat(pooler)[None]
    elif model_type == "internvl":
        pooler = torch.cat(pooler)
    elif model_type == "llava_next_video":
        pooler = [part[None] for part in pooler]
    output = BaseModelOutputWithPooling(pooler_output=pooler)
    deep = sorted((n for n in features[0] if "deepstack" in n), key=lambda name: int(name.rsplit(".", 1)[1]))
    if deep:
        output.deepstack_features = [[part[name] for part in features] for name in deep]
    return {kind: output}
