"""Data of the SFT recipe: question rows grouped by clip and packed into one sequence, labels on answers only."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dataset_builder.errors import KitError, RowError
from dataset_builder.media import Frames, sample_frames
from dataset_builder.models.local import video_inputs

IGNORE = -100  # label of tokens that carry no loss
TOKEN_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass
class Turn:
    """One question about a clip, its answer, and the chance that an epoch shows it."""

    question: str
    answer: str
    weight: float = 1.0


@dataclass
class Clip:
    """A video with all that is asked about it."""

    video: Path
    turns: list[Turn] = field(default_factory=list)


def read_clips(questions: str | Path, videos: str | Path, splits: Iterable[str] | None = None) -> list[Clip]:
    """Read JSONL rows ``{"video", "question", "answer", "weight"?, "split"?}`` and group them by video.

    Args:
        questions: the JSONL file.
        videos: the folder the rows' ``video`` names are relative to.
        splits: keep only rows of these splits; None keeps all.

    Raises:
        RowError: for a row that is no JSON object, lacks a field, or names a video that is not there.
    """
    clips: dict[str, Clip] = {}
    with open(questions, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise RowError(questions, number, None, "is not UTF-8 text") from error
            except json.JSONDecodeError as error:
                raise RowError(questions, number, None, f"is not JSON ({error.msg})") from error
            for key in ("video", "question", "answer"):
                if not isinstance(row, dict) or not isinstance(row.get(key), str):
                    raise RowError(questions, number, key, "is missing or not text")
            weight = row.get("weight", 1.0)
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
                raise RowError(questions, number, "weight", f"is {weight!r}; it must be a number from 0 to 1")
            if splits is None or row.get("split") in splits:
                clip = clips.setdefault(row["video"], Clip(Path(videos) / row["video"]))
                if not clip.video.is_file():
                    raise RowError(questions, number, "video", f"there is no file {clip.video}")
                clip.turns.append(Turn(row["question"], row["answer"], float(weight)))
    return list(clips.values())


class ClipEncoder:
    """Encodes clips and prompts with a checkpoint's own processor, each distinct thing once.

    What a clip looks like to the model is computed once per clip; the token ids of a prompt depend on the clip's shape
    and times only, so they are computed once per distinct (shape, times, text).

    Args:
        processor: with a chat template and a video processor.
        num_frames: frames sampled from each clip.
        keep: how many encoded clips to hold in memory.
    """

    def __init__(self, processor, num_frames: int = 8, keep: int = 4096):
        self.processor, self.num_frames, self.keep = processor, num_frames, keep
        self._frames: dict[Path, Frames] = {}
        self._pixels: dict[Path, dict[str, torch.Tensor]] = {}
        self._tokens: dict[tuple, dict[str, list[int]]] = {}
        self._texts: dict[tuple, list[int]] = {}

    def frames(self, video: Path) -> Frames:
        """The clip's frames, decoded once."""
        if video not in self._frames:
            self._frames[video] = sample_frames(video, self.num_frames)
            if len(self._frames) > self.keep:
                self._frames.pop(next(iter(self._frames)))
        return self._frames[video]

    def pixels(self, video: Path) -> dict[str, torch.Tensor]:
        """The clip's model inputs besides tokens; every tensor's first dimension counts patches, frames or clips."""
        if video not in self._pixels:
            encoded = self._encode(self.frames(video), self._prompt([("user", "")]))
            self._pixels[video] = {k: torch.as_tensor(v) for k, v in encoded.items() if k not in TOKEN_KEYS}
            if len(self._pixels) > self.keep:
                self._pixels.pop(next(iter(self._pixels)))
        return self._pixels[video]

    def prompt_tokens(self, video: Path, question: str) -> dict[str, list[int]]:
        """Token ids (and modality ids, where the family has them) of the first user turn, clip included."""
        frames = self.frames(video)
        key = (frames.array.shape, frames.fps, tuple(frames.indices), question)
        if key not in self._tokens:
            encoded = self._encode(frames, self._prompt([("user", question)]))
            self._tokens[key] = {
                k: torch.as_tensor(v)[0].tolist() for k, v in encoded.items() if k in ("input_ids", "mm_token_type_ids")
            }
        return self._tokens[key]

    def text_tokens(self, text: str) -> list[int]:
        """Token ids of text that follows the first prompt."""
        if text not in self._texts:
            self._texts[text] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._texts[text]

    def _encode(self, frames: Frames, text: str):
        return self.processor(text=[text], return_tensors="pt", **video_inputs([frames]))

    def _prompt(self, turns: list[tuple[str, str]], generation: bool = True) -> str:
        """Render turns with the chat template; the clip stands before the first text."""
        messages = []
        for number, (role, text) in enumerate(turns):
            video = [{"type": "video"}] if number == 0 else []
            messages.append({"role": role, "content": [*video, {"type": "text", "text": text}]})
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)

    def conversation(self, video: Path, turns: list[Turn]) -> dict[str, list[int]]:
        """All turns as one sequence.

        Returns:
            ``input_ids``, ``labels`` (IGNORE outside the answers and their end tokens) and, where the family has
            them, ``mm_token_type_ids``; lists of equal length.
        """
        first = self.prompt_tokens(video, turns[0].question)
        ids, labels = list(first["input_ids"]), [IGNORE] * len(first["input_ids"])
        said = [("user", turns[0].question)]
        rendered = self._prompt(said)
        for number, turn in enumerate(turns):
            said.append(("assistant", turn.answer))
            answered = self._prompt(said, generation=False)
            if not answered.startswith(rendered):
                raise KitError("this chat template rewrites earlier turns, so answers cannot be told from prompts")
            answer = self.text_tokens(answered[len(rendered) :])
            ids += answer
            labels += answer
            if number + 1 < len(turns):
                said.append(("user", turns[number + 1].question))
                rendered = self._prompt(said)
                question = self.text_tokens(rendered[len(answered) :])
                ids += question
                labels += [IGNORE] * len(question)
        sequence = {"input_ids": ids, "labels": labels}
        if "mm_token_type_ids" in first:
            kinds = first["mm_token_type_ids"]
            sequence["mm_token_type_ids"] = kinds + [0] * (len(ids) - len(kinds))
        return sequence


