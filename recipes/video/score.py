"""Log-probabilities of preference pairs under a model, without training it: for held-out accuracy and margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_map

from recipes.video.collate import VideoDPOCollator
from recipes.video.encoding import ClipEncoder
from recipes.video.features import FeatureStore
from recipes.video.pairs import PairForward, why_not_shared
from recipes.video.vision import takes_features


@dataclass(frozen=True)
class PreferenceScore:
    """How a model ranks held-out pairs.

    Attributes:
        accuracy: share of pairs whose chosen answer is likelier than the rejected one, 0–1.
        margin: mean log-probability of chosen minus rejected, nats a sequence.
        chosen_logp: mean log-probability of chosen answers, nats a sequence.
        margins: [N] of every pair, in their order.
    """

    accuracy: float
    margin: float
    chosen_logp: float
    margins: tuple[float, ...] = ()


@torch.no_grad()
def pair_log_probs(model, encoder: ClipEncoder, rows: Sequence[dict], batch_size: int = 32) -> torch.Tensor:
    """Summed log-probabilities of the answers.

    Args:
        model: a plain model (not inside a trainer).
        encoder: of its processor.
        rows: preference rows.
        batch_size: pairs at once.

    Returns:
        fp32 [N, 2]: chosen, rejected.
    """
    folded = takes_features(model.base_model)
    share = folded and why_not_shared(model) is None
    collate = VideoDPOCollator(encoder, None, share, unfold=not folded)
    forward = PairForward(model, share, FeatureStore()) if folded else None
    found, head = [], model.get_output_embeddings()
    try:
        for start in range(0, len(rows), batch_size):
            batch = collate([rows[i] for i in range(start, min(start + batch_size, len(rows)))])
            batch = tree_map(lambda value: value.to(model.device) if torch.is_tensor(value) else value, batch)
            mask = batch.pop("completion_mask")[:, 1:].bool()  # [2B, R]
            hidden = model.base_model(**batch, use_cache=False).last_hidden_state[:, :-1]
            logits = head(hidden[mask]).float()  # [answer tokens, vocabulary]
            tokens = batch["input_ids"][:, 1:][mask]
            each = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
            sums = torch.zeros(mask.shape, device=each.device).masked_scatter(mask, each).sum(1)
            found.append(torch.stack(sums.chunk(2), 1).cpu())
    finally:
        if forward is not None:
            forward.remove()
    return torch.cat(found)


def preference_score(model, encoder: ClipEncoder, rows: Sequence[dict], batch_size: int = 32) -> PreferenceScore:
    """Accuracy, margin and chosen log-probability of :func:`pair_log_probs`."""
    logps = pair_log_probs(model, encoder, rows, batch_size).double()
    margins = logps[:, 0] - logps[:, 1]
    accuracy = float((margins > 0).double().mean())
    return PreferenceScore(accuracy, float(margins.mean()), float(logps[:, 0].mean()), tuple(margins.tolist()))
