"""The judges of earlier work, for figures that can be laid beside theirs. Neither sees the video.

They exist for comparability only. What is known to be wrong with them: they cannot tell a right answer from a wrong one
where the reference is incomplete or wrong; they like long and confident answers; the same predictions moved from 82.0
to 70.8 and 77.6 between versions of the served model that judged them; and their own readers guessed (4.8 became 4, a
"yes" was found anywhere, all numbers of a reply were averaged, a refusal counted as the lowest score). The wording here
is this kit's own, and replies are read strictly, so figures agree with published ones in protocol, not digit by digit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataset_builder.judges.asking import AskingJudge
from dataset_builder.judges.base import Criterion, JudgeItem
from dataset_builder.judges.legacy_parsing import HOUND_HIGH, HOUND_LOW, Match, parse_hound, parse_video_chatgpt
from dataset_builder.judges.prompts import (
    CHATGPT_SYSTEM,
    HOUND_SYSTEM,
    chatgpt_prompt,
    hound_prompt,
    prompt_hash,
)
from dataset_builder.models.base import ChatRequest

if TYPE_CHECKING:
    from dataset_builder.models import ChatModel

HOUND_WORDS = 256  # of an answer that the judge reads
HOUND_RIGHT = 3  # from this score on an answer counts as right


class VideoChatGPTJudge(AskingJudge):
    """Video-ChatGPT's protocol: question, reference and answer, text only, to yes or no and a score from 0 to 5.

    Scores ``correct`` (0 or 1) and ``score``. An item without a reference is an error. A reference that misses what
    the video shows makes a right answer wrong here; see the module for what else is wrong with it.

    Args:
        model, name, weight, max_new_tokens, temperature, max_retries: see
            :class:`~dataset_builder.judges.asking.AskingJudge`.
    """

    kind = "video_chatgpt"
    criteria = (Criterion("correct"), Criterion("score", 0, 5))
    read = staticmethod(parse_video_chatgpt)

    def __init__(
        self,
        model: ChatModel,
        name: str = "video_chatgpt",
        weight: float = 1.0,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        max_retries: int = 2,
    ):
        settings = {
            "prompt_hash": prompt_hash(self.kind),
            "system": CHATGPT_SYSTEM,
            "example": chatgpt_prompt("{question}", ["{reference}"], "{answer}"),
        }
        super().__init__(model, name, weight, 0, max_new_tokens, temperature, max_retries, settings)

    def problem(self, item: JudgeItem) -> str | None:
        """Why an item cannot be judged, or None."""
        return super().problem(item) or (None if item.answers else "answers: the question has no reference answer")

    def request(self, item: JudgeItem) -> ChatRequest:
        """What the model is asked about an item."""
        return ChatRequest(chatgpt_prompt(item.question, item.answers, item.response), None, CHATGPT_SYSTEM)

    def values(self, verdict: Match, probability: float | None) -> tuple[tuple[float, float], None]:
        """``correct`` and ``score``; there is no reason."""
        return (float(verdict.correct), verdict.score), None


class HoundJudge(AskingJudge):
    """LLaVA-Hound's protocol: caption, question, reference and answer, text only, to one score from 1 to 5.

    Scores ``correct`` (1 from a score of 3 on, else 0) and ``score``, which folds relevance, accuracy, clarity and
    completeness together, so that a fluent wrong answer can pass. Only the first 256 words of an answer are read. An
    item without a caption or a reference is an error.

    Args:
        model, name, weight, max_new_tokens, temperature, max_retries: see
            :class:`~dataset_builder.judges.asking.AskingJudge`.
    """

    kind = "hound"
    criteria = (Criterion("correct"), Criterion("score", HOUND_LOW, HOUND_HIGH))
    read = staticmethod(parse_hound)

    def __init__(
        self,
        model: ChatModel,
        name: str = "hound",
        weight: float = 1.0,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        max_retries: int = 2,
    ):
        settings = {
            "prompt_hash": prompt_hash(self.kind),
            "system": HOUND_SYSTEM,
            "example": hound_prompt("{caption}", "{question}", ["{reference}"], "{answer}"),
            "answer_words": HOUND_WORDS,
            "right_from": HOUND_RIGHT,
        }
        super().__init__(model, name, weight, 0, max_new_tokens, temperature, max_retries, settings)

    def problem(self, item: JudgeItem) -> str | None:
        """Why an item cannot be judged, or None."""
        if problem := super().problem(item):
            return problem
        if not (item.caption or "").strip():
            return "caption: is missing, and this judge reads it in place of the video"
        return None if item.answers else "answers: the question has no reference answer"

    def request(self, item: JudgeItem) -> ChatRequest:
        """What the model is asked about an item."""
        words = item.response.split()
        answer = item.response if len(words) <= HOUND_WORDS else " ".join(words[:HOUND_WORDS])
        return ChatRequest(hound_prompt(item.caption, item.question, item.answers, answer), None, HOUND_SYSTEM)

    def values(self, verdict: float, probability: float | None) -> tuple[tuple[float, float], None]:
        """``correct`` and ``score``; there is no reason."""
        return (float(verdict >= HOUND_RIGHT), verdict), None
