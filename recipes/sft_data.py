"""Data of the SFT recipe: question rows grouped by clip and packed into one sequence, labels on answers only."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dataset_builder.errors import KitError, RowError
from recipes.video.encoding import ClipEncoder

IGNORE = -100  # label of tokens that carry no loss


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


class Conversations:
    """Turns clips and what is asked about them into labelled sequences.

    Args:
        encoder: of the model that is trained; each distinct clip and prompt is encoded once.
    """

    def __init__(self, encoder: ClipEncoder):
        self.encoder = encoder
        self._texts: dict[str, list[int]] = {}

    def encode(self, video: Path, turns: list[Turn]) -> tuple[dict[str, list[int]], dict[str, torch.Tensor]]:
        """All turns as one sequence.

        Returns:
            (``input_ids``, ``labels`` (IGNORE outside the answers and their end tokens) and, where the family has
            them, token types, lists of equal length; the clip's own inputs).
        """
        said = [("user", turns[0].question)]
        rendered = self._prompt(said)
        first = self.encoder.encode_texts([(self.encoder.digest(video), video, rendered)])[0]
        ids, labels = list(first.ids), [IGNORE] * len(first.ids)
        for number, turn in enumerate(turns):
            said.append(("assistant", turn.answer))
            answered = self._prompt(said, generation=False)
            if not answered.startswith(rendered):
                raise KitError("this chat template rewrites earlier turns, so answers cannot be told from prompts")
            answer = self._tokens(answered[len(rendered) :])
            ids += answer
            labels += answer
            if number + 1 < len(turns):
                said.append(("user", turns[number + 1].question))
                rendered = self._prompt(said)
                question = self._tokens(rendered[len(answered) :])
                ids += question
                labels += [IGNORE] * len(question)
        types = {name: kinds + [0] * (len(ids) - len(kinds)) for name, kinds in first.types.items()}
        return {"input_ids": ids, "labels": labels, **types}, first.vision

    def _tokens(self, text: str) -> list[int]:
        if text not in self._texts:
            self._texts[text] = self.encoder.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._texts[text]

    def _prompt(self, turns: list[tuple[str, str]], generation: bool = True) -> str:
        """Render turns with the chat template; the clip stands before the first text."""
        messages = []
        for number, (role, text) in enumerate(turns):
            video = [{"type": "video"}] if number == 0 else []
            messages.append({"role": role, "content": [*video, {"type": "text", "text": text}]})
        return self.encoder.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)


class SFTCollator:
    """Packs the questions of each clip, in a fresh order and with their chances, and pads on the right.

    Args:
        encoder: of the model that is trained.
        seed: of the orders and the draws.
        pack: one multi-turn sequence per clip; otherwise one per question, so that a batch has more rows than clips.
    """

    def __init__(self, encoder: ClipEncoder, seed: int = 0, pack: bool = True):
        self.encoder, self.rng, self.pack = encoder, random.Random(f"sft-{seed}"), pack
        self.conversations = Conversations(encoder)
        self._made, self._after = 0, deque(maxlen=0)

    def remember(self, batches: int) -> None:
        """Keep the states of the draws after so many last batches, for :meth:`state_after`."""
        self._after = deque(self._after, maxlen=batches)

    def state_after(self, batches: int) -> list | None:
        """The state of the draws when so many batches had been made; None if it is not known (any more)."""
        return next((state for made, state in self._after if made == batches), None)

    def go_on(self, batches: int, state: list) -> None:
        """Draw on from a state that :meth:`state_after` gave."""
        version, numbers, gauss = state
        self.rng.setstate((version, tuple(numbers), gauss))
        self._made = batches

    def __call__(self, clips: list[Clip]) -> dict[str, torch.Tensor]:
        """Returns: ``input_ids, attention_mask, labels`` [B, L] and the clips' own inputs, concatenated."""
        rows, pixels = [], []
        for clip in clips:
            turns = [turn for turn in clip.turns if self.rng.random() < turn.weight] or [self.rng.choice(clip.turns)]
            self.rng.shuffle(turns)
            for said in [turns] if self.pack else [[turn] for turn in turns]:
                row, vision = self.conversations.encode(clip.video, said)
                rows.append(row)
                pixels.append(vision)
        length = max(len(row["input_ids"]) for row in rows)
        pad = {"input_ids": self.encoder.pad_token_id, "labels": IGNORE}  # token types are padded with 0
        batch = {
            key: torch.tensor([row[key] + [pad.get(key, 0)] * (length - len(row[key])) for row in rows])
            for key in rows[0]
        }
        sizes = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(length)[None] < sizes[:, None]).long()
        for key in pixels[0]:
            batch[key] = torch.cat([p[key] for p in pixels])
        self._made += 1
        self._after.append((self._made, self.rng.getstate()))
        return batch
