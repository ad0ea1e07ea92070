"""What two adapters must share, where the start values of whole tensors lie in the base, and norms of products."""

from __future__ import annotations

from pathlib import Path

import torch

from dataset_builder.errors import KitError
from recipes.extrapolate.adapters import Adapter, Factors
from recipes.extrapolate.folders import Checkpoint, open_checkpoint, untied
from recipes.extrapolate.measure import Sums
from recipes.extrapolate.tensorfile import FLOATS, Entry, Reader

SAME_FIELDS = ("fan_in_fan_out", "layer_replication", "bias", "trainable_token_indices")


def check_base(weak: str, strong: Adapter, same_base: bool) -> None:
    """Refuse a base model that is not the one the adapter was trained on.

    Raises:
        KitError: when the adapter's configuration names another one.
    """
    named = str(strong.config.get("base_model_name_or_path") or "")
    if weak == named:
        return
    if not Path(weak).is_dir():
        raise KitError(f"{weak}: neither a folder nor the base that {strong.folder} names ({named or 'none'})")
    if named and not same_base and not _same_path(weak, named):
        raise KitError(
            f"{strong.folder} was trained on {named}, not on {weak}; give its base, or its adapter of the round before "
            "(or --same-base when they are one model)"
        )


def _same_path(a: str, b: str) -> bool:
    return Path(a).resolve() == Path(b).resolve() or Path(a).resolve().name == Path(b).name


def check_pair(weak: Adapter, strong: Adapter, same_base: bool) -> None:
    """Refuse two adapters whose products cannot be subtracted.

    Raises:
        KitError: naming the base, the field, the module or the tensor in which they differ.
    """
    bases = [str(adapter.config.get("base_model_name_or_path") or "") for adapter in (weak, strong)]
    if all(bases) and not same_base and not _same_path(*bases):
        raise KitError(
            f"{weak.folder} is an adapter of {bases[0]} and {strong.folder} of {bases[1]}: an adapter that was "
            "trained on a merged model is extrapolated from that model (--same-base when they are one)"
        )
    for field in SAME_FIELDS:
        ours, theirs = (adapter.config.get(field) or None for adapter in (weak, strong))
        if ours != theirs:
            raise KitError(
                f"adapter_config.json: field '{field}' is {ours} in {weak.folder}, {theirs} in {strong.folder}"
            )
    for ours, theirs in ((weak.lora, strong.lora), (weak.full, strong.full)):
        if alone := sorted(ours.keys() ^ theirs.keys()):
            owner = weak if alone[0] in ours else strong
            raise KitError(f"{alone[0]}: only {owner.folder} holds it; both must adapt the same modules")
    for module, end in strong.lora.items():
        start = weak.lora[module]
        if (start.bias is None) != (end.bias is None):
            raise KitError(f"{module}: only one of the adapters has a lora_B.bias")
        shapes = [(list(f.a.shape[1:]), f.b.shape[0], list(f.b.shape[2:])) for f in (start, end)]
        if shapes[0] != shapes[1]:
            raise KitError(f"{module}: shapes differ, lora_A {list(start.a.shape)} and {list(end.a.shape)}")
    for name, end in strong.full.items():
        if weak.full[name].shape != end.shape:
            raise KitError(f"{name}: shapes differ, {list(weak.full[name].shape)} and {list(end.shape)}")


def base_tensors(weak: Path, strong: Adapter) -> dict[str, torch.Tensor]:
    """Start values of an adapter's whole tensors, read from the base checkpoint.

    Tensors under ``base_layer`` are frozen copies and have no entry.

    Raises:
        KitError: naming a tensor whose start is not found.
    """
    wanted = [name for name in strong.full if ".base_layer." not in name]
    if not wanted:
        return {}
    if not weak.is_dir():
        raise KitError(f"{wanted[0]}: its start is in the base model; give {weak} as a folder")
    base, result = open_checkpoint(weak), {}
    with Reader() as reader:
        for name in wanted:
            entry = _find(base, name, strong.full[name].shape)
            if entry is None or not entry.is_float:
                raise KitError(f"{name}: {weak} holds no tensor it could have started from; merge the adapter first")
            buffer = bytearray(entry.size)
            reader.read(entry, 0, memoryview(buffer))
            result[name] = torch.frombuffer(buffer, dtype=FLOATS[entry.code]).view(entry.shape)
    return result


