"""The arithmetic on a model's state in memory: theta + alpha · (theta − theta_ref), from fp32 masters.

ExPO (arXiv 2404.16792) and Iter-W2S-RLAIF (arXiv 2411.16201) take a model that was trained from theta_ref to theta a
little further along the same line. The step is smaller than what bf16 can hold: with weights of size 0.02 and changes
of size 1e-5, bf16 arithmetic moves one weight in 25. So masters are fp32 here, the type of the saved weights is a
separate decision, and :func:`realised` measures what is left of the step after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dataset_builder.errors import KitError

State = Mapping[str, torch.Tensor]
PIECE = 1 << 20  # elements worked on at a time: fp64 copies of a whole embedding table would be gigabytes


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's state on the CPU; weights that are tied share one copy."""
    copies: dict[tuple, torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        key = _key(name, tensor)
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        state[name] = copies[key]
    return state


def extrapolate(theta: State, theta_ref: State, alpha: float) -> dict[str, torch.Tensor]:
    """Compute theta + alpha · (theta − theta_ref) for every floating-point tensor; others are taken from theta.

    Each weight is computed in fp64 and rounded once, so the error is half a unit in the last place, also where the step
    nearly cancels the weight.

    Args:
        theta: fp32 state after training.
        theta_ref: fp32 state training started from; the same names and shapes.
        alpha: 0 gives theta bit for bit, 1 doubles the step; negative values go back towards theta_ref, which −1 gives
            bit for bit.

    Returns:
        A new state; tensors that training did not change are theta's bit for bit, tied ones stay tied.

    Raises:
        KitError: when names or shapes differ, a tensor is not fp32 or fp64, or alpha is not a finite number.
    """
    if not math.isfinite(alpha):
        raise KitError(f"alpha must be a finite number, not {alpha}")
    _check(theta, theta_ref)
    result, made = {}, {}
    for name, end in theta.items():
        key = _key(name, end)
        if key not in made:
            made[key] = moved(end, theta_ref[name], alpha, end.dtype)
        result[name] = made[key]
    return result


def moved(end: torch.Tensor, start: torch.Tensor, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    """Compute end + alpha · (end − start) of two tensors of one shape, in fp64, rounded once to `dtype`.

    Where they are equal the result is `end`, bit for bit if the type stays; so it is for alpha 0, and `start` for −1.
    """
    result = torch.empty(end.shape, dtype=dtype, device=end.device)
    flat_start = start.reshape(-1).split(PIECE)
    for out, theta, ref in zip(result.view(-1).split(PIECE), end.reshape(-1).split(PIECE), flat_start, strict=True):
        wide, narrow = theta.double(), theta.to(dtype)
        if alpha == 0 or not theta.is_floating_point():
            out.copy_(narrow)
        elif alpha == -1:
            out.copy_(ref)
        else:
            # alpha · 0 must not turn −0.0 into 0.0: unchanged weights stay the same bits
            out.copy_(torch.where(theta == ref, narrow, (wide + alpha * (wide - ref.double())).to(dtype)))
    return result


def distance(theta: State, theta_ref: State) -> float:
    """Euclidean distance ‖theta − theta_ref‖ over all floating-point tensors, summed in fp64; tied weights count once.

    Raises:
        KitError: when names or shapes differ.
    """
    _check(theta, theta_ref, masters=False)
    once = set(_distinct(theta)) & set(_distinct(theta_ref))  # tied in one of them is tied: it is one model
    return math.sqrt(sum(_squared(theta[name], theta_ref[name]) for name in sorted(once)))


@dataclass(frozen=True)
class Realised:
    """What a saved state holds of the step that was meant.

    Attributes:
        cosine: of the angle between the intended and the saved step; 1 is the same direction (NaN without a step).
        ratio: length of the saved step over the intended one.
        moved: share of the weights that the intended step changes and that did change.
    """

    cosine: float
    ratio: float
    moved: float


def realised(saved: State, intended: State, start: State) -> Realised:
    """Compare the step start → saved with start → intended, in fp64.

    Args:
        saved: the weights as written, in any floating-point type.
        intended: fp32 weights before they were cast.
        start: what the step is measured from; cast it the same way as ``saved`` to see the step between two releases.
    """
    dot = meant_sq = saved_sq = 0.0
    meant_count = moved_count = 0
    for name in _distinct(intended):
        origin = start[name].double()
        meant, got = intended[name].double() - origin, saved[name].double() - origin
        dot += float((meant * got).sum())
        meant_sq += float((meant * meant).sum())
        saved_sq += float((got * got).sum())
        changed = meant != 0
        meant_count += int(changed.sum())
        moved_count += int((changed & (got != 0)).sum())
    if meant_sq == 0:
        return Realised(math.nan, math.nan, math.nan)
    cosine = dot / math.sqrt(meant_sq * saved_sq) if saved_sq else 0.0
    return Realised(cosine, math.sqrt(saved_sq / meant_sq), moved_count / meant_count)


def _check(theta: State, theta_ref: State, masters: bool = True) -> None:
    if theta.keys() != theta_ref.keys():
        name = sorted(theta.keys() ^ theta_ref.keys())[0]
        raise KitError(f"the two states are not of one model: only one of them has {name}")
    for name, end in theta.items():
        start = theta_ref[name]
        if end.shape != start.shape:
            raise KitError(f"{name}: shapes differ, {tuple(end.shape)} and {tuple(start.shape)}")
        low = end.dtype if end.element_size() < 4 else start.dtype
        if masters and end.is_floating_point() and min(end.element_size(), start.element_size()) < 4:
            raise KitError(
                f"{name} is {str(low).removeprefix('torch.')}: extrapolation needs fp32 masters, most of the step is "
                "lost otherwise; load and train with --dtype float32 (mixed precision is fine)"
            )


def _key(name: str, tensor: torch.Tensor) -> tuple:
    """Equal for tied weights."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)


def _distinct(state: State) -> list[str]:
    """Names of floating-point tensors, tied ones once."""
    seen: set[tuple] = set()
    names = []
    for name, tensor in state.items():
        key = _key(name, tensor)
        if tensor.is_floating_point() and key not in seen:
            seen.add(key)
            names.append(name)
    return names


def _squared(a: torch.Tensor, b: torch.Tensor) -> float:
    difference = a.double() - b.double()
    return float((difference * difference).sum())
