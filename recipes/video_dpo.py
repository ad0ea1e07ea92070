"""Direct Preference Optimization on videos: TRL's `DPOTrainer` with a collator that knows what a video is.

TRL 1.16 takes images only. The trainer below keeps its losses, metrics and distributed code and replaces three things:
the collator (frames and the model's own processor instead of images), the preparation of the dataset (rows stay as they
are, the collator does the work), and where reference log-probabilities come from (computed once per run and kept in
memory, so that a learning-rate search pays for them once).

The layout is the plain one: a pair becomes two sequences, prompt + chosen and prompt + rejected, each with its own copy
of the video inputs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# TRL reports every trainer that is made unless this is set before huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from accelerate.utils import gather_object, is_peft_model
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer
from trl.trainer.utils import hash_module

from dataset_builder.errors import KitError
from dataset_builder.media import sample_frames
from dataset_builder.models.local import video_inputs
from eval.runner import MediaIndex, video_source

VISION_MODULES = ("visual", "vision_tower", "vision_model")  # Qwen-VL; LLaVA and InternVL; SmolVLM
TEXT_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
MATCHED_KEYS = ("mm_token_type_ids", "token_type_ids")  # as long as input_ids; 0 is text


@dataclass
class EncodedPrompt:
    """A prompt with its video as the model's processor sees it.

    Attributes:
        ids: token ids, the video placeholder expanded.
        types: further token-aligned inputs, such as ``mm_token_type_ids``.
        vision: what belongs to the video: tensors whose first dimension counts patches, frames or clips.
    """

    ids: list[int]
    types: dict[str, list[int]]
    vision: dict[str, torch.Tensor]


class VideoPromptEncoder:
    """Turns rows with a video into encoded prompts; decodes a clip once and runs the processor once per prompt.

    Args:
        processor: the model's processor, with a chat template.
        num_frames: frames sampled from each clip.
        media: a person's own copies, for rows whose ``video`` is null.
        cache_bytes: video inputs kept in memory; the least recently used clips go first.
    """

    def __init__(self, processor, num_frames: int = 8, media: MediaIndex | None = None, cache_bytes: int = 2 << 30):
        self.processor, self.num_frames, self.media, self.cache_bytes = processor, num_frames, media, cache_bytes
        self._prompts: OrderedDict[tuple[str, str], EncodedPrompt] = OrderedDict()
        self._vision: dict[str, dict[str, torch.Tensor]] = {}  # shared by the prompts about one clip
        self._bytes = 0
        self._rendered = functools.lru_cache(maxsize=1 << 16)(self._render)
        self._tokens = functools.lru_cache(maxsize=1 << 16)(self._tokenize)
        tokenizer = processor.tokenizer
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.settings_key = self._settings_key()

    def _settings_key(self) -> str:
        """Hash of what decides a prompt's encoding besides the row: frames, template, processors."""
        parts = {"frames": self.num_frames, "template": self.processor.chat_template}
        for name in ("video_processor", "image_processor"):
            if (part := getattr(self.processor, name, None)) is not None:
                parts[name] = part.to_dict()
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def source(self, row: Mapping[str, Any]) -> tuple[str, Any]:
        """Where a row's clip is.

        Returns:
            (key that identifies the clip, bytes or path).

        Raises:
            KitError: for a null video that `--media` does not resolve.
        """
        found = video_source(row.get("video"), row.get("video_id"), self.media)
        if found is None:
            raise KitError(
                f"row {row.get('question_id')}: its video is not in the dataset (video_id {row.get('video_id')}); "
                "give your own copies with --media WORK/media.json"
            )
        return hashlib.sha256(found).hexdigest() if isinstance(found, bytes) else f"path:{found}", found

    def render(self, messages: list[dict], generate: bool = False) -> str:
        """Apply the chat template; null keys that Arrow adds to content parts are dropped first."""
        return self._rendered(json.dumps(_without_nulls(messages)), generate)

    def _render(self, messages: str, generate: bool) -> str:
        return self.processor.apply_chat_template(json.loads(messages), tokenize=False, add_generation_prompt=generate)

    def completion_ids(self, prompt: list[dict], prompt_text: str, answer: list[dict]) -> list[int]:
        """Tokens that follow the rendered prompt when the answer is given.

        Whitespace that a template writes after the end-of-turn token is left out: generation stops at that token, so
        no model ever has to produce it.

        Raises:
            KitError: when the template does not render the prompt as the beginning of prompt plus answer.
        """
        full = self.render([*prompt, *answer])
        if not full.startswith(prompt_text):
            raise KitError(
                "this chat template does not render a prompt as the beginning of prompt plus answer, so the answer's "
                "tokens cannot be told apart; use a template that does"
            )
        return list(self._tokens(full[len(prompt_text) :]))

    def _tokenize(self, completion: str) -> tuple[int, ...]:
        tokenizer = self.processor.tokenizer
        ends = any(completion.rstrip().endswith(token) for token in tokenizer.all_special_tokens)
        text = completion.rstrip() if ends else completion + tokenizer.eos_token
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, rows: list[Mapping[str, Any]]) -> tuple[list[str], list[str], list[EncodedPrompt]]:
        """Encode the prompts of a batch of rows.

        Returns:
            (clip keys, rendered prompts, encoded prompts), one of each per row.
        """
        texts = [self.render(row["prompt"], generate=True) for row in rows]
        sources = [self.source(row) for row in rows]
        keys = [(clip, text) for (clip, _), text in zip(sources, texts, strict=True)]
        missing = {key: source for key, (_, source) in zip(keys, sources, strict=True) if key not in self._prompts}
        found = self._process(missing) if missing else {}
        for key in keys:
            if key in self._prompts:
                self._prompts.move_to_end(key)
                found[key] = self._prompts[key]
        for key in missing:
            self._keep(key, found[key])
        return [clip for clip, _ in sources], texts, [found[key] for key in keys]

    def _process(self, missing: dict[tuple[str, str], Any]) -> dict[tuple[str, str], EncodedPrompt]:
        """Run the processor on prompts that are not cached, in groups of one frame shape."""
        clips = {clip: source for (clip, _), source in missing.items()}
        frames = {clip: sample_frames(source, self.num_frames) for clip, source in clips.items()}
        groups: dict[tuple, list[tuple[str, str]]] = {}
        for key in missing:
            groups.setdefault(frames[key[0]].array.shape, []).append(key)
        encoded = {}
        for group in groups.values():
            batch = self.processor(
                text=[text for _, text in group],
                padding=True,
                padding_side="right",
                return_tensors="pt",
                **video_inputs([frames[clip] for clip, _ in group]),
            )
            lengths = batch["attention_mask"].sum(1).tolist()
            # Clips of one shape give equal shares of every vision input, whatever its first dimension counts.
            shares = {k: v.chunk(len(group)) for k, v in batch.items() if k not in TEXT_KEYS and torch.is_tensor(v)}
            for index, (key, length) in enumerate(zip(group, lengths, strict=True)):
                encoded[key] = EncodedPrompt(
                    ids=batch["input_ids"][index, :length].tolist(),
                    types={k: batch[k][index, :length].tolist() for k in MATCHED_KEYS if k in batch},
                    vision={k: share[index].clone() for k, share in shares.items()},
                )
        return encoded

    def _keep(self, key: tuple[str, str], prompt: EncodedPrompt) -> None:
        clip = key[0]
        if clip in self._vision:
            prompt.vision = self._vision[clip]
        else:
            self._vision[clip] = prompt.vision
            self._bytes += sum(t.nbytes for t in prompt.vision.values())
        self._prompts[key] = prompt
        while self._bytes > self.cache_bytes and len(self._prompts) > 1:
            (old, _), _ = self._prompts.popitem(last=False)
            if not any(clip == old for clip, _ in self._prompts):
                self._bytes -= sum(t.nbytes for t in self._vision.pop(old).values())


