"""A local checkpoint as a chat model: any transformers image-text-to-text model, with or without eyes for video."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from dataset_builder.errors import KitError
from dataset_builder.models.base import ChatReply, ChatRequest, Decoding, chat_messages
from dataset_builder.models.revision import model_revision

# Model types that the tests answer with; any other is used as it is, and said to be untested.
TESTED_FAMILIES = (
    "gemma3",
    "idefics3",
    "internvl",
    "llava",
    "llava_next_video",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
)
_announced: set[str] = set()


def load_model(
    name_or_path: str | Path,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    name: str | None = None,
) -> LocalChatModel:
    """Load a checkpoint folder or a Hub id.

    Args:
        name_or_path: a folder with safetensors weights and a processor, or a Hub id.
        revision: branch, tag or commit of a Hub id.
        device: ``auto`` takes a GPU when there is one.
        dtype: a torch type's name, or ``auto`` for the one the checkpoint was saved in.
        name: what to call the model in the dataset; the last part of the path by default.

    Raises:
        KitError: when the checkpoint is missing, has no or not all of its safetensors weights, is damaged, or needs
            code of its own.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = Path(name_or_path)
    local = path.exists() or str(name_or_path).startswith(("/", "./", "../"))
    if local and not path.is_dir():
        raise KitError(f"{name_or_path}: there is no checkpoint folder here")
    fingerprint = model_revision(name_or_path, revision)
    pinned = None if local else fingerprint  # a branch may move between the two loads below
    try:
        processor = AutoProcessor.from_pretrained(name_or_path, revision=pinned, trust_remote_code=False)
        model, loaded = AutoModelForImageTextToText.from_pretrained(
            name_or_path,
            revision=pinned,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:  # RuntimeError: sizes that differ
        if "trust_remote_code" in str(error):  # the message would have a person switch that on
            raise KitError(f"{name_or_path}: it needs code of its own, which is never run; use another model") from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise KitError(f"{name_or_path}: cannot be loaded as an image-text-to-text model: {reason}") from error
    if missing := sorted(loaded["missing_keys"]):  # transformers would draw them at random and go on
        raise KitError(f"{name_or_path}: weights are missing in the checkpoint ({len(missing)}, first {missing[0]})")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    announce_untested(model.config.model_type)
    asked_as = path.name if local else str(name_or_path)
    return LocalChatModel(model.to(device), processor, name or path.name, fingerprint, device, asked_as)


def announce_untested(model_type: str) -> None:
    """Say once on stderr that a model type is not among the tested ones."""
    if model_type not in TESTED_FAMILIES and model_type not in _announced:
        _announced.add(model_type)
        families = ", ".join(TESTED_FAMILIES)
        print(
            f"note: model type {model_type} is untested here (tested: {families}); look at its answers", file=sys.stderr
        )


class LocalChatModel:
    """A loaded model and its processor behind the chat interface.

    Args:
        model: a transformers image-text-to-text model.
        processor: its processor, with a chat template.
        name: what the dataset and the results call it.
        revision: content hash of a folder or commit of a Hub id.
        device: where the model is.
        asked_as: the Hub id or the folder's name; ``name`` by default.
    """

    is_endpoint = False

    def __init__(self, model, processor, name: str, revision: str, device: str = "cpu", asked_as: str | None = None):
        self.model, self.processor, self.name, self.revision, self.device = model, processor, name, revision, device
        self.asked_as = asked_as or name
        template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
        if not template:
            raise KitError(f"{name}: its processor has no chat template, so it cannot be asked as a chat model")
        self.native_video = takes_video(processor)
        self.template_hash = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]
        model.eval()

    def prepare(self, requests: list[ChatRequest], texts: list[str] | None = None):
        """Turn requests into model inputs, padded on the left.

        Args:
            requests: all with frames or all without.
            texts: rendered prompts to use in place of the template's own.

        Returns:
            A BatchFeature on the model's device; ``input_ids`` [B, L].
        """
        texts = texts or [self._prompt(request) for request in requests]
        kwargs = {}
        if requests[0].frames is not None:
            make_inputs = video_inputs if self.native_video else image_inputs
            kwargs = make_inputs([request.frames for request in requests])
        batch = self.processor(text=texts, padding=True, padding_side="left", return_tensors="pt", **kwargs)
        return batch.to(self.device)

    def _batches(self, requests: list[ChatRequest], batch_size: int):
        """Yield (positions, batch): at most batch_size requests of one kind (same frame shape) in their order."""
        groups: dict[tuple, list[int]] = {}
        for position, request in enumerate(requests):
            shape = () if request.frames is None else request.frames.array.shape
            groups.setdefault(shape, []).append(position)
        for positions in groups.values():
            for start in range(0, len(positions), batch_size):
                chunk = positions[start : start + batch_size]
                yield chunk, [requests[i] for i in chunk]

    def generate(
        self, requests: list[ChatRequest], decoding: Decoding, seed: int, batch_size: int = 64
    ) -> list[ChatReply]:
        """Answer every request in batches; the generator is seeded once for the call.

        Args:
            requests: what to answer; callers pass one block at a time, so that the block fixes the randomness.
            decoding: temperature 0 is greedy.
            seed: of this call's sampling.
            batch_size: at most so many requests at once.

        Returns:
            One reply per request, in order.
        """
        import torch

        replies: list[ChatReply | None] = [None] * len(requests)
        sampling = {"do_sample": False}
        if decoding.temperature > 0:
            sampling = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        tokenizer = self.processor.tokenizer
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
        with torch.random.fork_rng(devices=[self.device] if self.device.startswith("cuda") else []):
            torch.manual_seed(seed)
            for positions, chunk in self._batches(requests, batch_size):
                inputs = self.prepare(chunk)
                with torch.inference_mode():
                    output = self.model.generate(**inputs, max_new_tokens=decoding.max_new_tokens, **sampling)
                prompt = inputs["attention_mask"].sum(1).tolist()
                answers = output[:, inputs["input_ids"].shape[1] :].tolist()
                for position, tokens, length in zip(positions, answers, prompt, strict=True):
                    end = next((i for i, token in enumerate(tokens) if token in ends), None)
                    text = tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
                    count = len(tokens) if end is None else end + 1
                    replies[position] = ChatReply(text, "length" if end is None else "stop", length, count)
        return replies

    def choice_probability(
        self,
        requests: list[ChatRequest],
        choices: tuple[str, ...] = ("yes", "no"),
        batch_size: int = 64,
        beginning: str = "",
    ) -> np.ndarray:
        """Probability of each choice as the reply's first token, normalised over the choices.

        Args:
            requests: what to judge.
            choices: words whose first tokens differ.
            batch_size: at most so many requests at once.
            beginning: what the reply has said already; the choices are what may come next.

        Returns:
            float64 [N, len(choices)], rows sum to 1.

        Raises:
            KitError: when two choices begin with the same token.
        """
        import torch

        first, said = self._first_tokens(choices, beginning)
        result = np.empty((len(requests), len(choices)))
        for positions, chunk in self._batches(requests, batch_size):
            inputs = self.prepare(chunk, [self._prompt(request) + said for request in chunk] if said else None)
            with torch.inference_mode():
                logits = self.model(**inputs, logits_to_keep=1).logits[:, -1]  # [B, V]
            result[positions] = logits[:, first].double().softmax(-1).cpu().numpy()
        return result

    def _prompt(self, request: ChatRequest) -> str:
        messages = chat_messages(request, images=not self.native_video)
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _first_tokens(self, choices: tuple[str, ...], beginning: str) -> tuple[list[int], str]:
        """The tokens that tell the choices apart after a beginning, and the text that stands before these tokens.

        A token may reach over the end of the beginning (a quotation mark with the letter after it): then the text ends
        before that token.
        """
        alike = KitError(f"{self.name}: the choices {choices} begin with the same token, they cannot be told apart")
        tokenizer = self.processor.tokenizer
        if not beginning:
            tokens = [tokenizer(choice, add_special_tokens=False)["input_ids"][0] for choice in choices]
            if len(set(tokens)) < len(tokens):
                raise alike
            return tokens, ""
        if not tokenizer.is_fast:
            raise KitError(f"{self.name}: a slow tokenizer does not say where its tokens begin; set probability: false")
        whole = [
            tokenizer(beginning + choice, add_special_tokens=False, return_offsets_mapping=True) for choice in choices
        ]
        for place, tokens in enumerate(zip(*(pieces["input_ids"] for pieces in whole))):
            if len(set(tokens)) == 1:
                continue
            start = whole[0]["offset_mapping"][place][0]
            if len(set(tokens)) < len(tokens) or start > len(beginning):
                raise alike
            return list(tokens), beginning[:start]
        raise alike


def takes_video(processor) -> bool:
    """Whether a processor turns a video part into a video; where not, its frames are shown as images."""
    if getattr(processor, "video_processor", None) is None:
        return False
    token = getattr(processor, "video_token", None)
    if token is None:
        return True
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "x"}]}]
    return token in processor.apply_chat_template(messages, tokenize=False)


def image_inputs(frames: list) -> dict:
    """Processor arguments for clips as images: a list of pictures for each."""
    from PIL import Image

    return {"images": [[Image.fromarray(picture) for picture in f.array] for f in frames]}


def video_inputs(frames: list) -> dict:
    """Processor arguments for clips that are sampled already: arrays with the metadata that time stamps need.

    Without metadata Qwen3-VL and SmolVLM assume 24 frames a second; without ``do_sample_frames=False`` they would
    sample the samples again.
    """
    from transformers.video_utils import VideoMetadata

    metadata = [
        VideoMetadata(
            total_num_frames=f.total,
            fps=f.fps,
            duration=f.duration,
            frames_indices=list(f.indices),
            height=f.array.shape[1],
            width=f.array.shape[2],
        )
        for f in frames
    ]
    return {"videos": [f.array for f in frames], "video_metadata": metadata, "do_sample_frames": False}
