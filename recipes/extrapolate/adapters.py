"""LoRA adapters: the result is again an adapter of the original base, and merging it gives the extrapolated weights.

With products P = scaling · B·A, the result (1 + alpha) · P_strong − alpha · P_weak is one product of stacked factors,
[A_strong; A_weak] and [(1 + alpha) · s · B_strong, −alpha · s' · B_weak]: exact, at the sum of the ranks. Where both
adapters share a factor the other one is added instead, and where WEAK is the base itself B is scaled by 1 + alpha: the
rank stays.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset_builder.errors import KitError
from recipes.extrapolate.states import State, moved

PART = re.compile(r"^(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB])(?P<leaf>\.weight|\.bias|)$")
# Fields of a LoraConfig whose products are not scaling · B·A; init methods that change the base under the adapter.
VARIANTS = ("use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "monteclora_config", "kasa_config")
UNSUPPORTED = (*VARIANTS, "velora_config", "target_parameters")
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
Say = Callable[[str], None]


def scale_lora(adapter: State, alpha: float) -> dict[str, torch.Tensor]:
    """Extrapolate a LoRA adapter that was fresh at theta_ref: its product scaled by 1 + alpha.

    Merged, it equals :func:`recipes.extrapolate.extrapolate` of the merged weights, because theta − theta_ref is the
    adapter itself. That does not hold for an adapter that was trained before: :func:`extrapolate_adapter` takes both.

    Args:
        adapter: an adapter's state (``…lora_A…``, ``…lora_B…``); alpha 0 gives the same bits.
        alpha: as for :func:`recipes.extrapolate.extrapolate`.

    Raises:
        KitError: for DoRA magnitudes, whose product is not linear, and for parts that are not LoRA matrices.
    """
    result = {}
    for name, tensor in adapter.items():
        if "lora_magnitude" in name:
            raise KitError(f"{name}: a DoRA adapter cannot be extrapolated by scaling; merge it first")
        match = PART.match(name)
        if match is None:
            raise KitError(f"{name}: not a LoRA matrix; merge the adapter and extrapolate the full weights")
        grows = match["part"].endswith("B") and alpha != 0
        result[name] = (tensor.double() * (1.0 + alpha)).float() if grows else tensor.clone()
    return result


@dataclass
class Factors:
    """One module's LoRA: its product is ``scaling · b·a`` (transposed for embeddings).

    Attributes:
        a: [rank, in, …] fp32 or narrower.
        b: [out, rank, …].
        bias: [out] of ``lora_B``, or None.
        scaling: lora_alpha / rank, or over its square root.
    """

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    scaling: float

    @property
    def rank(self) -> int:
        """The inner width."""
        return self.a.shape[0]


@dataclass
class Adapter:
    """A LoRA adapter in memory.

    Attributes:
        folder: where it lies.
        config: content of ``adapter_config.json``.
        lora: factors by module, as the module is called in the file.
        full: whole tensors (``modules_to_save``, biases) by name.
        names: of the tensors a module's factors came from.
        metadata: of the file.
    """

    folder: Path
    config: dict[str, Any]
    lora: dict[str, Factors]
    full: dict[str, torch.Tensor]
    names: dict[tuple[str, str], str]
    metadata: dict[str, str]

    @property
    def dtype(self) -> str:
        """The type it is stored in."""
        tensors = [f.b for f in self.lora.values()] or list(self.full.values())
        return str(tensors[0].dtype).removeprefix("torch.")


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter folder.

    Raises:
        KitError: when the weights are missing, damaged or pickled, or it is not a plain LoRA adapter.
    """
    from safetensors.torch import load_file

    from eval.results import read_json
    from recipes.extrapolate.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
    from recipes.extrapolate.tensorfile import read_header

    config = read_json(folder / ADAPTER_CONFIG)
    _check_config(folder / ADAPTER_CONFIG, config)
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        hint = " (adapter_model.bin is pickle, which is not read)" if (folder / "adapter_model.bin").exists() else ""
        raise KitError(f"{folder}: no {ADAPTER_WEIGHTS} here{hint}")
    _, metadata = read_header(file)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    full, names = {}, {}
    for name, tensor in load_file(file).items():
        if "lora_magnitude" in name:
            raise KitError(f"{file}: {name}: a DoRA adapter cannot be extrapolated; merge it first")
        if not bool(tensor.isfinite().all()):
            raise KitError(f"{file}: {name} holds values that are not finite; the adapter is broken")
        if (match := PART.match(name)) is None:
            full[name] = tensor
            continue
        part = match["part"][-1] + ("bias" if match["leaf"] == ".bias" else "")
        parts.setdefault(match["module"], {})[part] = tensor
        names[match["module"], part] = name
    lora = {}
    for module, held in parts.items():
        if not {"A", "B"} <= held.keys():
            raise KitError(f"{file}: {module}: lora_A or lora_B is missing")
        if held["B"].shape[1] != held["A"].shape[0]:
            raise KitError(f"{file}: {module}: a LoRA of a grouped convolution cannot be stacked; merge it first")
        scaling = _scaling(config, module, held["A"].shape[0], file)
        lora[module] = Factors(held["A"], held["B"], held.get("Bbias"), scaling)
    return Adapter(folder, config, lora, full, names, metadata)


