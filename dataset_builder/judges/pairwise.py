"""The pair judge: two answers side by side, in both orders. A verdict that flips with the order is a tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataset_builder.judges.asking import Asker, frames_problem, model_name, sent_along, shown_frames
from dataset_builder.judges.base import JudgeItem, settings_hash
from dataset_builder.judges.parsing import CHOICE_SCHEMA, parse_choice
from dataset_builder.judges.prompts import CHOICE_SYSTEM, choice_prompt, prompt_hash
from dataset_builder.models.base import ChatReply, ChatRequest, Decoding
from dataset_builder.settings import ConfirmConfig

if TYPE_CHECKING:
    from dataset_builder.models import CallCache, ChatModel

_CALLS = 64  # pairs that an endpoint gets at once; its own concurrency bounds what is on the wire


@dataclass(frozen=True)
class PairVerdict:
    """What the pair judge says of two answers.

    Attributes:
        winner: ``first``, ``second`` or ``tie``; None when a reply could not be had.
        flipped: the two orders name different winners, which counts as a tie.
        error: one line, or None.
        reasons: the judge's, in the two orders.
        places: which place won in each of the two orders, ``A``, ``B`` or ``tie``; empty with an error.
    """

    winner: str | None
    flipped: bool = False
    error: str | None = None
    reasons: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    @property
    def confirmed(self) -> bool:
        """Whether the first answer won in both orders."""
        return self.winner == "first"


class PairJudge:
    """Compares two answers to one question about one video, in both orders.

    Args:
        model: an endpoint or a local checkpoint.
        name: how reports call it.
        num_frames: evenly spaced frames it looks at.
        use_references: whether it reads the references.
        max_new_tokens: a verdict that is cut here cannot be read.
        max_retries: repetitions of a local model after a reply that is no verdict.
    """

    kind = "pairwise"

    def __init__(
        self,
        model: ChatModel,
        name: str = "confirm",
        num_frames: int = 8,
        use_references: bool = True,
        max_new_tokens: int = 128,
        max_retries: int = 2,
    ):
        self.model, self.name, self.num_frames = model, name, num_frames
        self.use_references = use_references
        self.is_endpoint, self.revision, self.model_name = model.is_endpoint, model.revision, model_name(model)
        self.asker = Asker(model, Decoding(0.0, 1.0, max_new_tokens, num_frames), max_retries, parse_choice)
        self.settings = {
            "kind": "pairwise",
            "prompt_hash": prompt_hash(),
            "frames": num_frames,
            "references": use_references,
            "max_new_tokens": max_new_tokens,
            "template_hash": model.template_hash,
            **(sent_along(model) if self.is_endpoint else {"max_retries": max_retries}),
        }
        self.settings_hash = settings_hash(self.settings)

    @property
    def reported(self) -> set[str]:
        """What an endpoint said so far that it is, replies that were kept included."""
        return self.asker.reported

    def confirm(self, first: JudgeItem, second: JudgeItem) -> PairVerdict:
        """Whether the first item's answer is better than the second's; both are on the same question and video."""
        return self.compare_many([(first, second)])[0]

    async def aconfirm(self, first: JudgeItem, second: JudgeItem) -> PairVerdict:
        """:meth:`confirm` through an endpoint."""
        problem = self._problem(first, second)
        if problem:
            return PairVerdict(None, error=problem)
        return _verdict([await self.asker.aask(request) for request in self._requests(first, second)])

    def compare_many(self, pairs: Sequence[tuple[JudgeItem, JudgeItem]], progress: bool = False) -> list[PairVerdict]:
        """Compare pairs of answers: a local model in batches, an endpoint with many calls at once.

        Args:
            pairs: two items each, on the same question and video.
            progress: show a bar.

        Returns:
            One verdict a pair, in order; it does not depend on the other pairs. :func:`pair_summary` counts them.

        Raises:
            KitError: the endpoint cannot be asked at all, or its spend limit is reached.
        """
        from tqdm import tqdm

        from dataset_builder.stages.clips import batch_size

        verdicts: list[PairVerdict] = [
            PairVerdict(None, error=problem) if problem else None
            for problem in (self._problem(*pair) for pair in pairs)
        ]
        open_ = [place for place, verdict in enumerate(verdicts) if verdict is None]
        size = _CALLS
        if not self.is_endpoint:  # both orders of a pair go through the model together
            size = max(1, batch_size([pairs[place][0].frames for place in open_]) // 2)
        with tqdm(total=len(open_), desc=f"comparing {self.name}", unit="pair", disable=not progress) as bar:
            for start in range(0, len(open_), size):
                chunk = open_[start : start + size]
                replies = self.asker.ask([r for place in chunk for r in self._requests(*pairs[place])])
                for place, first in zip(chunk, range(0, len(replies), 2)):
                    verdicts[place] = _verdict(replies[first : first + 2])
                bar.update(len(chunk))
        return verdicts

    def _problem(self, first: JudgeItem, second: JudgeItem) -> str | None:
        return frames_problem(first, self.num_frames) or frames_problem(second, self.num_frames)

    def _requests(self, first: JudgeItem, second: JudgeItem) -> list[ChatRequest]:
        references = first.answers if self.use_references else []
        frames = shown_frames(first, self.num_frames)
        orders = ((first.response, second.response), (second.response, first.response))
        return [
            ChatRequest(choice_prompt(first.question, references, *order), frames, CHOICE_SYSTEM, CHOICE_SCHEMA)
            for order in orders
        ]


def _verdict(replies: list[ChatReply]) -> PairVerdict:
    for reply in replies:
        if reply.error:
            return PairVerdict(None, error=reply.error)
    choices = [parse_choice(reply.text) for reply in replies]
    named = {"A": "first", "B": "second", "tie": "tie"}, {"A": "second", "B": "first", "tie": "tie"}
    winners = [names[choice.better] for names, choice in zip(named, choices)]
    reasons = tuple(choice.reason for choice in choices)
    places = tuple(choice.better for choice in choices)
    if winners[0] == winners[1]:
        return PairVerdict(winners[0], reasons=reasons, places=places)
    return PairVerdict("tie", flipped="tie" not in winners, reasons=reasons, places=places)


def pair_summary(verdicts: Sequence[PairVerdict]) -> dict[str, Any]:
    """Counts over verdicts on pairs.

    Returns:
        ``pairs``; ``first``, ``second`` and ``tie``, by winner (a flip is a tie); ``flips``; ``errors``; and
        ``flip_rate``, the share of flips among the pairs with two readable verdicts (None without any).
    """
    errors = sum(verdict.winner is None for verdict in verdicts)
    flips = sum(verdict.flipped for verdict in verdicts)
    return {
        "pairs": len(verdicts),
        **{winner: sum(v.winner == winner for v in verdicts) for winner in ("first", "second", "tie")},
        "flips": flips,
        "errors": errors,
        "flip_rate": flips / (len(verdicts) - errors) if len(verdicts) > errors else None,
    }


def make_pair_judge(config: ConfirmConfig, cache: CallCache | None = None, device: str = "auto") -> PairJudge:
    """The pair judge of a configuration.

    Raises:
        KitError: the model cannot be loaded, or the endpoint's key is missing.
    """
    from dataset_builder.models import open_model

    return PairJudge(
        open_model(config, cache, device),
        name=config.name,
        num_frames=config.num_frames,
        use_references=config.use_references,
        max_new_tokens=config.max_new_tokens,
        max_retries=config.max_retries,
    )
