"""The judge that knows the right answer: match and word overlap with the question's references."""

from __future__ import annotations

from dataset_builder.judges.base import Criterion, JudgeItem, Score, error_scores, make_scores, settings_hash
from dataset_builder.text import NORMALISATION, normalise, token_f1


class ReferenceJudge:
    """Scores ``match`` (1 when the answer equals a reference after normalisation, else 0) and ``f1`` (best word F1).

    It needs no video and no model. A question without references gives error Scores.

    Args:
        name: how the dataset calls it.
        weight: its weight in the aggregate.
    """

    kind = "reference"
    model_name = None
    criteria = (Criterion("match"), Criterion("f1"))
    needs_frames = False
    is_endpoint = False
    num_frames = 0
    revision = "1"  # raise with every change of what it scores

    def __init__(self, name: str = "reference", weight: float = 1.0):
        self.name, self.weight, self.reported = name, weight, set()
        self.settings = {"kind": "reference", "normalisation": list(NORMALISATION), "over_references": "maximum"}
        self.settings_hash = settings_hash(self.settings)

    def score(self, items: list[JudgeItem]) -> list[list[Score]]:
        """See :class:`~dataset_builder.judges.base.Judge`."""
        return [self._one(item) for item in items]

    def _one(self, item: JudgeItem) -> list[Score]:
        if not item.answers:
            return error_scores(self, "the question has no reference answer")
        match = float(any(_same(item.response, answer) for answer in item.answers))
        f1 = max(token_f1(item.response, answer) for answer in item.answers)
        return make_scores(self, [match, max(match, f1)])


def _same(response: str, answer: str) -> bool:
    """Equal after normalisation; what normalises to nothing ("?") is compared as it stands."""
    left, right = normalise(response), normalise(answer)
    return left == right if left or right else bool(response.strip()) and response.strip() == answer.strip()