def _check_config(file: Path, config: Any) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise KitError(f"{file}: field 'peft_type': {kind} is not LORA; merge the adapter first")
    if config.get("use_dora"):
        raise KitError(f"{file}: field 'use_dora': a DoRA adapter cannot be extrapolated; merge it first")
    for field in UNSUPPORTED:
        if config.get(field):
            raise KitError(f"{file}: field '{field}': such an adapter cannot be extrapolated; merge it first")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        raise KitError(
            f"{file}: field 'init_lora_weights': {init} is not a plain LoRA on the original base; save it with "
            "path_initial_model_for_weight_conversion first"
        )


def _scaling(config: dict[str, Any], module: str, rank: int, file: Path) -> float:
    """lora_alpha over the rank (or its root), with the patterns of the configuration."""

    def of(field: str, default: Any) -> Any:
        patterns = config.get(field) or {}
        if not patterns:
            return default
        from peft.utils.other import get_pattern_key

        return patterns.get(get_pattern_key(patterns.keys(), module.removeprefix("base_model.model.")), default)

    wanted = of("rank_pattern", config["r"])
    if wanted != rank:
        raise KitError(f"{file}: {module} has rank {rank}, and the configuration says {wanted}")
    return of("alpha_pattern", config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def extrapolate_adapter(
    weak: str, strong: Path, alpha: float, target: Path, dtype: str | None, same_base: bool, say: Say
) -> dict[str, Any]:
    """Fill a folder with the adapter of the extrapolated weights.

    Args:
        weak: adapter folder that the training of `strong` went on from; or, for a fresh adapter, the base model (a
            folder, or the Hub id the adapter names).
        strong: adapter folder after training.
        alpha: 0 gives STRONG bit for bit, −1 WEAK.
        target: an empty folder.
        dtype: of the saved tensors; None keeps STRONG's.
        same_base: accept configurations that name their base differently.
        say: gets lines for the person.

    Returns:
        What was written to ``extrapolation.json``; norms are of the adapters' products, in fp64.

    Raises:
        KitError: for adapters of two bases, other modules or shapes, DoRA and other kinds, start values that cannot be
            found, damaged or pickled files.
    """
    from safetensors.torch import save_file

    from eval.results import write_text
    from recipes.extrapolate.adapter_parts import base_tensors, check_base, check_pair, measured
    from recipes.extrapolate.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS, copy_side_files, is_adapter
    from recipes.extrapolate.measure import report
    from recipes.extrapolate.stream import REPORT, content_fingerprint

    end = load_adapter(strong)
    fresh = not is_adapter(Path(weak))
    if fresh:
        check_base(weak, end, same_base)
        start, starts = None, base_tensors(Path(weak), end)
    else:
        start = load_adapter(Path(weak))
        check_pair(start, end, same_base)
        starts = start.full
    lora, config = combine(start, end, alpha)
    out = getattr(torch, dtype) if dtype is not None else None
    saved: dict[str, torch.Tensor] = {}
    kept: dict[str, Factors] = {}
    for module, factors in lora.items():
        tensors = {"A": factors.a, "B": factors.b, **({} if factors.bias is None else {"Bbias": factors.bias})}
        for part, tensor in tensors.items():
            stored = end.lora[module].a if part == "A" else end.lora[module].b
            tensors[part] = _narrow(tensor, out or stored.dtype, end.names[module, part])
            saved[end.names[module, part]] = tensors[part]
        kept[module] = Factors(tensors["A"], tensors["B"], tensors.get("Bbias"), factors.scaling)
    for name, tensor in end.full.items():
        narrow = out if out is not None and tensor.is_floating_point() else tensor.dtype
        saved[name] = _narrow(moved(tensor, starts.get(name, tensor), alpha, narrow), narrow, name)
    save_file(saved, target / ADAPTER_WEIGHTS, {"format": "pt", **end.metadata})
    copy_side_files(strong, target, None)
    write_text(target / ADAPTER_CONFIG, json.dumps(config, indent=2) + "\n")
    before, after = ({m: f.rank for m, f in adapter.items()} for adapter in (end.lora, lora))
    if before != after:
        say(
            f"the rank grows from {_range(before)} to {_range(after)}: the two factors of WEAK and STRONG are stacked, "
            "which is exact"
        )
    content = report(
        measured(start, end, kept, starts, saved, alpha),
        alpha,
        kind="adapter" if start is not None else "fresh adapter",
        dtype=dtype or end.dtype,
        inputs={"weak": None if start is None else start.dtype, "strong": end.dtype},
        rank={"strong": _range(before), "result": _range(after)},
        weak={"path": Path(weak).name, "fingerprint": content_fingerprint(Path(weak)) if Path(weak).is_dir() else None},
        strong={"path": strong.name, "fingerprint": content_fingerprint(strong)},
    )
    write_text(target / REPORT, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content


def _narrow(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    result = tensor.to(dtype).contiguous()
    if not bool(result.isfinite().all()):
        raise KitError(f"{name}: the result does not fit {str(dtype)[6:]}; use --dtype float32")
    return result


def _range(ranks: dict[str, int]) -> str:
    low, high = min(ranks.values(), default=0), max(ranks.values(), default=0)
    return str(low) if low == high else f"{low}–{high}"


def combine(weak: Adapter | None, strong: Adapter, alpha: float) -> tuple[dict[str, Factors], dict[str, Any]]:
    """Compute the factors of the result (fp64 where they were computed) and its configuration.

    Args:
        weak: None for a fresh adapter.
        strong: the adapter after training, with the same modules.
        alpha: of the extrapolation.
    """
    if alpha == 0:
        return dict(strong.lora), copy.deepcopy(strong.config)
    if weak is None:
        scaled = {
            module: Factors(f.a, _times(f.b, 1 + alpha), _times(f.bias, 1 + alpha), f.scaling)
            for module, f in strong.lora.items()
        }
        return scaled, copy.deepcopy(strong.config)
    if alpha == -1:
        return {module: weak.lora[module] for module in strong.lora}, copy.deepcopy(weak.config)
    stacked = {
        module: not torch.equal(f.a, weak.lora[module].a) and not torch.equal(f.b, weak.lora[module].b)
        for module, f in strong.lora.items()
    }
    grows = any(stacked.values())
    lora = {}
    for module, end in strong.lora.items():
        start = weak.lora[module]
        # All scaling goes into the factors once ranks change, because a rank changes it; else STRONG's stays outside.
        outside = 1.0 if grows else end.scaling
        mine, its = (1 + alpha) * end.scaling / outside, -alpha * start.scaling / outside
        bias = None if end.bias is None else _sum(end.bias, mine, start.bias, its)
        if stacked[module]:
            a = torch.cat([end.a.double(), start.a.double()], 0)
            b = torch.cat([_times(end.b, mine), _times(start.b, its)], 1)
        elif torch.equal(end.a, start.a):
            a, b = end.a, _sum(end.b, mine, start.b, its)
        else:
            a, b = _sum(end.a, mine, start.a, its), end.b
        lora[module] = Factors(a, b, bias, outside)
    config = copy.deepcopy(strong.config)
    if grows:
        config |= _ranks(lora)
    return lora, config


def _times(tensor: torch.Tensor | None, factor: float) -> torch.Tensor | None:
    return None if tensor is None else tensor.double() * factor


def _sum(a: torch.Tensor, by_a: float, b: torch.Tensor, by_b: float) -> torch.Tensor:
    # Written so that equal tensors at factors that add up to one stay the same bits.
    return a if torch.equal(a, b) and math.isclose(by_a + by_b, 1) else a.double() * by_a + b.double() * by_b


def _ranks(lora: dict[str, Factors]) -> dict[str, Any]:
    """Fields of a configuration in which every module has its own rank and a scaling of one."""
    ranks = {module.removeprefix("base_model.model."): factors.rank for module, factors in lora.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "use_rslora": False,
        "init_lora_weights": True,  # other ways to begin want other ranks, or compute for nothing
    }
