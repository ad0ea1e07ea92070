"""FSDP2: what sharing a model's weights out among processes asks of a trainer that looks at clips, not at batches.

Every call of a sharded module gathers its weights from all processes, so all processes must make equally many calls, or
they wait for each other for ever (or, with gloo, read each other's data wrongly). Layers of the text model run once a
batch. The vision tower runs once a clip, and how many clips of a batch are distinct, or known already, differs from
process to process: frozen vision is therefore left whole on every process, and trained vision is called equally often.
"""

from __future__ import annotations

import os

import torch

from dataset_builder.errors import KitError
from recipes.video.vision import vision_modules


def wants_sharding(args) -> bool:
    """Whether training arguments, or accelerate's environment, ask for FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter that may be shared out, gathered; all processes must ask for the same ones in the same order."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def gathered_state(model, keep: bool = True) -> dict[str, torch.Tensor]:
    """A sharded model's whole state, on the CPU; all processes must ask for it at the same time.

    Args:
        model: sharded or not.
        keep: whether this process wants it; the others only take part.

    Returns:
        The state; tied weights are one tensor under two names, as in the model's own.
    """
    state, seen = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            gathered = whole(tensor.detach())
            seen[id(tensor)] = gathered.cpu().clone() if keep else None
        if keep:
            state[name] = seen[id(tensor)]
    return state


def leave_vision_whole(accelerator, model) -> None:
    """Take a model's vision side out of what accelerate will share out.

    Args:
        accelerator: with an FSDP plugin; nothing is sharded yet.
        model: its vision side must be frozen: what is not sharded gets no averaged gradients.

    Raises:
        KitError: when weights are to be loaded by the first process only, which skips what is not shared out.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.cpu_ram_efficient_loading:
        raise KitError(
            "fsdp_cpu_ram_efficient_loading must be false: vision is frozen and stays whole on every process"
        )
    modules = list(vision_modules(model).values())
    for module in modules:
        module.to(accelerator.device)  # accelerate moves only what it shares out
    plugin.ignored_modules = modules


def most(count: int, device: torch.device) -> int:
    """The largest of all processes' counts."""
    value = torch.tensor(count, device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value)