class VideoDPOCollator:
    """Collates rows of the ``preferences`` config into the batch that TRL's DPO loss expects.

    The batch holds the chosen sequences, then the rejected ones: ``input_ids``, ``attention_mask``, ``completion_mask``
    [2B, L] padded on the right, the processor's token types [2B, L], and its video inputs twice. When reference
    log-probabilities are known, ``ref_chosen_logps`` and ``ref_rejected_logps`` [B].

    Args:
        encoder: encodes prompts and keeps what it has encoded; collators may share one.
        max_length: longest sequence; an answer is cut, a prompt never (its video would be torn).
    """

    def __init__(self, encoder: VideoPromptEncoder, max_length: int | None = None):
        self.encoder, self.max_length = encoder, max_length
        self.references: dict[str, tuple[float, float]] | None = None

    @staticmethod
    def row_key(row: Mapping[str, Any]) -> str:
        """Identifies a pair by its content."""
        video = row.get("video") or {}
        content = video.get("bytes")
        clip = hashlib.sha256(content).hexdigest() if content else [row.get("video_id"), video.get("path")]
        content = [clip, *(_without_nulls(row[k]) for k in ("prompt", "chosen", "rejected"))]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate B rows with ``prompt``, ``chosen``, ``rejected``, and ``video`` or a video_id that media resolves."""
        _, texts, prompts = self.encoder.encode(rows)
        completions = [
            self.encoder.completion_ids(row["prompt"], text, row[side])
            for side in ("chosen", "rejected")
            for row, text in zip(rows, texts, strict=True)
        ]
        batch = assemble(prompts * 2, completions, self.encoder.pad_token_id, self.max_length)
        if self.references is not None:
            pairs = [self.references[self.row_key(row)] for row in rows]
            batch["ref_chosen_logps"] = torch.tensor([chosen for chosen, _ in pairs])
            batch["ref_rejected_logps"] = torch.tensor([rejected for _, rejected in pairs])
        return batch


class VideoSFTCollator:
    """Collates the same rows for SFT on the chosen answers; ``labels`` [B, L] are -100 on the prompt."""

    def __init__(self, encoder: VideoPromptEncoder, max_length: int | None = None):
        self.encoder, self.max_length = encoder, max_length

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate B rows with ``prompt``, ``chosen`` and ``video``."""
        _, texts, prompts = self.encoder.encode(rows)
        answers = [
            self.encoder.completion_ids(row["prompt"], text, row["chosen"])
            for row, text in zip(rows, texts, strict=True)
        ]
        batch = assemble(prompts, answers, self.encoder.pad_token_id, self.max_length)
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
        return batch


