"""The self-check of the first batch: one pair computed with a shared prompt and plainly must agree.

Most mistakes in sharing a prompt are silent: a wrong mask or a wrong position trains all the same, only on something
else. They move a token's log-probability by some hundredths of nats and more; rounding moves it by 1e-6 in fp32, and in
bf16 by thousandths in two layers but by more in a deep model, so rounding is measured: two plain computations of
different width. An attention setting that leaked into the vision tower may change log-probabilities less than bf16
does, where a clip decides little; so the tower's outputs are compared as well.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from dataset_builder.errors import KitError
from recipes.video.collate import unfold_clips
from recipes.video.pairs import PairForward
from recipes.video.vision import is_stored

# Mean absolute difference of an answer's tokens, in nats; the answer that differs more counts.
LIMIT = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
ABOVE_ROUNDING = 4.0  # the limit is at least so many times what rounding was seen to do
# Difference of a clip's features relative to their norm; a setting that leaked changes much of them.
VISION_LIMIT = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
IDS = ("input_ids", "prompt_ids")
MOST_PADDING = 1024


@dataclass(frozen=True)
class Difference:
    """What a self-check saw.

    Attributes:
        nats: mean absolute difference per answer token between the shared and the plain computation.
        rounding: the same between two plain computations that only rounding tells apart.
        vision: relative difference of the clip's features; None when they were stored, so that nothing was computed.
    """

    nats: float
    rounding: float
    vision: float | None


def first_pair(batch: dict[str, Any]) -> dict[str, Any]:
    """The first pair of a batch with shared prompts, as such a batch of its own, without padding after its prompt."""
    pairs = len(batch["prompt_ids"])
    prompt = int(batch["prompt_mask"][0].sum())
    length = int(max(batch["attention_mask"][0].sum(), batch["attention_mask"][pairs].sum()))
    clip = int(batch["clip_index"][0])
    rows = torch.tensor([0, pairs], device=batch["input_ids"].device)
    return {
        **{name: batch[name][rows, :length] for name in ("input_ids", "attention_mask", "completion_mask")},
        "prompt_ids": batch["prompt_ids"][:1, :prompt],
        "prompt_mask": batch["prompt_mask"][:1, :prompt],
        "prompt_types": {name: types[:1, :prompt] for name, types in batch["prompt_types"].items()},
        "clips": [batch["clips"][clip]],
        "clip_keys": [batch["clip_keys"][clip]],
        "clip_index": torch.zeros_like(batch["clip_index"][:1]),
    }


def widened(batch: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A batch as it is beside one twice as long (longer by ``MOST_PADDING`` at most); nothing may see its padding.

    The first batch may have no padding where a later one has.

    Args:
        batch: shared or plain.
        names: of the tensors to pad, token ids, masks or types [B, L]; dicts of them too.
    """

    def wider(name: str, value):
        if isinstance(value, dict):
            return {n: wider(n, v) for n, v in value.items()}
        more = min(value.shape[1], MOST_PADDING)
        if name in IDS:  # the last token again: unlike a clip's placeholder, it asks for no features
            return torch.cat([value, value[:, -1:].expand(-1, more)], 1)
        return F.pad(value, (0, more))

    return {name: wider(name, value) if name in names else value for name, value in batch.items()}


def plain_pair(pair: dict[str, Any]) -> dict[str, Any]:
    """The same pair as two sequences of prompt and answer [2, P + R], its clip twice."""
    prompt, rows = pair["prompt_ids"], len(pair["input_ids"])

    def joined(prompt_part: torch.Tensor, answer_part: torch.Tensor) -> torch.Tensor:
        return torch.cat([prompt_part.expand(rows, -1), answer_part[:, 1:]], 1)

    return {
        "input_ids": joined(prompt, pair["input_ids"]),
        "attention_mask": joined(pair["prompt_mask"], pair["attention_mask"]),
        "completion_mask": joined(torch.zeros_like(prompt), pair["completion_mask"]),
        **{n: joined(t, torch.zeros_like(pair["input_ids"])) for n, t in pair["prompt_types"].items()},
        "clips": pair["clips"],
        "clip_keys": pair["clip_keys"],
        "clip_index": pair["clip_index"].expand(rows),
    }


def token_log_probs(model, backbone, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Log-probabilities of the answer tokens, one tensor per sequence, by TRL's fused head."""
    columns = batch["completion_mask"].any(0).nonzero()
    span = slice(int(columns[0]) - 1, int(columns[-1]) + 1)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)[:, span]
    inputs = {name: value for name, value in batch.items() if name != "completion_mask"}
    with only_positions(backbone, span):
        output = model(**inputs, labels=labels, fused_lm_head=True, use_cache=False)
    return [row[label != -100].float() for row, label in zip(output.log_probs, labels[:, 1:], strict=True)]


