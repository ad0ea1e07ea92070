"""The judge that looks and reasons: a vision-language model that scores four criteria from 1 to 5."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataset_builder.judges.asking import AskingJudge, shown_frames
from dataset_builder.judges.base import Criterion, JudgeItem
from dataset_builder.judges.parsing import CRITERIA, HIGH, LOW, VERDICT_SCHEMA, Verdict, parse_verdict
from dataset_builder.judges.prompts import VERDICT_SYSTEM, prompt_hash, verdict_prompt
from dataset_builder.models.base import ChatRequest

if TYPE_CHECKING:
    from dataset_builder.models import ChatModel


class VLMJudge(AskingJudge):
    """Scores relevance, accuracy, completeness and clarity of an answer, each from 1 to 5, with a reason.

    The model sees the frames, the question, the references if it may, and the answer between marked lines; never who
    gave it.

    Args:
        model, name, weight, num_frames, max_new_tokens, temperature, max_retries: see
            :class:`~dataset_builder.judges.asking.AskingJudge`.
        use_references: whether it reads the references.
    """

    kind = "vlm"
    criteria = tuple(Criterion(name, LOW, HIGH) for name in CRITERIA)
    read = staticmethod(parse_verdict)

    def __init__(
        self,
        model: ChatModel,
        name: str = "vlm",
        weight: float = 1.0,
        num_frames: int = 8,
        use_references: bool = True,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        max_retries: int = 2,
    ):
        self.use_references = use_references
        settings = {
            "prompt_hash": prompt_hash(),
            "system": VERDICT_SYSTEM,
            "example": verdict_prompt("{question}", ["{reference}"] if use_references else [], "{answer}"),
            "criteria": {criterion: [LOW, HIGH] for criterion in CRITERIA},
        }
        super().__init__(model, name, weight, num_frames, max_new_tokens, temperature, max_retries, settings)

    def request(self, item: JudgeItem) -> ChatRequest:
        """What the model is asked about an item."""
        references = item.answers if self.use_references else []
        return ChatRequest(
            question=verdict_prompt(item.question, references, item.response),
            frames=shown_frames(item, self.num_frames),
            system=VERDICT_SYSTEM,
            schema=VERDICT_SCHEMA,
        )

    def values(self, verdict: Verdict, probability: float | None) -> tuple[tuple[float, ...], str]:
        """The four scores, and the reason."""
        return verdict.scores, verdict.reason