def _find(base: Checkpoint, name: str, shape: torch.Size) -> Entry | None:
    """The base's tensor of a module: by name, else the only one with the same end of its name (libraries call the text
    model differently over time), else the embedding that an output head is tied to."""
    plain = name.removeprefix("base_model.model.")
    if plain in base.entries:
        return base.entries[plain] if base.entries[plain].shape == shape else None
    parts = plain.split(".")
    for first in range(1, len(parts) - 1):
        ending = ".".join(parts[first:])
        found = [e for n, e in base.entries.items() if n == ending or n.endswith(f".{ending}")]
        if found:
            return found[0] if len(found) == 1 and found[0].shape == shape else None
    if plain.endswith("lm_head.weight") and not untied(base.config):
        found = [e for n, e in base.entries.items() if n.endswith("embed_tokens.weight") and e.shape == shape]
        return found[0] if len(found) == 1 else None
    return None


def measured(
    weak: Adapter | None,
    strong: Adapter,
    saved: dict[str, Factors],
    starts: dict[str, torch.Tensor],
    tensors: dict[str, torch.Tensor],
    alpha: float,
) -> dict[str, Sums]:
    """Sums by tensor of what was saved; of a LoRA module they are over its product, which is never formed.

    Args:
        weak: None for a fresh adapter.
        strong: the adapter after training.
        saved: factors as saved.
        starts: start values of whole tensors.
        tensors: all that was saved, by name.
        alpha: of the extrapolation.
    """
    sums = {}
    for module, end in strong.lora.items():
        start = [] if weak is None else [(1.0, weak.lora[module])]
        minus = [(-c, f) for c, f in start]
        step, added = [(1.0, end), *minus], [(1.0, saved[module]), (-1.0, end)]
        still = _equal(end, start[0][1]) if start else not bool(end.b.any())
        count = end.b.shape[0] * end.a[0].numel()
        name = f"{module}.weight"
        norms = (_inner(start, start), _inner([(1.0, end)], [(1.0, end)]))
        if alpha == 0 or still:
            unmoved = 0.0 if still else _inner(step, step)
            sums[name] = Sums(count, *norms, unmoved, 0.0, 0.0, 0 if still else count, 0)
        else:
            squares = _inner(step, step), _inner(added, added), _inner(added, step)
            sums[name] = Sums(count, *norms, *squares, count, count if squares[1] else 0)
        if end.bias is not None:
            before = torch.zeros(len(end.bias)) if weak is None else _bias(weak.lora[module])
            _whole(sums, f"{module}.bias", before, _bias(end), _bias(saved[module]))
    for name, end in strong.full.items():
        _whole(sums, name, starts.get(name, end), end, tensors[name])
    return sums


def _bias(factors: Factors) -> torch.Tensor:
    """What a module's lora_B.bias adds."""
    return factors.bias.double() * factors.scaling


def _whole(sums: dict[str, Sums], name: str, *tensors: torch.Tensor) -> None:
    """Sums of a tensor that is not a product: of WEAK, STRONG, as saved."""
    start, end, new = (t.double().reshape(-1) for t in tensors)
    step, added = end - start, new - end
    pairs = ((start, start), (end, end), (step, step), (added, added), (added, step))
    counts = int((step != 0).sum()), int(((added != 0) & (step != 0)).sum())
    sums[name] = Sums(len(end), *(float(a @ b) for a, b in pairs), *counts)


def _equal(a: Factors, b: Factors) -> bool:
    return a.scaling == b.scaling and torch.equal(a.a, b.a) and torch.equal(a.b, b.b)


def _inner(x: list[tuple[float, Factors]], y: list[tuple[float, Factors]]) -> float:
    """Sum over all elements of the product of two sums of low-rank products, from small [rank, rank] matrices."""
    total = 0.0
    for by_x, f in x:
        for by_y, g in y:
            inner = (_flat_b(f).T @ _flat_b(g)) * (_flat_a(f) @ _flat_a(g).T)
            total += by_x * by_y * f.scaling * g.scaling * float(inner.sum())
    return max(total, 0.0) if x is y else total


def _flat_a(factors: Factors) -> torch.Tensor:
    return factors.a.double().flatten(1)


def _flat_b(factors: Factors) -> torch.Tensor:
    return factors.b.double().flatten(1)
