"""Undoes a side effect: importing LightEval's transformers models turns gradients off for the whole process.

The package imports this module before anything else of its own.
"""

import torch

_before = torch.is_grad_enabled()

import lighteval.models.transformers.transformers_model  # noqa: E402, F401

torch.set_grad_enabled(_before)
