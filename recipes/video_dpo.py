"""Direct Preference Optimization on videos: TRL's `DPOTrainer`, with the prompt and the video of a pair computed once.

TRL 1.16 takes images only, runs the prompt of a pair twice and the vision tower up to four times, and refuses to
precompute references for vision data. The trainer below keeps its losses, metrics and distributed code and changes what
is computed, not the result:

    shared prompt   `[prompt, chosen, rejected]` is one sequence (`recipes.video.attention`, `recipes.video.pairs`)
    vision once     per clip for policy and reference, without gradients while it is frozen; kept if wanted
                    (`recipes.video.features`)
    references      computed once for all epochs, kept with the run (`recipes.video.references`)
    self-check      one pair of the first batch is computed both ways (`recipes.video.check`)

    trainer = VideoDPOTrainer(model, args=VideoDPOConfig(...), train_dataset=rows, processing_class=processor)

Tried: one and two processes (DDP), FSDP2 on CPU, LoRA and full training, gradient checkpointing, all losses of TRL.
Untested: DeepSpeed, quantized bases (QLoRA), tensor and context parallelism, mixture-of-experts, prompt learning.
"""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

# TRL reports every trainer that is made unless this is set before huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from accelerate.utils import gather_object, is_peft_model
from trl import DPOConfig, DPOTrainer

from dataset_builder.errors import KitError
from eval.runner import MediaIndex
from recipes.checkpoints import GoesOn
from recipes.video.check import self_check
from recipes.video.collate import VideoDPOCollator, VideoSFTCollator
from recipes.video.encoding import ClipEncoder
from recipes.video.features import FeatureStore, features_key
from recipes.video.pairs import PairForward, why_not_shared
from recipes.video.references import ReferenceStore
from recipes.video.sharding import leave_vision_whole, wants_sharding
from recipes.video.vision import adapters_in_vision, freeze_vision, is_frozen, takes_features, text_linear_names


@dataclass
class VideoDPOConfig(DPOConfig):
    """TRL's `DPOConfig` with what videos need.

    Attributes:
        share_prompt: compute the prompt of a pair once, in one sequence with both answers.
        num_frames: frames sampled per video (at most, with `fps`).
        fps: sample so many frames a second instead of evenly spaced ones.
        video_size: replaces `size` of the model's video processor, such as {"longest_edge": 200704}.
        media: media.json of the build, for datasets that hold no videos.
        freeze_vision: leave vision tower and projector as they are (an adapter leaves them anyway).
        feature_cache: folder that keeps frozen vision's outputs over epochs, rounds and runs.
        feature_cache_gb: size the folder may reach.
        reference_cache: folder that keeps precomputed reference log-probabilities; `references` in `output_dir`.
        self_check: compare one pair of the first batch with the plain computation.
    """

    max_length: int | None = field(default=None, metadata={"help": "Longest sequence; prompts are never cut."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "The collator reads whole rows."})
    share_prompt: bool = field(default=True, metadata={"help": "Compute the prompt of a pair once."})
    num_frames: int = field(default=8, metadata={"help": "Frames sampled per video."})
    fps: float | None = field(default=None, metadata={"help": "Frames sampled per second, at most num_frames."})
    video_size: dict | str | None = field(default=None, metadata={"help": "Replaces `size` of the video processor."})
    media: str | None = field(default=None, metadata={"help": "media.json, for datasets that hold no videos."})
    freeze_vision: bool = field(default=True, metadata={"help": "Leave vision tower and projector as they are."})
    feature_cache: str | None = field(default=None, metadata={"help": "Folder that keeps frozen vision's outputs."})
    feature_cache_gb: float = field(default=20.0, metadata={"help": "Size that folder may reach."})
    reference_cache: str | None = field(default=None, metadata={"help": "Folder of precomputed references."})
    self_check: bool = field(default=True, metadata={"help": "Compare the first pair with the plain computation."})

    _VALID_DICT_FIELDS = (*DPOConfig._VALID_DICT_FIELDS, "video_size")

    def __post_init__(self):
        super().__post_init__()
        if self.num_frames < 1:
            raise KitError("num_frames must be at least 1")
        if self.fps is not None and not self.fps > 0:
            raise KitError(f"fps is {self.fps}, it must be above 0")
        if self.trust_remote_code:
            raise KitError("trust_remote_code: the kit runs no code from checkpoints")


