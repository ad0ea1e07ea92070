"""Clips and prompts as a model's own processor sees them; each distinct thing is decoded and processed once.

One :class:`ClipEncoder` serves SFT and preference training. A clip costs a decoding and a processor call once; a
prompt's token ids depend on the clip's shape and times only, so a question about many clips is encoded once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dataset_builder.errors import KitError
from dataset_builder.media import Frames, MediaError, file_sha256, sample_frames
from dataset_builder.media.frames import FOLDER_FPS
from dataset_builder.models.local import video_inputs
from eval.runner import MediaIndex, video_source
from recipes.video.frame_list import FrameList

if TYPE_CHECKING:
    from recipes.video.features import FeatureStore

TEXT_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
MATCHED_KEYS = ("mm_token_type_ids", "token_type_ids")  # as long as input_ids; 0 is text
GRID_KEYS = ("video_grid_thw", "image_grid_thw", "second_per_grid_ts")  # small, and needed for positions


@dataclass
class EncodedPrompt:
    """A prompt with its video.

    Attributes:
        ids: token ids, the video placeholder expanded.
        types: further token-aligned inputs, such as ``mm_token_type_ids``.
        clip: identifies the clip by content.
        vision: what belongs to the clip alone, tensors with a first dimension that counts patches, frames or clips; or
            its ``features.*`` in place of pixels, when a feature store has them.
    """

    ids: list[int]
    types: dict[str, list[int]]
    clip: str
    vision: dict[str, torch.Tensor]


class ClipEncoder:
    """Turns clips and prompts into model inputs.

    Args:
        processor: with a chat template.
        num_frames: frames sampled from each clip (at most, with `fps`).
        media: a person's own copies, for rows whose ``video`` is null.
        fps: sample so many frames a second instead of evenly spaced ones.
        cache_bytes: pixels, and decoded frames, kept in memory; the least recently used clips go first.
        decoded: frames kept already; encoders of several models may share them.
        features: frozen vision's outputs; asked before a clip is decoded. None when vision is trained.
    """

    def __init__(
        self,
        processor,
        num_frames: int = 8,
        media: MediaIndex | None = None,
        fps: float | None = None,
        cache_bytes: int = 2 << 30,
        features: FeatureStore | None = None,
        decoded: Kept | None = None,
    ):
        self.processor, self.num_frames, self.media, self.fps = processor, num_frames, media, fps
        self.features = features
        self._vision, self._frames = Kept(cache_bytes), Kept(cache_bytes // 4) if decoded is None else decoded
        self._prompts: OrderedDict[tuple[str, str], tuple] = OrderedDict()  # (clip shape, text) -> ids, types
        self._shapes: dict[str, str] = {}  # clip -> its shape and times
        self._hashes: dict[tuple, str] = {}
        self._rows: dict[str, Mapping[str, Any]] = {}  # clip -> a row of the last batch, for messages
        self._rendered = functools.lru_cache(maxsize=1 << 16)(self._render)
        self._tokens = functools.lru_cache(maxsize=1 << 16)(self._tokenize)
        tokenizer = processor.tokenizer
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.decoded = 0  # clips decoded so far: a second epoch and a second arm should add none

    @property
    def clip_key(self) -> str:
        """Hash of what decides a clip's model inputs and its prompts' token ids besides the clip and the text."""
        parts: dict[str, Any] = {"frames": self.num_frames, "fps": self.fps, "processor": type(self.processor).__name__}
        parts["tokens"] = self._vocabulary
        # How many placeholders a clip takes is a plain attribute of the processor in some families.
        parts["own"] = {n: v for n, v in vars(self.processor).items() if isinstance(v, int | float | str)}
        parts["own"].pop("chat_template", None)
        for name in ("video_processor", "image_processor"):
            if (part := getattr(self.processor, name, None)) is not None:
                parts[name] = part.to_dict()
        return _hash(parts)

    @functools.cached_property
    def _vocabulary(self) -> str:
        """Hash of the tokenizer: a feature store keeps prompts' token ids."""
        tokenizer = self.processor.tokenizer
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
            return _hash(sorted(tokenizer.get_vocab().items()))
        kept = json.loads(backend.to_str())
        return _hash({n: v for n, v in kept.items() if n not in ("padding", "truncation")})  # of the latest call

    @property
    def settings_key(self) -> str:
        """Hash of what decides a prompt's encoding besides the row: as :attr:`clip_key`, and the template."""
        template = self.processor.chat_template or self.processor.tokenizer.chat_template
        return _hash([self.clip_key, template])

    def source(self, row: Mapping[str, Any]) -> tuple[str, Any]:
        """Where a row's clip is: ``video`` (bytes, path, a dict of one), ``videos`` (one such), ``frames`` or `media`.

        Returns:
            (sha256 of the content, bytes, path or frame list).

        Raises:
            KitError: for a null video that `media` does not resolve.
        """
        video, several = row.get("video"), row.get("videos")
        if several is not None:
            if len(several) != 1:
                raise KitError(
                    f"row {row.get('question_id')}: field videos: holds {len(several)}; one video a row is read"
                )
            video = several[0]
        if isinstance(row.get("frames"), str | Path):  # a folder
            found = row["frames"]
        elif row.get("frames") is not None:
            with _naming(row, ""):
                found = FrameList(row["frames"], row.get("fps") or FOLDER_FPS)
        elif isinstance(video, str | Path | bytes):
            found = video
        else:
            found = video_source(video, row.get("video_id") or "", self.media)
        if found is None:
            raise KitError(
                f"row {row.get('question_id')}: its video is not in the dataset (video_id {row.get('video_id')}); "
                "give your own copies with --media WORK/media.json"
            )
        with _naming(row, found):
            return self.digest(found), found

    def digest(self, source: str | Path | bytes) -> str:
        """sha256 of a clip's content; a path is read once as long as its size and time stay."""
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        if isinstance(source, FrameList):
            return source.digest
        try:
            stat = os.stat(source)
        except OSError as error:
            raise KitError(f"{source}: cannot be read ({error.strerror})") from None
        key = (str(source), stat.st_size, stat.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = file_sha256(source)
        return self._hashes[key]

    def render(self, messages: list[dict], generate: bool = False) -> str:
        """Apply the chat template; null keys that Arrow adds to content parts are dropped first."""
        return self._rendered(json.dumps(without_nulls(messages)), generate)

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

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[EncodedPrompt]]:
        """Encode the prompts of a batch of rows with ``prompt`` (messages) and a video.

        Returns:
            (rendered prompts, encoded prompts), one of each per row.
        """
        texts = [self.render(row["prompt"], generate=True) for row in rows]
        sources = [self.source(row) for row in rows]
        self._rows = {clip: row for (clip, _), row in zip(sources, rows, strict=True)}
        return texts, self.encode_texts([(clip, source, text) for (clip, source), text in zip(sources, texts)])

    def encode_texts(self, wanted: Sequence[tuple[str, Any, str]]) -> list[EncodedPrompt]:
        """Encode rendered prompts.

        Args:
            wanted: (content key of the clip, bytes or path, rendered prompt).
        """
        held: dict[str, dict] = {}  # keeps hold of what the caches may drop meanwhile
        missing: dict[tuple[str, str], Any] = {}
        for clip, source, text in wanted:
            if clip not in held and self.features is not None and (stored := self.features.get(clip)) is not None:
                held[clip] = stored
            elif clip not in held and clip in self._vision:
                held[clip] = self._vision[clip]
            known = self._ids(clip, text)
            if known is None and self.features is not None and (known := self.features.prompt(clip, text)) is not None:
                self._keep_ids(clip, text, known)
            if known is None or clip not in held:
                missing[clip, text] = source
        if missing:
            self._process(missing, held)
        return [EncodedPrompt(*self._ids(clip, text), clip, held[clip]) for clip, _, text in wanted]

    def frames(self, source: str | Path | bytes, clip: str | None = None) -> Frames:
        """The clip's frames, decoded once."""
        clip = clip or self.digest(source)
        if (frames := self._frames.get(clip)) is None:
            with _naming(self._rows.get(clip), source):
                if isinstance(source, FrameList):
                    frames = source.sample(self.num_frames, self.fps)
                else:
                    frames = sample_frames(source, self.num_frames, fps=self.fps)
            self.decoded += 1
            self._frames.put(clip, frames, frames.array.nbytes)
        self._shapes[clip] = _hash([frames.array.shape, frames.fps, list(frames.indices)])
        return frames

    def _ids(self, clip: str, text: str) -> tuple[list[int], dict] | None:
        """Token ids of a prompt, if one about a clip of the same shape and times was encoded before."""
        key = (self._shapes.get(clip, clip), text)
        if key in self._prompts:
            self._prompts.move_to_end(key)
        return self._prompts.get(key)

    def _keep_ids(self, clip: str, text: str, encoded: tuple[list[int], dict]) -> None:
        self._prompts[self._shapes.get(clip, clip), text] = encoded
        while len(self._prompts) > 1 << 17:
            self._prompts.popitem(last=False)

    def _process(self, missing: dict[tuple[str, str], Any], held: dict[str, dict]) -> None:
        """Run the processor where something is missing, in groups of one frame shape; clips' inputs go to `held`."""
        frames = {clip: self.frames(source, clip) for (clip, _), source in missing.items()}
        groups: dict[tuple, list[tuple[str, str]]] = {}
        planned = set(held)
        for clip, text in missing:
            if clip not in planned or self._ids(clip, text) is None:  # its shape is known by now
                planned.add(clip)
                groups.setdefault(frames[clip].array.shape, []).append((clip, text))
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
            shares = {k: torch.as_tensor(v).chunk(len(group)) for k, v in batch.items() if k not in TEXT_KEYS}
            for index, ((clip, text), length) in enumerate(zip(group, lengths, strict=True)):
                types = {k: batch[k][index, :length].tolist() for k in MATCHED_KEYS if k in batch}
                self._keep_ids(clip, text, (batch["input_ids"][index, :length].tolist(), types))
                if clip not in held:
                    held[clip] = {k: share[index].clone() for k, share in shares.items()}
                    self._vision.put(clip, held[clip], sum(t.nbytes for t in held[clip].values()))
        if self.features is not None:
            for clip, text in missing:
                self.features.keep_prompt(clip, text, self._ids(clip, text))


class Kept:
    """A dictionary bounded in bytes; the least recently used entries go first, the newest always stays."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._items: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __getitem__(self, key: str):
        self._items.move_to_end(key)
        return self._items[key][0]

    def get(self, key: str):
        """The value, or None."""
        return self[key] if key in self._items else None

    def put(self, key: str, value, size: int) -> None:
        """Keep a value of `size` bytes."""
        if key in self._items:
            self.used -= self._items.pop(key)[1]
        self._items[key] = (value, size)
        self.used += size
        while self.used > self.limit and len(self._items) > 1:
            self.used -= self._items.popitem(last=False)[1][1]


@contextlib.contextmanager
def _naming(row: Mapping[str, Any] | None, source: Any) -> Iterator[None]:
    """Say in an error about a clip which row it belongs to."""
    try:
        yield
    except KitError as error:
        if row is None:
            raise
        # A frame list names its field itself.
        field = "field video: " if isinstance(source, bytes | str | Path) and source else ""
        message = f"row {row.get('question_id')}: {field}{error}"
        raise (MediaError(message, error.kind) if isinstance(error, MediaError) else KitError(message)) from None


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def without_nulls(messages: list[dict]) -> list[dict]:
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
