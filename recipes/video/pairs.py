"""The forward of a backbone over preference pairs: prompt once, vision once, answers as TRL's loss expects them.

TRL calls the model with ``input_ids`` [2B, …] (chosen rows, then rejected ones) and reads the backbone's hidden states
from the fused LM head. :class:`PairForward` takes the place of the backbone's own ``forward``: it looks at every clip
once, lays a pair out as one sequence, and returns hidden states in TRL's shape, so losses and metrics stay TRL's own.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import torch

from recipes.video import attention
from recipes.video.features import FeatureStore
from recipes.video.sharding import most
from recipes.video.vision import clip_features, encoder_outputs, is_frozen, is_stored

# Model types whose shared layout equals the plain one in the tests. The text models are dense decoders.
FAMILIES = ("internvl", "llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm")


def why_not_shared(model) -> str | None:
    """The reason why a model's pairs cannot share their prompt, or None.

    Anything but full causal attention in every layer (sliding windows, recurrent layers) would mix the branches.
    """
    if model.config.model_type not in FAMILIES:
        return f"model type {model.config.model_type} is not one that was tested ({', '.join(FAMILIES)})"
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"its text model has layers of type {', '.join(sorted(kinds))}"
    if getattr(text, "sliding_window", None) is not None:
        return "its text model attends within a sliding window"
    return None


class PairForward:
    """Stands in for a backbone's ``forward`` until :meth:`remove`.

    Args:
        model: whose backbone (`model.base_model`) is replaced.
        share: lay pairs out as `[prompt, chosen, rejected]`; needs :func:`why_not_shared` to be None.
        store: takes the features of frozen vision; policy and reference may use one.
    """

    def __init__(self, model, share: bool, store: FeatureStore):
        self.model, self.backbone, self.share, self.store = model, model.base_model, share, store
        self.model_type = model.config.model_type
        self.original = self.backbone.forward
        rope = getattr(self.backbone, "get_rope_index", None)
        self._rope_names = set(inspect.signature(rope).parameters) if rope else set()
        self.frozen = is_frozen(model)  # asked again by the trainer once adapters are in
        self.in_step = False  # set by the trainer when weights are sharded: all processes call vision equally often
        self._text = next((m for n, m in self.backbone.named_modules() if n in ("language_model", "text_model")), None)
        self._implementations = {m: m.config._attn_implementation for m in _configured(self.model)}
        if share:
            # The text model only: in the vision tower every clip would see earlier patches alone.
            self._text.config._attn_implementation_internal = attention.NAME
        self.backbone.forward = self.forward

    def remove(self) -> None:
        """Give the backbone its own forward and attention back."""
        self.backbone.__dict__.pop("forward", None)
        self._restore()

    def _restore(self) -> dict:
        """Set every attention implementation to what it was; returns what it is now."""
        now = {module: module.config._attn_implementation for module in self._implementations}
        for module, name in self._implementations.items():
            module.config._attn_implementation_internal = name
        return now

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """The model as it was, for comparing; nothing inside may need gradients."""
        now = self._restore()
        self.backbone.__dict__.pop("forward", None)
        try:
            yield
        finally:
            self.backbone.forward = self.forward
            for module, name in now.items():
                module.config._attn_implementation_internal = name

    def forward(self, *args, clips=None, clip_keys=None, clip_index=None, prompt_ids=None, **kwargs):
        """As the backbone's own; a batch of pairs has ``clips`` and, when its prompts are shared, ``prompt_ids``.

        Args:
            clips: inputs or features of the batch's distinct clips.
            clip_keys: their content hashes.
            clip_index: [B] with shared prompts, else one entry per row: which clip it is about.
            prompt_ids: [B, P], padded on the right; ``prompt_mask`` and ``prompt_types`` belong to it.
            **kwargs: ``input_ids``, ``attention_mask``; with shared prompts [2B, 1 + R], last prompt token and answer.

        Returns:
            The backbone's output; ``last_hidden_state`` is [2B, 1 + R, width] with shared prompts.
        """
        if clips is None:
            return self.original(*args, **kwargs)
        ids = kwargs["input_ids"] if prompt_ids is None else prompt_ids
        vision = self.vision_inputs(clips, clip_keys, clip_index.tolist(), ids)
        if prompt_ids is None:
            return self.original(*args, **kwargs, **vision)
        return self._shared(prompt_ids, vision, **kwargs)

    def vision_inputs(self, clips: list[dict], keys: list[str], index: list[int], ids: torch.Tensor) -> dict:
        """What the backbone's own forward takes besides tokens: features and grids of every row's clip.

        Args:
            clips: of the batch.
            keys: their content hashes.
            index: which clip each row is about.
            ids: the rows' token ids; they hold the placeholders.
        """
        features = self._features(clips, keys)
        kind = "video" if "pixel_values_videos" in clips[0] or "video_grid_thw" in clips[0] else self._kind(ids)
        grids = {n: torch.cat([clips[i][n] for i in index]) for n in self._rope_names & set(clips[0])}
        return {**grids, "mm_encoder_outputs": encoder_outputs(self.model_type, kind, [features[i] for i in index])}

    def _shared(self, prompt_ids, vision, *, prompt_mask, prompt_types, input_ids, attention_mask, **kwargs):
        pairs, prompt = prompt_ids.shape
        answers = input_ids[:, 1:]  # [2B, R]
        length = answers.shape[1]
        sequence = torch.cat([prompt_ids, answers[:pairs], answers[pairs:]], 1)  # [B, P + 2R]
        starts = prompt_mask.sum(1)  # [B]
        output = self.original(
            input_ids=sequence,
            attention_mask=attention.branch_mask(prompt_mask, length),
            position_ids=self._positions(prompt_ids, prompt_mask, prompt_types, vision, length),
            mm_encoder_outputs=vision["mm_encoder_outputs"],
            **kwargs,
        )
        hidden = output.last_hidden_state  # [B, P + 2R, width]
        last = hidden[torch.arange(pairs, device=hidden.device), starts - 1][:, None]  # [B, 1, width]
        branches = hidden[:, prompt:].split(length, 1)
        output.last_hidden_state = torch.cat([torch.cat([last, branch], 1) for branch in branches])
        return output

    def _positions(self, prompt_ids, prompt_mask, prompt_types, vision, length: int) -> torch.Tensor:
        """Positions of `[prompt, chosen, rejected]`; both branches go on where the prompt ends.

        Returns:
            [B, P + 2R], or [3, B, P + 2R] for M-RoPE, whose next position is not the number of tokens before it: it is
            read off the family's own `get_rope_index` with one more text token.
        """
        pairs, prompt = prompt_ids.shape
        steps = torch.arange(length, device=prompt_ids.device)
        if not self._rope_names:
            own = torch.arange(prompt, device=prompt_ids.device).expand(pairs, prompt)
            branch = prompt_mask.sum(1, keepdim=True) + steps  # [B, R]
            return torch.cat([own, branch, branch], 1)
        last = prompt_mask.sum(1, keepdim=True)
        wider = {"input_ids": prompt_ids, "attention_mask": prompt_mask, **prompt_types}
        # One text token after the end of each prompt, not of its padding.
        wider = {n: torch.cat([t, torch.zeros_like(t[:, :1])], 1) for n, t in wider.items()}
        wider["attention_mask"].scatter_(1, last, 1)
        inputs = {n: t for n, t in {**wider, **vision}.items() if n in self._rope_names}
        own, _ = self.backbone.get_rope_index(**inputs)
        start = own.gather(2, last.expand(3, -1, -1))  # [3, B, 1]
        branch = start + steps
        return torch.cat([own[..., :prompt], branch, branch], 2)

    def _features(self, clips: list[dict], keys: list[str]) -> list[dict]:
        """Features of the batch's clips: stored, of the forward before (policy's or reference's), or new.

        Frozen vision is looked at clip by clip, so that a clip's features never depend on the clips beside it.
        """
        if not self.frozen:
            return _in_groups(self.backbone, clips, self.in_step)
        recent = self.store.recent
        features = {}
        with torch.no_grad():
            for clip, key in zip(clips, keys, strict=True):
                if is_stored(clip):
                    features[key] = clip
                elif key in recent:
                    features[key] = recent[key]
                else:
                    features[key] = clip_features(self.backbone, [clip])[0]
                    self.store.made += 1
                    self.store.put(key, clip, features[key])
        self.store.recent = features
        return [features[key] for key in keys]

    def _kind(self, ids: torch.Tensor) -> str:
        config = self.model.config
        token = getattr(config, "video_token_id", None) or getattr(config, "video_token_index", None)
        return "video" if token is not None and bool((ids == token).any()) else "image"


def _in_groups(backbone, clips: list[dict], in_step: bool = False) -> list[dict]:
    """Features of trained vision: one call for all clips of one shape.

    Args:
        backbone: such as `Qwen2_5_VLModel`.
        clips: their inputs.
        in_step: make as many calls as the process with the most shapes; what the extra ones return counts nothing.
    """
    groups: dict[tuple, list[int]] = {}
    for number, clip in enumerate(clips):
        groups.setdefault(tuple(sorted((n, tuple(t.shape)) for n, t in clip.items())), []).append(number)
    features: list[dict] = [{} for _ in clips]
    for numbers in groups.values():
        for number, made in zip(numbers, clip_features(backbone, [clips[i] for i in numbers]), strict=True):
            features[number] = made
    if in_step:
        first, device = clips[0], next(iter(features[0].values())).device
        for _ in range(most(len(groups), device) - len(groups)):
            extra = clip_features(backbone, [first])[0]
            features[0] = {name: part + 0 * extra[name] for name, part in features[0].items()}
    return features


def _configured(model) -> list[torch.nn.Module]:
    """One module for each distinct configuration with an attention implementation."""
    seen: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            seen.setdefault(id(config), module)
    return list(seen.values())
