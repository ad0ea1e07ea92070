"""The judge that sees the video: a checkpoint's probability that an answer is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataset_builder.judges.asking import frames_problem, model_name, shown_frames
from dataset_builder.judges.base import Criterion, JudgeItem, Score, error_scores, make_scores, settings_hash
from dataset_builder.judges.fence import harmless

if TYPE_CHECKING:
    from dataset_builder.models import LocalChatModel

# The toy verifier is trained on exactly these words; another wording is another judge (it is in the settings' hash).
VERIFIER_PROMPT = "{question} Answer: {answer} Right, yes or no?"
REFERENCE_PROMPT = "{question} Reference: {references} Answer: {answer} Right, yes or no?"
CHOICES = ("yes", "no")


class VisualJudge:
    """Scores ``correct``: P("yes") / (P("yes") + P("no")) as the first word of the model's reply to the prompt.

    The model sees the question, the answer and the video, and no reference unless it is told to. An item without
    frames, or with fewer than the judge's settings promise, gets an error Score.

    Args:
        model: the checkpoint that judges.
        num_frames: evenly spaced frames it looks at, more are thinned out; 0 shows none, which is a baseline.
        name: how the dataset calls it.
        weight: its weight in the aggregate.
        use_references: whether it reads the references of questions that have some.
    """

    kind = "visual"
    criteria = (Criterion("correct"),)
    is_endpoint = False

    def __init__(
        self,
        model: LocalChatModel,
        num_frames: int = 8,
        name: str = "visual",
        weight: float = 1.0,
        use_references: bool = False,
    ):
        self.model, self.num_frames, self.name, self.weight = model, num_frames, name, weight
        self.needs_frames, self.use_references = num_frames > 0, use_references
        self.revision, self.model_name, self.reported = model.revision, model_name(model), set()
        self.settings = {
            "kind": "visual",
            "prompt": VERIFIER_PROMPT,
            **({"prompt_with_references": REFERENCE_PROMPT} if use_references else {}),
            "choices": list(CHOICES),
            "frames": {"count": num_frames, "sampling": "uniform, first and last included"},
            "decoding": "first-token probabilities, normalised over the choices",
            "template_hash": model.template_hash,
        }
        self.settings_hash = settings_hash(self.settings)

    def score(self, items: list[JudgeItem]) -> list[list[Score]]:
        """See :class:`~dataset_builder.judges.base.Judge`."""
        from dataset_builder.models import ChatRequest  # imports slowly; only judging itself needs it

        result: list[list[Score]] = [[] for _ in items]
        requests, positions = [], []
        for position, item in enumerate(items):
            problem = frames_problem(item, self.num_frames)
            if problem:
                result[position] = error_scores(self, problem)
                continue
            requests.append(ChatRequest(question=self._prompt(item), frames=shown_frames(item, self.num_frames)))
            positions.append(position)
        if requests:
            probability = self.model.choice_probability(requests, CHOICES)  # [N, 2]
            for position, row in zip(positions, probability, strict=True):
                result[position] = make_scores(self, [row[0]])
        return result

    def _prompt(self, item: JudgeItem) -> str:
        said = {"question": item.question, "answer": harmless(item.response)}
        if self.use_references and item.answers:
            return REFERENCE_PROMPT.format(**said, references=" or ".join(map(harmless, item.answers)))
        return VERIFIER_PROMPT.format(**said)
