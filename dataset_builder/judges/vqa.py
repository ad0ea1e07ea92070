"""The judge of right and wrong: whether an answer to a question about a video is correct, how good it is, and why."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

from dataset_builder.judges.asking import AskingJudge, shown_frames
from dataset_builder.judges.base import Criterion, JudgeItem
from dataset_builder.judges.parsing import VQA_HIGH, VQA_LOW, VQA_SCHEMA, VQAVerdict, correct_place, parse_vqa
from dataset_builder.judges.prompts import prompt_hash, vqa_prompt, vqa_system
from dataset_builder.models.base import ChatReply, ChatRequest

if TYPE_CHECKING:
    from dataset_builder.models import ChatModel

WORDS = ("yes", "no")
BEGINNING = '{"correct": "'  # of every reply; the word that comes next is the verdict


class VQAJudge(AskingJudge):
    """Scores ``correct`` (0 to 1) and ``score`` (0 to 5) with a reason.

    The model sees the frames, the question, the references if it may (an answer may be right beyond them: the frames
    decide), and the answer between marked lines; never who gave it. ``correct`` is 1 for yes and 0 for no; where the
    model's probability of yes can be had and agrees with the word that it wrote, it is that probability. A local
    model's is P(yes) / (P(yes) + P(no)) behind ``{"correct": "``; an endpoint's is read from the log-probabilities of
    its reply, which it has to be asked for (``logprobs`` of the endpoint's settings).

    Args:
        model, name, weight, max_new_tokens, temperature, max_retries: see
            :class:`~dataset_builder.judges.asking.AskingJudge`.
        num_frames: evenly spaced frames it looks at; 0 is a judge that reads text only, a baseline that tells how much
            looking is worth.
        use_references: whether it reads the references.
        probability: whether to look for the probability.
    """

    kind = "vqa"
    criteria = (Criterion("correct"), Criterion("score", VQA_LOW, VQA_HIGH))
    read = staticmethod(parse_vqa)

    def __init__(
        self,
        model: ChatModel,
        name: str = "vqa",
        weight: float = 1.0,
        num_frames: int = 8,
        use_references: bool = True,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        max_retries: int = 2,
        probability: bool = True,
    ):
        self.use_references, self.probability = use_references, probability
        self.system = vqa_system(num_frames > 0)
        references = ["{reference}"] if use_references else []
        settings = {
            "prompt_hash": prompt_hash(self.kind),
            "system": self.system,
            "example": vqa_prompt("{question}", references, "{answer}", num_frames > 0),
            "probability": probability,
        }
        super().__init__(model, name, weight, num_frames, max_new_tokens, temperature, max_retries, settings)

    def request(self, item: JudgeItem) -> ChatRequest:
        """What the model is asked about an item."""
        references = item.answers if self.use_references else []
        return ChatRequest(
            question=vqa_prompt(item.question, references, item.response, self.needs_frames),
            frames=shown_frames(item, self.num_frames),
            system=self.system,
            schema=VQA_SCHEMA,
        )

    def values(self, verdict: VQAVerdict, probability: float | None) -> tuple[tuple[float, float], str]:
        """``correct``, ``score``, and the reason."""
        correct = float(verdict.correct)
        if probability is not None and (probability >= 0.5) == verdict.correct:
            correct = probability
        return (correct, verdict.score), verdict.reason

    def probabilities(self, requests: list[ChatRequest], replies: list[ChatReply]) -> list[float | None]:
        """P(yes) of each reply that is a verdict; None where it cannot be had."""
        if not self.probability:
            return [None] * len(replies)
        if self.is_endpoint:
            return [None if reply.error else spoken_probability(reply) for reply in replies]
        found: list[float | None] = [None] * len(replies)
        places = [place for place, reply in enumerate(replies) if not reply.error]
        ask = getattr(self.model, "choice_probability", None)
        if ask is not None and places:
            rows = ask([requests[place] for place in places], WORDS, beginning=BEGINNING)  # [N, 2]
            for place, row in zip(places, rows, strict=True):
                found[place] = float(row[0])
        return found


def spoken_probability(reply: ChatReply) -> float | None:
    """P(yes) / (P(yes) + P(no)) at the place of a reply's verdict, from an endpoint's log-probabilities.

    None when the reply has none, or when the likeliest tokens there do not hold both words: then the word that was
    written is all that is known.
    """
    if not reply.logprobs:
        return None
    place = correct_place("".join(entry[0] for entry in reply.logprobs))
    if place is None:
        return None
    number = 0  # of the token that holds the word's first letter
    while place >= len(reply.logprobs[number][0]):
        place -= len(reply.logprobs[number][0])
        number += 1
        if number == len(reply.logprobs):
            return None
    token, logprob, others = reply.logprobs[number]
    opening = token[:place]  # what the token holds before the word, such as the quotation mark
    mass = dict.fromkeys(WORDS, 0.0)
    for text, value in {**{text: value for text, value in others}, token: logprob}.items():
        word = _word_of(text[len(opening) :]) if text.startswith(opening) else None
        if word is not None:
            mass[word] += exp(min(0.0, value))
    if not all(mass.values()):
        return None
    return mass["yes"] / (mass["yes"] + mass["no"])


def _word_of(text: str) -> str | None:
    """Which of the words a token begins, or is, with what closes it behind it."""
    said, closed, _ = text.lower().partition('"')
    for word in WORDS:
        if said == word or (said and not closed and word.startswith(said)):
            return word
    return None