class VideoDPOTrainer(GoesOn, DPOTrainer):
    """TRL's DPO trainer for conversational preference rows with ``video``, ``videos`` (one) or ``frames``.

    Args:
        model: image-text-to-text model, a PEFT model of one, or a checkpoint's folder or Hub id (loaded in fp32).
        args: :class:`VideoDPOConfig`.
        encoder: shares decoded clips with other trainers; made from `args` by default.
        features: shares frozen vision's outputs with other trainers; made from `args` by default.
        references: shares reference log-probabilities with other trainers; made from `args` by default.
        say: where announcements go.
        **kwargs: as for `trl.DPOTrainer`.

    Raises:
        KitError: when the self-check fails, or a row cannot be used.
    """

    def __init__(
        self,
        model,
        ref_model=None,
        args: VideoDPOConfig | None = None,
        *,
        encoder: ClipEncoder | None = None,
        features: FeatureStore | None = None,
        references: ReferenceStore | None = None,
        say=None,
        **kwargs,
    ):
        args = args or VideoDPOConfig("video-dpo")
        self._announced = say or (lambda line: print(f"note: {line}", flush=True) if args.process_index == 0 else None)
        if isinstance(model, str | os.PathLike):
            model, processor = load(model, (args.model_init_kwargs or {}).get("revision"))
            kwargs.setdefault("processing_class", processor)
            args.model_init_kwargs = None
        processor = kwargs.get("processing_class")
        if processor is None:
            raise KitError("processing_class is needed: the model's processor")
        if args.freeze_vision and kwargs.get("peft_config") is None and not is_peft_model(model):
            freeze_vision(model)
        base = model.get_base_model() if is_peft_model(model) else model
        lent = None
        if wants_sharding(args) and ref_model is None and not is_peft_model(model) and not kwargs.get("peft_config"):
            # TRL would read the reference from the checkpoint the model was loaded from once: not what it is now.
            ref_model = lent = copy.deepcopy(model)
        self.features = features or FeatureStore(args.feature_cache, int(args.feature_cache_gb * (1 << 30)))
        if references is None:
            folder = args.reference_cache or os.path.join(args.output_dir, "references")
            references = ReferenceStore(folder if args.precompute_ref_log_probs else None)
        self.references = references
        encoder = encoder or make_encoder(processor, args)
        share, folded = self._choose_layout(base, args)
        kwargs["data_collator"] = VideoDPOCollator(encoder, args.max_length, share, unfold=not folded)
        self._forwards = [PairForward(base, share, self.features)] if folded else []
        self._unchecked, self._opened = share and args.self_check, False
        self.checked: float | None = None  # what the self-check found, nats a token
        self._dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else base.dtype
        super().__init__(model, ref_model, args, **kwargs)
        self._open_features()
        self._stand_in_for_reference()
        if lent is not None and args.precompute_ref_log_probs:  # it has done its work
            self.ref_model = None
            for forward in self._forwards[1:]:
                forward.remove()
            del self._forwards[1:]
        if self.is_fsdp_enabled and self._forwards:
            self._prepare_for_shards()

    def _prepare_for_shards(self) -> None:
        """All processes of a sharded model must call it equally often; see :mod:`recipes.video.sharding`."""
        if self._forwards[0].frozen:
            leave_vision_whole(self.accelerator, self._forwards[0].model)
        for forward in self._forwards:
            forward.in_step = True

    def _choose_layout(self, model, args) -> tuple[bool, bool]:
        """(whether prompts are shared, whether clips come once): the best this model can, announced if it is less."""
        folded = takes_features(model.base_model)
        reason = why_not_shared(model) if args.share_prompt else None
        if args.share_prompt and not folded:
            reason = reason or "its model class takes no vision features made before"
        if reason is not None:
            vision = "vision once" if folded else "vision for every sequence"
            self._announced(f"prompts are not shared, the plain layout with {vision} is used: {reason}")
        return args.share_prompt and reason is None and folded, folded

    def _open_features(self) -> None:
        """Look at what is frozen once adapters are in, and open the feature store for these weights."""
        if self._opened or not self._forwards:
            return
        self._opened = True
        forward, encoder = self._forwards[0], self.data_collator.encoder
        if names := adapters_in_vision(forward.model):
            self._announced(
                f"the adapter reaches into the vision tower ({len(names)} tensors, first {names[0]}): vision is "
                "trained and runs for policy and reference; name the text model's layers (the default) to avoid it"
            )
        forward.frozen = is_frozen(forward.model)
        encoder.features = None
        if forward.frozen:
            self.features.open(features_key(forward.model, encoder.clip_key, str(self._dtype)))
            encoder.features = self.features
        elif self.args.feature_cache:
            self._announced("feature_cache is not used: vision is trained, so its outputs change with every step")

    def _stand_in_for_reference(self) -> None:
        """Give a reference model of its own the same forward; with the same vision weights its features are shared."""
        if self.ref_model is None or not self._forwards or len(self._forwards) > 1:
            return
        reference, policy = self.accelerator.unwrap_model(self.ref_model), self._forwards[0]
        store = FeatureStore()
        reference.requires_grad_(False)
        if policy.frozen:
            key = features_key(reference, self.data_collator.encoder.clip_key, str(self._dtype))
            if key == self.features.key:
                store = self.features
            else:  # another vision tower: the pixels are needed in every batch
                self.data_collator.encoder.features = None
                store.open(key)
        self._forwards.append(PairForward(reference, policy.share, store))

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            columns = ("question_id", "video_id", "video", "videos", "frames", "prompt", "chosen", "rejected")
            self._signature_columns = list(columns)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As TRL's; the first batch is checked before."""
        self._check_once(model, inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def compute_ref_log_probs(self, model, inputs):
        """As TRL's; the first batch is checked before."""
        self._open_features()
        self._check_once(model, inputs)
        return super().compute_ref_log_probs(model, inputs)

    def _check_once(self, model, inputs: dict[str, Any]) -> None:
        if self._unchecked:
            self._unchecked = False
            own = next((f for f in self._forwards[1:] if f.model is self.accelerator.unwrap_model(model)), None)
            batch = {n: v for n, v in inputs.items() if not n.startswith("ref_")}
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                self.checked = self_check(model, own or self._forwards[0], batch, self._dtype)

    def _load_best_model(self):
        """As the Trainer's; see `GoesOn._load_from_checkpoint`."""
        if is_peft_model(self.model) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _precompute_ref_logps(self, dataset, name, batch_size):
        """Compute what is not known, every process its share, and hand the values to the collator.

        TRL's own version writes them to a file keyed on dataset and weights only: another frame count or template would
        silently get the old values.
        """
        self._open_features()
        self._stand_in_for_reference()
        collator: VideoDPOCollator = self.data_collator
        collator.references = None  # batches below must not ask for what is being computed
        parts = (self._precompute_model_hash, collator.encoder.settings_key, collator.max_length, self.ld_alpha)
        scope = hashlib.sha256(repr((*parts, str(self._dtype))).encode()).hexdigest()[:16]
        known = self.references.scope(scope)
        keys = [collator.row_key(row) for row in dataset]
        missing = list({key: index for index, key in enumerate(keys) if key not in known}.items())
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        model = self.ref_model or self.model
        # All processes run equally many batches (some rows twice), or sharded models would wait for each other forever.
        for start in range(0, len(missing), batch_size * world):
            share = [missing[(start + rank * batch_size + i) % len(missing)] for i in range(batch_size)]
            share = list(dict(share).items())
            batch = self._prepare_inputs(collator([dataset[index] for _, index in share]))
            chosen, rejected = self.compute_ref_log_probs(model, batch)
            found = [(k, c, r) for (k, _), c, r in zip(share, chosen.tolist(), rejected.tolist(), strict=True)]
            found = gather_object(found) if world > 1 else found
            self.references.add(scope, found, write=rank == 0)
        collator.references = known
        return dataset

    def create_model_card(self, *args, **kwargs):
        """The kit writes its own cards."""

    def finish(self, merge: bool = True):
        """Take the trained model out of the trainer, as if it had never been in one.

        TRL replaces the model's ``forward`` by one bound to this very instance; deep copies and merged adapters would
        keep computing with the old weights.

        Args:
            merge: put an adapter's product into the weights it was trained on; otherwise the adapter stays.

        Returns:
            The plain model, or the PEFT model.
        """
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        for forward in self._forwards:
            forward.remove()
        base = model.get_base_model() if is_peft_model(model) else model
        base.__dict__.pop("forward", None)
        self.data_collator.references = None
        self.data_collator.encoder.features = None
        return model.merge_and_unload() if merge and is_peft_model(model) else model


def make_encoder(processor, args: VideoDPOConfig) -> ClipEncoder:
    """The encoder that a configuration describes; sets the processor's resolution."""
    if args.video_size is not None:
        part = getattr(processor, "video_processor", None)
        if part is None:
            raise KitError("video_size: this model's processor has no video processor")
        part.size = _new_size(dict(part.size), args.video_size)
    media = MediaIndex(args.media) if args.media else None
    return ClipEncoder(processor, args.num_frames, media, args.fps)


def _new_size(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    """A video processor's size. Of `shortest_edge` and `longest_edge`, which are bounds on pixels in the Qwen families,
    one may be given: the other stays as it is, or moves along."""
    from transformers.image_processing_utils import get_size_dict

    try:
        if not isinstance(new, dict):
            raise TypeError(f'{new!r} is not a mapping such as {{"longest_edge": 200704}}')
        known = {name: int(value) for name, value in new.items()}
        if set(old) == {"shortest_edge", "longest_edge"} and len(known) == 1 and set(known) <= set(old):
            (name, value), bound = next(iter(known.items())), min if "longest_edge" in known else max
            known = {other: bound(size, value) for other, size in old.items()} | {name: value}
        if any(value < 1 for value in known.values()):
            raise ValueError("sizes are above 0")
        return get_size_dict(known)
    except (ValueError, TypeError) as error:
        raise KitError(f"video_size: {' '.join(str(error).split())}") from None


def load(name_or_path, revision: str | None = None):
    """(model with fp32 weights, processor) of a checkpoint's folder or Hub id, by the kit's rules: safetensors only."""
    from dataset_builder.models import load_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        loaded = load_model(str(name_or_path), revision, device="cpu", dtype="float32")
    return loaded.model, loaded.processor


__all__ = [
    "ClipEncoder",
    "FeatureStore",
    "ReferenceStore",
    "VideoDPOCollator",
    "VideoDPOConfig",
    "VideoDPOTrainer",
    "VideoSFTCollator",
    "freeze_vision",
    "make_encoder",
    "text_linear_names",
]
