"""The pair judge: two answers side by side, in both orders. A verdict that flips with the order is a tie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataset_builder.judges.base import JudgeItem, settings_hash
from dataset_builder.judges.parsing import CHOICE_SCHEMA, parse_choice
from dataset_builder.judges.prompts import CHOICE_SYSTEM, choice_prompt, prompt_hash
from dataset_builder.judges.visual import frames_problem, shown_frames
from dataset_builder.judges.vlm import sent_along
from dataset_builder.models.base import BadReply, ChatRequest, Decoding
from dataset_builder.settings import ConfirmConfig

if TYPE_CHECKING:
    from dataset_builder.models import CallCache, ChatModel


@dataclass(frozen=True)
class PairVerdict:
    """What the pair judge says of two answers.

    Attributes:
        winner: ``first``, ``second`` or ``tie``; None when a reply could not be had.
        flipped: the two orders name different winners, which counts as a tie.
        error: one line, or None.
        reasons: the judge's, in the two orders.
    """

    winner: str | None
    flipped: bool = False
    error: str | None = None
    reasons: tuple[str, ...] = ()

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
        self.use_references, self.max_retries = use_references, max_retries
        self.is_endpoint, self.revision = model.is_endpoint, model.revision
        self.decoding = Decoding(0.0, 1.0, max_new_tokens, num_frames)
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

    def confirm(self, first: JudgeItem, second: JudgeItem) -> PairVerdict:
        """Whether the first item's answer is better than the second's; both are on the same question and video."""
        problem = frames_problem(first, self.num_frames) or frames_problem(second, self.num_frames)
        if problem:
            return PairVerdict(None, error=problem)
        replies = [self._ask(request) for request in self._requests(first, second)]
        return _verdict(replies)

    async def aconfirm(self, first: JudgeItem, second: JudgeItem) -> PairVerdict:
        """:meth:`confirm` through an endpoint."""
        problem = frames_problem(first, self.num_frames) or frames_problem(second, self.num_frames)
        if problem:
            return PairVerdict(None, error=problem)
        replies = [
            await self.model.areply(request, self.decoding, seed=0, check=parse_choice)
            for request in self._requests(first, second)
        ]
        return _verdict([(reply.text, reply.error) for reply in replies])

    def _requests(self, first: JudgeItem, second: JudgeItem) -> list[ChatRequest]:
        references = first.answers if self.use_references else []
        frames = shown_frames(first, self.num_frames)
        orders = ((first.response, second.response), (second.response, first.response))
        return [
            ChatRequest(choice_prompt(first.question, references, *order), frames, CHOICE_SYSTEM, CHOICE_SCHEMA)
            for order in orders
        ]

    def _ask(self, request: ChatRequest) -> tuple[str, str | None]:
        if self.is_endpoint:
            reply = self.model.generate([request], self.decoding, seed=0, check=parse_choice)[0]
            return reply.text, reply.error
        error: Any = None
        for attempt in range(self.max_retries + 1):
            warmer = 0.7 if attempt else 0.0  # a greedy model would say the same again
            decoding = Decoding(warmer, 1.0, self.decoding.max_new_tokens, self.num_frames)
            reply = self.model.generate([request], decoding, attempt)[0]
            try:
                parse_choice(reply.text)
                return reply.text, None
            except BadReply as problem:
                error = problem
        return "", f"no usable verdict in {self.max_retries + 1} attempts; the last: {error}"


def _verdict(replies: list[tuple[str, str | None]]) -> PairVerdict:
    for _, error in replies:
        if error:
            return PairVerdict(None, error=error)
    choices = [parse_choice(text) for text, _ in replies]
    named = {"A": "first", "B": "second", "tie": "tie"}, {"A": "second", "B": "first", "tie": "tie"}
    winners = [names[choice.better] for names, choice in zip(named, choices)]
    reasons = tuple(choice.reason for choice in choices)
    if winners[0] == winners[1]:
        return PairVerdict(winners[0], reasons=reasons)
    return PairVerdict("tie", flipped="tie" not in winners, reasons=reasons)


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
