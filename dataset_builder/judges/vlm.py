"""The judge that looks and reasons: a vision-language model that scores four criteria from 1 to 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataset_builder.judges.base import Criterion, JudgeItem, Score, error_scores, make_scores, settings_hash
from dataset_builder.judges.parsing import CRITERIA, HIGH, LOW, VERDICT_SCHEMA, parse_verdict
from dataset_builder.judges.prompts import VERDICT_SYSTEM, prompt_hash, verdict_prompt
from dataset_builder.judges.visual import frames_problem, shown_frames
from dataset_builder.models.base import BadReply, ChatRequest, Decoding

if TYPE_CHECKING:
    from dataset_builder.models import ChatModel, EndpointChatModel

_SENT = ("frames", "max_side", "structured", "send_seed", "extra_body")


class VLMJudge:
    """Scores relevance, accuracy, completeness and clarity of an answer, each from 1 to 5, with a reason.

    The model sees the frames, the question, the references if it may, and the answer between marked lines; never who
    gave it. A reply that is no verdict is asked for again; then every criterion is an error without a score.

    Args:
        model: an endpoint or a local checkpoint.
        name: how the dataset calls it.
        weight: its weight in the aggregate.
        num_frames: evenly spaced frames it looks at; more are thinned out.
        use_references: whether it reads the references.
        max_new_tokens: a verdict that is cut here cannot be read.
        temperature: of the first attempt; 0 is greedy.
        max_retries: repetitions of a local model (an endpoint has its own), at temperature 0.7 or more: a greedy model
            would say the same again.
    """

    criteria = tuple(Criterion(name, LOW, HIGH) for name in CRITERIA)
    needs_frames = True

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
        self.model, self.name, self.weight, self.num_frames = model, name, weight, num_frames
        self.use_references, self.max_retries = use_references, max_retries
        self.is_endpoint = model.is_endpoint
        self.revision = model.revision
        self.decoding = Decoding(temperature, 1.0, max_new_tokens, num_frames)
        self.settings = {
            "kind": "vlm",
            "prompt_hash": prompt_hash(),
            "system": VERDICT_SYSTEM,
            "example": verdict_prompt("{question}", ["{reference}"] if use_references else [], "{answer}"),
            "criteria": {name: [LOW, HIGH] for name in CRITERIA},
            "frames": {"count": num_frames, "sampling": "uniform, first and last included"},
            "decoding": {"temperature": temperature, "max_new_tokens": max_new_tokens},
            "template_hash": model.template_hash,
            **(sent_along(model) if self.is_endpoint else {"max_retries": max_retries}),
        }
        self.settings_hash = settings_hash(self.settings)

    def request(self, item: JudgeItem) -> ChatRequest:
        """What the model is asked about an item."""
        references = item.answers if self.use_references else []
        return ChatRequest(
            question=verdict_prompt(item.question, references, item.response),
            frames=shown_frames(item, self.num_frames),
            system=VERDICT_SYSTEM,
            schema=VERDICT_SCHEMA,
        )

    def score(self, items: list[JudgeItem]) -> list[list[Score]]:
        """See :class:`~dataset_builder.judges.base.Judge`."""
        problems = [frames_problem(item, self.num_frames) for item in items]
        good = [item for item, problem in zip(items, problems) if not problem]
        found = iter(self._ask(good) if good else [])
        return [error_scores(self, problem) if problem else next(found) for problem in problems]

    async def ascore(self, item: JudgeItem) -> list[Score]:
        """One item, through an endpoint."""
        problem = frames_problem(item, self.num_frames)
        if problem:
            return error_scores(self, problem)
        reply = await self.model.areply(self.request(item), self.decoding, seed=0, check=parse_verdict)
        return error_scores(self, reply.error) if reply.error else self._scores(reply.text)

    def _ask(self, items: list[JudgeItem]) -> list[list[Score]]:
        requests = [self.request(item) for item in items]
        if self.is_endpoint:
            replies = self.model.generate(requests, self.decoding, seed=0, check=parse_verdict)
            return [error_scores(self, r.error) if r.error else self._scores(r.text) for r in replies]
        scores: list[list[Score]] = [[] for _ in items]
        open_, reasons = list(range(len(items))), {}
        for attempt in range(self.max_retries + 1):
            warmer = max(0.7, self.decoding.temperature) if attempt else self.decoding.temperature
            decoding = Decoding(warmer, 1.0, self.decoding.max_new_tokens, self.num_frames)
            replies = self.model.generate([requests[i] for i in open_], decoding, attempt)
            failed = []
            for position, reply in zip(open_, replies, strict=True):
                try:
                    scores[position] = self._scores(reply.text)
                except BadReply as error:
                    failed.append(position)
                    reasons[position] = str(error)
            open_ = failed
            if not open_:
                break
        for position in open_:
            reason = f"no usable verdict in {self.max_retries + 1} attempts; the last: {reasons[position]}"
            scores[position] = error_scores(self, reason)
        return scores

    def _scores(self, text: str) -> list[Score]:
        verdict = parse_verdict(text)
        return make_scores(self, verdict.scores, rationale=verdict.reason)


def sent_along(model: EndpointChatModel) -> dict[str, Any]:
    """What of an endpoint's settings decides how a judge there sees a request, as part of the judge's settings."""
    return {"endpoint": {name: getattr(model.config, name) for name in _SENT}}
