"""The judge that sees the video: a checkpoint's probability that an answer is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataset_builder.judges.base import Criterion, JudgeItem, Score, error_scores, make_scores, settings_hash
from dataset_builder.judges.fence import harmless

if TYPE_CHECKING:
    from dataset_builder.media import Frames
    from dataset_builder.models import LocalChatModel

# The toy verifier is trained on exactly these words; another wording is another judge (it is in the settings' hash).
VERIFIER_PROMPT = "{question} Answer: {answer} Right, yes or no?"
CHOICES = ("yes", "no")


class VisualJudge:
    """Scores ``correct``: P("yes") / (P("yes") + P("no")) as the first word of the model's reply to the prompt.

    The model sees the question, the answer and the video, and never the reference. An item without frames, or with
    fewer than the judge's settings promise, gets an error Score.

    Args:
        model: the checkpoint that judges.
        num_frames: evenly spaced frames it looks at; more are thinned out.
        name: how the dataset calls it.
        weight: its weight in the aggregate.
    """

    criteria = (Criterion("correct"),)
    needs_frames = True
    is_endpoint = False

    def __init__(self, model: LocalChatModel, num_frames: int = 8, name: str = "visual", weight: float = 1.0):
        self.model, self.num_frames, self.name, self.weight = model, num_frames, name, weight
        self.revision = model.revision
        self.settings = {
            "kind": "visual",
            "prompt": VERIFIER_PROMPT,
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
            prompt = VERIFIER_PROMPT.format(question=item.question, answer=harmless(item.response))
            requests.append(ChatRequest(question=prompt, frames=shown_frames(item, self.num_frames)))
            positions.append(position)
        if requests:
            probability = self.model.choice_probability(requests, CHOICES)  # [N, 2]
            for position, row in zip(positions, probability, strict=True):
                result[position] = make_scores(self, [row[0]])
        return result


def shown_frames(item: JudgeItem, num_frames: int) -> Frames:
    """At most so many of an item's frames; the same object where nothing is left out, for it is encoded only once."""
    return item.frames if len(item.frames) <= num_frames else item.frames.thin(num_frames)


def frames_problem(item: JudgeItem, num_frames: int) -> str | None:
    """Why a judge that looks at so many frames cannot judge an item, or None."""
    if item.frames is None:
        return "the video's frames are missing"
    if not item.response.strip():
        return "there is no answer to judge"
    seen, total = len(item.frames), item.frames.total
    if seen < min(num_frames, total):
        return f"got {seen} of the {min(num_frames, total)} frames that this judge looks at"
    return None