def assemble(
    prompts: list[EncodedPrompt], completions: list[list[int]], pad_token_id: int, max_length: int | None = None
) -> dict[str, torch.Tensor]:
    """Join N prompts and their completions into one right-padded batch with the video inputs along dimension 0.

    Raises:
        KitError: when a prompt alone reaches ``max_length``.
    """
    sequences = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if max_length is not None and len(prompt.ids) >= max_length:
            raise KitError(
                f"a prompt with its video takes {len(prompt.ids)} tokens but max_length is {max_length}: "
                "raise it, leave it out, or sample fewer frames"
            )
        sequences.append((prompt.ids + completion)[:max_length])
    starts = [len(prompt.ids) for prompt in prompts]

    def padded(values: Iterable[list[int]], fill: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(v) for v in values], batch_first=True, padding_value=fill)

    batch = {
        "input_ids": padded(sequences, pad_token_id),
        "attention_mask": padded(([1] * len(s) for s in sequences), 0),
        "completion_mask": padded(([0] * n + [1] * (len(s) - n) for n, s in zip(starts, sequences, strict=True)), 0),
    }
    for name in prompts[0].types:
        batch[name] = padded(
            (p.types[name] + [0] * (len(s) - n) for p, n, s in zip(prompts, starts, sequences, strict=True)), 0
        )
    for name in prompts[0].vision:
        batch[name] = _stack([prompt.vision[name] for prompt in prompts])
    return batch


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


def _without_nulls(messages: list[dict]) -> list[dict]:
    """Messages without the null keys that Arrow adds to content parts."""
    return [
        {
            **message,
            "content": [{k: v for k, v in part.items() if v is not None} for part in message["content"]]
            if isinstance(message["content"], list)
            else message["content"],
        }
        for message in messages
    ]