class SFTCollator:
    """Packs the questions of each clip, in a fresh order and with their chances, and pads on the right.

    Args:
        encoder: of the model that is trained.
        seed: of the orders and the draws.
        pack: one multi-turn sequence per clip; otherwise one per question, so that a batch has more rows than clips.
    """

    def __init__(self, encoder: ClipEncoder, seed: int = 0, pack: bool = True):
        self.encoder, self.rng, self.pack = encoder, random.Random(f"sft-{seed}"), pack

    def __call__(self, clips: list[Clip]) -> dict[str, torch.Tensor]:
        """Returns: ``input_ids, attention_mask, labels`` [B, L] and the clips' own inputs, concatenated."""
        rows, pixels = [], []
        for clip in clips:
            turns = [turn for turn in clip.turns if self.rng.random() < turn.weight] or [self.rng.choice(clip.turns)]
            self.rng.shuffle(turns)
            for said in [turns] if self.pack else [[turn] for turn in turns]:
                rows.append(self.encoder.conversation(clip.video, said))
                pixels.append(self.encoder.pixels(clip.video))
        length = max(len(row["input_ids"]) for row in rows)
        pad = {"input_ids": self.encoder.processor.tokenizer.pad_token_id, "labels": IGNORE, "mm_token_type_ids": 0}
        batch = {
            key: torch.tensor([row[key] + [pad[key]] * (length - len(row[key])) for row in rows]) for key in rows[0]
        }
        sizes = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(length)[None] < sizes[:, None]).long()
        for key in pixels[0]:
            batch[key] = torch.cat([p[key] for p in pixels])
        return batch
