"""Attention for one sequence `[prompt, chosen, rejected]`: two exact calls in place of a tree-shaped mask.

The prompt attends to itself causally (no mask, so flash kernels may run), then all answer tokens attend to the prompt
and to the earlier tokens of their own branch (a mask of answer rows only). Nothing is copied: both calls read the same
keys. Idea: shared-prefix attention as in flash-preference and Hydragen (arXiv 2402.05099); the arithmetic is that of
`transformers.integrations.sdpa_attention`.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

NAME = "shared_prompt"


def shared_prompt_attention(module, query, key, value, attention_mask, **kwargs):
    """Attention of a decoder layer over pairs that share their prompt.

    A mask with fewer rows than there are queries, bool [B, 1, A, L] for L = P + A positions, is a branch mask: the
    first P queries are prompt. Any other call is ordinary attention: one setting serves generation and plain batches.

    Args:
        module: the attention module; its ``is_causal`` and ``num_key_value_groups`` count.
        query: [B, heads, L, d].
        key: [B, kv heads, L, d].
        value: [B, kv heads, L, d].
        attention_mask: see above, or what `sdpa` takes.
        **kwargs: ``dropout``, ``scaling`` and whatever else the layer passes.

    Returns:
        ([B, L, heads, d], None).
    """
    if attention_mask is None or attention_mask.shape[-2] >= query.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    kwargs.pop("is_causal", None)
    prompt = query.shape[2] - attention_mask.shape[-2]
    head, _ = sdpa_attention_forward(
        module, query[:, :, :prompt], key[:, :, :prompt], value[:, :, :prompt], None, is_causal=True, **kwargs
    )
    tail, _ = sdpa_attention_forward(
        module, query[:, :, prompt:], key, value, attention_mask, is_causal=False, **kwargs
    )
    return torch.cat([head, tail], 1), None


def branch_mask(prompt_mask: torch.Tensor, answer_length: int) -> torch.Tensor:
    """Which positions an answer token sees: its prompt without padding, and its own branch up to itself.

    Padding after a branch's end is seen by padding only, so it needs no mask of its own.

    Args:
        prompt_mask: [B, P], 1 on prompt tokens (padded on the right).
        answer_length: R, tokens a branch is padded to.

    Returns:
        bool [B, 1, 2R, P + 2R].
    """
    pairs, device = len(prompt_mask), prompt_mask.device
    causal = torch.ones(answer_length, answer_length, dtype=torch.bool, device=device).tril()
    branches = torch.block_diag(causal, causal).bool()  # [2R, 2R]
    seen = prompt_mask.bool()[:, None, None].expand(-1, 1, 2 * answer_length, -1)
    return torch.cat([seen, branches.expand(pairs, 1, -1, -1)], -1)


AttentionInterface.register(NAME, shared_prompt_attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