class VideoDPOTrainer(DPOTrainer):
    """TRL's DPO trainer for rows with a video column.

    Args:
        reference_cache: keeps reference log-probabilities over several trainers in one process. Keyed on the reference
            model's weights and on everything that decides a row's encoding, so it never serves values of another
            model, frame count or template. Used with ``precompute_ref_log_probs``.
        **kwargs: as for `trl.DPOTrainer`; ``data_collator`` must be a :class:`VideoDPOCollator`.
    """

    def __init__(self, *args, reference_cache: dict | None = None, **kwargs):
        if not isinstance(kwargs.get("data_collator"), VideoDPOCollator):
            raise TypeError("VideoDPOTrainer needs data_collator=VideoDPOCollator(...)")
        self._reference_cache = {} if reference_cache is None else reference_cache
        kwargs["data_collator"].references = None
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = ["question_id", "video_id", "video", "prompt", "chosen", "rejected"]

    def _precompute_ref_logps(self, dataset, name, batch_size):
        """Compute what the cache lacks, every process its share, and hand the values to the collator.

        TRL's own version writes them to a file keyed on dataset and weights only: another frame count or template would
        silently get the old values.
        """
        collator: VideoDPOCollator = self.data_collator
        collator.references = None  # batches below must not ask for what is being computed
        scope = (self._precompute_model_hash, collator.encoder.settings_key, collator.max_length, self.ld_alpha)
        known = self._reference_cache.setdefault(scope, {})
        keys = [collator.row_key(row) for row in dataset]
        missing = list({key: index for index, key in enumerate(keys) if key not in known}.items())
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        model, found = self.ref_model or self.model, []
        # All processes run equally many batches (some rows twice), or sharded models would wait for each other forever.
        for start in range(0, len(missing), batch_size * world):
            share = [missing[(start + rank * batch_size + i) % len(missing)] for i in range(batch_size)]
            share = list(dict(share).items())
            batch = self._prepare_inputs(collator([dataset[index] for _, index in share]))
            chosen, rejected = self.compute_ref_log_probs(model, batch)
            found += [(k, c, r) for (k, _), c, r in zip(share, chosen.tolist(), rejected.tolist(), strict=True)]
        if world > 1 and missing:
            found = gather_object(found)
        known.update({key: (chosen, rejected) for key, chosen, rejected in found})
        collator.references = known
        return dataset

    def finish(self):
        """Take the trained model out of the trainer, as if it had never been in one.

        TRL replaces the model's ``forward`` by one bound to this very instance; deep copies and merged adapters would
        keep computing with the old weights.

        Returns:
            The plain model: an adapter is merged into the weights it was trained on.
        """
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if is_peft_model(model):
            model = model.merge_and_unload()
        model.__dict__.pop("forward", None)
        self.data_collator.references = None
        return model


def freeze_vision(model) -> int:
    """Take the vision tower out of training.

    Returns:
        How many parameters were frozen.

    Raises:
        KitError: when no module has a known vision tower's name; name it in ``VISION_MODULES``.
    """
    towers = [module for name, module in model.named_modules() if name.split(".")[-1] in VISION_MODULES]
    if not towers:
        raise KitError(f"{type(model).__name__}: found no vision tower to freeze; run with --freeze_vision false")
    for tower in towers:
        tower.requires_grad_(False)
    return sum(parameter.numel() for tower in towers for parameter in tower.parameters())


def text_linear_names(model) -> list[str]:
    """Full names of the text model's linear layers, the default LoRA targets.

    Name patterns such as ``up_proj`` would match the vision tower's layers too, and the LM head cannot carry an adapter
    in TRL's DPO.
    """
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and not any(part in VISION_MODULES for part in name.split("."))
    ]


__all__ = [
    "EncodedPrompt",
    "VideoDPOCollator",
    "VideoDPOTrainer",
    "VideoPromptEncoder",
    "VideoSFTCollator",
    "assemble",
    "freeze_vision",
    "hash_module",
    "text_linear_names",
]
