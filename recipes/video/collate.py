"""Batches for preference training and SFT on videos, from rows of the ``preferences`` config or any like it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from dataset_builder.errors import KitError
from recipes.video.encoding import ClipEncoder, EncodedPrompt, without_nulls


class VideoDPOCollator:
    """Collates B rows into the batch that TRL's DPO loss expects; every distinct clip is in it once.

    With shared prompts: ``input_ids``, ``attention_mask``, ``completion_mask`` [2B, 1 + R] (the last prompt token and
    the answer; chosen rows, then rejected ones), ``prompt_ids``, ``prompt_mask`` [B, P], ``prompt_types`` alike.
    In the plain layout: ``input_ids``, ``attention_mask``, ``completion_mask`` and the processor's token types [2B, L].
    Always: ``clips`` (a list of dicts of tensors), ``clip_keys`` (content hashes) and ``clip_index`` ([B] or [2B]).
    All padding is on the right. When reference log-probabilities are known, ``ref_chosen_logps`` and
    ``ref_rejected_logps`` [B].

    Args:
        encoder: encodes prompts and keeps what it has encoded; collators may share one.
        max_length: longest sequence of prompt and answer; an answer is cut, a prompt never (its video would be torn).
        share_prompt: the layout.
        unfold: plain batches for models that cannot be given features: pixels in every row, under their own names.
    """

    def __init__(
        self, encoder: ClipEncoder, max_length: int | None = None, share_prompt: bool = True, unfold: bool = False
    ):
        self.encoder, self.max_length, self.share_prompt, self.unfold = encoder, max_length, share_prompt, unfold
        self.references: Mapping[str, tuple[float, float]] | None = None

    def row_key(self, row: Mapping[str, Any]) -> str:
        """Identifies a pair by its content."""
        content = [self.encoder.source(row)[0], *(without_nulls(row[k]) for k in ("prompt", "chosen", "rejected"))]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate B rows with ``prompt``, ``chosen``, ``rejected`` and a video.

        Raises:
            KitError: when a prompt alone reaches ``max_length``, or a field is missing.
        """
        prompts, completions = encode_pairs(self.encoder, rows)
        arrange = share if self.share_prompt else separate
        batch = arrange(prompts, completions, self.encoder.pad_token_id, self.max_length)
        if self.unfold:
            batch = unfold_clips(batch)
        if self.references is not None:
            pairs = [self.references[self.row_key(row)] for row in rows]
            batch["ref_chosen_logps"] = torch.tensor([chosen for chosen, _ in pairs])
            batch["ref_rejected_logps"] = torch.tensor([rejected for _, rejected in pairs])
        return batch


class VideoSFTCollator:
    """Collates the same rows for SFT on the chosen answers, for the model's own forward; ``labels`` [B, L] are -100 on
    the prompt, and the processor's vision inputs stand under their own names."""

    def __init__(self, encoder: ClipEncoder, max_length: int | None = None):
        self.encoder, self.max_length = encoder, max_length

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate B rows with ``prompt``, ``chosen`` and a video."""
        texts, prompts = self.encoder.encode(rows)
        answers = [
            self.encoder.completion_ids(row["prompt"], text, row["chosen"])
            for row, text in zip(rows, texts, strict=True)
        ]
        batch = separate(prompts, answers, self.encoder.pad_token_id, self.max_length)
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        return unfold_clips(batch)


def encode_pairs(encoder: ClipEncoder, rows) -> tuple[list[EncodedPrompt], list[list[int]]]:
    """Prompts [B] and completions [2B]: the chosen ones, then the rejected ones."""
    for row in rows:
        for name in ("prompt", "chosen", "rejected"):
            if not isinstance(row.get(name), list):
                raise KitError(
                    f"row {row.get('question_id')}: field {name}: must be a list of messages (a conversational dataset)"
                )
    texts, prompts = encoder.encode(rows)
    return prompts, [
        encoder.completion_ids(row["prompt"], text, row[side])
        for side in ("chosen", "rejected")
        for row, text in zip(rows, texts, strict=True)
    ]


def share(prompts: list[EncodedPrompt], completions: list[list[int]], pad: int, longest: int | None) -> dict[str, Any]:
    """The batch with shared prompts; see :class:`VideoDPOCollator`."""
    answers = [c[: _room(p, longest)] for p, c in zip(prompts * 2, completions, strict=True)]
    rows = [[p.ids[-1], *answer] for p, answer in zip(prompts * 2, answers, strict=True)]
    return {
        "input_ids": _padded(rows, pad),
        "attention_mask": _padded(([1] * len(row) for row in rows), 0),
        "completion_mask": _padded(([0] + [1] * (len(row) - 1) for row in rows), 0),
        "prompt_ids": _padded((p.ids for p in prompts), pad),
        "prompt_mask": _padded(([1] * len(p.ids) for p in prompts), 0),
        "prompt_types": {name: _padded((p.types[name] for p in prompts), 0) for name in prompts[0].types},
        **_clips(prompts),
    }


def separate(
    prompts: list[EncodedPrompt], completions: list[list[int]], pad: int, longest: int | None = None
) -> dict[str, Any]:
    """The plain batch: every completion after a copy of its prompt; completions may be a multiple of the prompts."""
    prompts = prompts * (len(completions) // len(prompts))
    answers = [c[: _room(p, longest)] for p, c in zip(prompts, completions, strict=True)]
    pairs = list(zip(prompts, answers, strict=True))
    batch = {
        "input_ids": _padded((p.ids + a for p, a in pairs), pad),
        "attention_mask": _padded(([1] * len(p.ids + a) for p, a in pairs), 0),
        "completion_mask": _padded(([0] * len(p.ids) + [1] * len(a) for p, a in pairs), 0),
    }
    for name in prompts[0].types:
        batch[name] = _padded((p.types[name] + [0] * len(a) for p, a in pairs), 0)
    return {**batch, **_clips(prompts)}


def unfold_clips(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A plain batch for a model's own forward: every row's vision inputs one after another, under their own names."""
    clips, index = batch["clips"], batch["clip_index"].tolist()
    rest = {name: value for name, value in batch.items() if name not in ("clips", "clip_keys", "clip_index")}
    return {**rest, **{name: _stack([clips[i][name] for i in index]) for name in clips[0]}}


def _clips(prompts: list[EncodedPrompt]) -> dict[str, Any]:
    distinct = {p.clip: p.vision for p in prompts}
    order = {clip: number for number, clip in enumerate(distinct)}
    return {
        "clips": list(distinct.values()),
        "clip_keys": list(distinct),
        "clip_index": torch.tensor([order[p.clip] for p in prompts]),
    }


def _room(prompt: EncodedPrompt, longest: int | None) -> int | None:
    if longest is not None and len(prompt.ids) >= longest:
        raise KitError(
            f"a prompt with its video takes {len(prompt.ids)} tokens but max_length is {longest}: "
            "raise it, leave it out, or sample fewer frames"
        )
    return None if longest is None else longest - len(prompt.ids)


def _padded(values: Iterable[list[int]], fill: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(v) for v in values], batch_first=True, padding_value=fill)


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate along dimension 0; families that take [clips, frames, …] get missing frames as zeros."""
    if tensors[0].dim() > 1 and len({t.shape[1] for t in tensors}) > 1:
        longest = max(t.shape[1] for t in tensors)
        tensors = [
            torch.cat([t, t.new_zeros(t.shape[0], longest - t.shape[1], *t.shape[2:])], 1)
            if t.shape[1] < longest
            else t
            for t in tensors
        ]
    return torch.cat(tensors)