@contextlib.contextmanager
def only_positions(backbone, span: slice) -> Iterator[None]:
    """Let a backbone return some of its hidden states only.

    Without Triton, TRL's head scores every position that it gets: with thousands of video tokens and Qwen's vocabulary
    that would take longer than all the rest of a run's start.
    """

    def cut(module, args, output):
        output.last_hidden_state = output.last_hidden_state[:, span]
        return output

    hook = backbone.register_forward_hook(cut)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def compare(model, forward: PairForward, batch: dict[str, Any]) -> Difference:
    """Compute the first pair of a batch shared, plain, and plain at another width.

    Args:
        model: as the trainer calls it, wrappers included.
        forward: the stand-in of its backbone.
        batch: with shared prompts.
    """
    pair = first_pair(batch)
    plain, clips = plain_pair(pair), pair["clips"]
    tokens = tuple(name for name in plain if not name.startswith("clip"))
    stored = is_stored(clips[0])
    if stored:  # no pixels are left to look at: the features are what both sides get
        vision = forward.vision_inputs(clips, plain["clip_keys"], plain["clip_index"].tolist(), plain["input_ids"])
        plain = {name: plain[name] for name in tokens} | vision
    else:
        plain = unfold_clips(plain)
        forward.store.recent = {}  # look at the clip again
    with _without_dropout(model), seen_features(forward.backbone) as seen:
        scored = functools.partial(token_log_probs, model, forward.backbone)
        shared = scored(widened(pair, (*tokens, "prompt_ids", "prompt_mask", "prompt_types")))
        with forward.plain():
            expected, again = scored(plain), scored(widened(plain, tokens))
    # The plain computation looks at the clip twice in one call; the first half of its outputs is the first sequence's.
    differences = [_relative(a, b[: len(a)]) for a, b in zip(*seen[:2], strict=True)] if not stored else None
    return Difference(_nats(shared, expected), _nats(again, expected), differences and max(differences))


def self_check(model, forward: PairForward, batch: dict[str, Any], dtype: torch.dtype) -> float:
    """Compare one pair of a batch, shared and plain.

    Args:
        model: as the trainer calls it, wrappers included.
        forward: the stand-in of its backbone.
        batch: with shared prompts.
        dtype: of the arithmetic; decides the limits.

    Returns:
        Mean absolute difference per answer token, in nats.

    Raises:
        KitError: when a difference is above its limit.
    """
    found, kind = compare(model, forward, batch), str(dtype).removeprefix("torch.")
    limit = max(LIMIT[dtype], ABOVE_ROUNDING * found.rounding)
    advice = "run with --share_prompt false, and please report it"
    if not found.nats <= limit:
        raise KitError(
            f"self-check: with a shared prompt a token's log-probability differs by {found.nats:.2g} nats from the "
            f"plain computation (limit {limit:.2g} in {kind}): this model or its settings do not share prompts "
            f"exactly; {advice}"
        )
    if found.vision is not None and not found.vision <= VISION_LIMIT[dtype]:
        raise KitError(
            f"self-check: the vision tower's outputs differ by {found.vision:.1%} from those of the model as it was "
            f"(limit {VISION_LIMIT[dtype]:.1%} in {kind}): a setting meant for the text model reached it; {advice}"
        )
    return found.nats


def _nats(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().mean()) for a, b in zip(got, expected, strict=True))


def _relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


@contextlib.contextmanager
def seen_features(backbone) -> Iterator[list[list[torch.Tensor]]]:
    """Lists what a backbone's vision side returns, call by call: pooled outputs [tokens, width], then deepstack's."""
    seen: list[list[torch.Tensor]] = []
    inside = False
    names = [name for name in ("get_video_features", "get_image_features") if hasattr(backbone, name)]
    methods = {name: getattr(backbone, name) for name in names}

    def listened(method):
        @functools.wraps(method)  # the caller reads the signature
        def call(*args, **kwargs):
            nonlocal inside
            if inside:  # a family's video method may call its image method
                return method(*args, **kwargs)
            inside = True
            try:
                output = method(*args, **kwargs)
            finally:
                inside = False
            parts = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
            seen.append([p if torch.is_tensor(p) else torch.cat([q.flatten(0, -2) for q in p]) for p in parts])
            seen[-1] = [part.flatten(0, -2) for part in seen[-1]]
            return output

        return call

    for name, method in methods.items():
        setattr(backbone, name, listened(method))
    try:
        yield seen
    finally:
        for name in methods:
            delattr(backbone, name)


@contextlib.contextmanager
def _without_dropout(model) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
