"""Weight extrapolation: theta + alpha · (theta − theta_ref), for states in memory and for checkpoint folders.

    python -m recipes.extrapolate WEAK STRONG --alpha 0.3 --output OUT

`states.py` is the arithmetic on a model's state, `stream.py` the same on safetensors files of any size, `adapters.py`
on LoRA adapters. What is imported here needs torch only; the command's modules are imported by those who want them.
"""

from recipes.extrapolate.adapters import scale_lora
from recipes.extrapolate.states import Realised, State, distance, extrapolate, realised, snapshot

__all__ = ["Realised", "State", "distance", "extrapolate", "realised", "scale_lora", "snapshot"]
