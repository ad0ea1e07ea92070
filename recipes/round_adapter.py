"""The adapter of a LoRA run over its rounds: one that loads on the original base and gives the last round's weights.

Every round trains a fresh adapter on the weights so far and scales its product by 1 + alpha. The sum of these products
is one product of stacked factors, so the rank grows by a round's rank and nothing is lost.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PREFIX = "base_model.model."
FOLDER = "adapter"


class RoundAdapter:
    """Stacked LoRA factors by module.

    Attributes:
        factors: module → (A [rank, in], B [out, rank] with the scaling in it), fp32 on the CPU.
    """

    def __init__(self, factors: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None):
        self.factors = factors or {}

    @classmethod
    def of(cls, model) -> RoundAdapter:
        """The adapter that a PEFT model is training."""
        from peft.tuners.lora import LoraLayer

        found = {}
        for name, module in model.get_base_model().named_modules():
            if isinstance(module, LoraLayer) and "default" in module.lora_A:
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                scaling = module.scaling["default"]
                found[name] = (a.detach().float().cpu().clone(), (scaling * b.detach().float()).cpu())
        return cls(found)

    def then(self, later: RoundAdapter, factor: float) -> RoundAdapter:
        """This one followed by `factor` times another."""
        stacked = dict(self.factors)
        for name, (a, b) in later.factors.items():
            b = b * factor
            if name in stacked:
                a, b = torch.cat([stacked[name][0], a]), torch.cat([stacked[name][1], b], 1)
            stacked[name] = (a, b)
        return RoundAdapter(stacked)

    def save(self, folder: Path, base: str) -> None:
        """Write an ordinary PEFT adapter of `base`."""
        from peft import LoraConfig

        rank = len(next(iter(self.factors.values()))[0])
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,  # the scaling is in the factors
            target_modules=sorted(self.factors),
            bias="none",
            base_model_name_or_path=base,
            inference_mode=True,
        )
        # Sets are written in another order by every process; equal runs have equal files.
        config.target_modules = sorted(self.factors)
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        tensors = {}
        for name, (a, b) in self.factors.items():
            tensors[f"{PREFIX}{name}.lora_A.weight"] = a.contiguous()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = b.contiguous()
        save_file(tensors, folder / "adapter_model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> RoundAdapter:
        """Read what :meth:`save` wrote."""
        tensors = load_file(folder / "adapter_model.safetensors")
        names = {n.removeprefix(PREFIX).removesuffix(".lora_A.weight") for n in tensors if n.endswith("lora_A.weight")}
        return cls(
            {
                name: (tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"])
                for name in names
            }
        )
