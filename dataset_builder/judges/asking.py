"""What judges that ask a chat model have in common: what they show, how often they ask, what they note."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dataset_builder.judges.base import Criterion, JudgeItem, Score, error_scores, make_scores, settings_hash
from dataset_builder.models.base import BadReply, ChatReply, ChatRequest, Decoding, served_name

if TYPE_CHECKING:
    from dataset_builder.media import Frames
    from dataset_builder.models import ChatModel, EndpointChatModel

WARMER = 0.7  # temperature of a repetition: a greedy model would say the same again
_SENT = ("frames", "max_side", "structured", "send_seed", "extra_body")


class Asker:
    """Asks a model for replies that can be read, again where one cannot.

    What a request gets does not depend on which others are asked, in which order or in which batches: requests that
    are alike are asked once, and a local model that samples is asked one by one.

    Args:
        model: an endpoint or a local checkpoint.
        decoding: of the first attempt.
        max_retries: repetitions of a local model (an endpoint has its own), at temperature 0.7 or more.
        check: raises :class:`BadReply` for a text that is no verdict.
    """

    def __init__(self, model: ChatModel, decoding: Decoding, max_retries: int, check: Callable[[str], Any]):
        self.model, self.decoding, self.max_retries, self.check = model, decoding, max_retries, check
        self.reported: set[str] = set()

    def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """One reply a request, in order; one with ``error`` where no attempt gave one that can be read."""
        places: dict[tuple, list[int]] = {}
        for place, request in enumerate(requests):
            seen = None if request.frames is None else self._seen(request.frames)
            places.setdefault((request.question, request.system, seen), []).append(place)
        unique = [requests[found[0]] for found in places.values()]
        if self.model.is_endpoint:
            replies = self.model.generate(unique, self.decoding, seed=0, check=self.check)
        else:
            replies = self._ask_local(unique)
        whole: list[ChatReply] = [None] * len(requests)
        for found, reply in zip(places.values(), replies, strict=True):
            for place in found:
                whole[place] = self._noted(reply)
        return whole

    async def aask(self, request: ChatRequest) -> ChatReply:
        """One request, through an endpoint."""
        return self._noted(await self.model.areply(request, self.decoding, seed=0, check=self.check))

    def _seen(self, frames: Frames) -> Any:
        """What tells clips apart: their content where it is hashed anyway, else the object."""
        return frames.digest if self.model.is_endpoint else id(frames)

    def _noted(self, reply: ChatReply) -> ChatReply:
        if reply.model:
            self.reported.add(served_name(reply.model))
        return reply

    def _ask_local(self, requests: list[ChatRequest]) -> list[ChatReply]:
        replies: list[ChatReply] = [None] * len(requests)
        open_ = list(range(len(requests)))
        for attempt in range(self.max_retries + 1):
            warmer = max(WARMER, self.decoding.temperature) if attempt else self.decoding.temperature
            decoding = replace(self.decoding, temperature=warmer)
            for places in [open_] if warmer == 0 else [[place] for place in open_]:
                found = self.model.generate([requests[place] for place in places], decoding, attempt)
                for place, reply in zip(places, found, strict=True):
                    replies[place] = self._checked(reply)
            open_ = [place for place in open_ if replies[place].error]
            if not open_:
                break
        for place in open_:
            reason = f"no usable verdict in {self.max_retries + 1} attempts; the last: {replies[place].error}"
            replies[place] = replace(replies[place], text="", error=reason)
        return replies

    def _checked(self, reply: ChatReply) -> ChatReply:
        try:
            self.check(reply.text)
        except BadReply as error:
            return replace(reply, error=str(error))
        return reply


class AskingJudge:
    """A judge that asks a chat model about one answer at a time.

    A kind of judge says what it asks (:meth:`request`), how it reads a reply (:meth:`read`) and what that comes to
    (:meth:`values`). A reply that is no verdict is asked for again; then every criterion is an error without a score.

    Args:
        model: an endpoint or a local checkpoint.
        name: how the dataset calls it.
        weight: its weight in the aggregate.
        num_frames: evenly spaced frames it looks at, more are thinned out; 0 shows none.
        max_new_tokens: a verdict that is cut here cannot be read.
        temperature: of the first attempt; 0 is greedy.
        max_retries: repetitions of a local model (an endpoint has its own).
        settings: what else decides a score: the wording, the criteria.
    """

    kind: str
    criteria: tuple[Criterion, ...]

    def __init__(
        self,
        model: ChatModel,
        name: str,
        weight: float,
        num_frames: int,
        max_new_tokens: int,
        temperature: float,
        max_retries: int,
        settings: dict[str, Any],
    ):
        self.model, self.name, self.weight, self.num_frames = model, name, weight, num_frames
        self.needs_frames = num_frames > 0
        self.is_endpoint, self.revision, self.model_name = model.is_endpoint, model.revision, model_name(model)
        decoding = Decoding(temperature, 1.0, max_new_tokens, max(1, num_frames))
        self.asker = Asker(model, decoding, max_retries, self.read)
        self.settings = {
            "kind": self.kind,
            "criteria": {criterion.name: [criterion.low, criterion.high] for criterion in self.criteria},
            "decoding": {"temperature": temperature, "max_new_tokens": max_new_tokens},
            "template_hash": model.template_hash,
            **({"frames": {"count": num_frames, "sampling": "uniform, first and last included"}} if num_frames else {}),
            **(sent_along(model) if self.is_endpoint else {"max_retries": max_retries}),
            **settings,
        }
        self.settings_hash = settings_hash(self.settings)

    @property
    def reported(self) -> set[str]:
        """What an endpoint said so far that it is, replies that were kept included."""
        return self.asker.reported

    def request(self, item: JudgeItem) -> ChatRequest:
        """What the model is asked about an item."""
        raise NotImplementedError

    @staticmethod
    def read(text: str) -> Any:
        """Read a reply.

        Raises:
            BadReply: it is no verdict.
        """
        raise NotImplementedError

    def values(self, verdict: Any, probability: float | None) -> tuple[Sequence[float], str | None]:
        """The value of each criterion, and the reason."""
        raise NotImplementedError

    def problem(self, item: JudgeItem) -> str | None:
        """Why an item cannot be judged, or None."""
        return frames_problem(item, self.num_frames)

    def probabilities(self, requests: list[ChatRequest], replies: list[ChatReply]) -> list[float | None]:
        """How sure the model is of each reply, where the judge asks for that."""
        return [None] * len(replies)

    def score(self, items: list[JudgeItem]) -> list[list[Score]]:
        """See :class:`~dataset_builder.judges.base.Judge`."""
        problems = [self.problem(item) for item in items]
        requests = [self.request(item) for item, problem in zip(items, problems) if not problem]
        replies = self.asker.ask(requests) if requests else []
        found = map(self._scores, replies, self.probabilities(requests, replies))
        return [error_scores(self, problem) if problem else next(found) for problem in problems]

    async def ascore(self, item: JudgeItem) -> list[Score]:
        """One item, through an endpoint."""
        problem = self.problem(item)
        if problem:
            return error_scores(self, problem)
        request = self.request(item)
        reply = await self.asker.aask(request)
        return self._scores(reply, self.probabilities([request], [reply])[0])

    def _scores(self, reply: ChatReply, probability: float | None) -> list[Score]:
        if reply.error:
            return error_scores(self, reply.error)
        values, reason = self.values(self.read(reply.text), probability)
        return make_scores(self, values, rationale=reason)


def shown_frames(item: JudgeItem, num_frames: int) -> Frames | None:
    """At most so many of an item's frames; the same object where nothing is left out, for it is encoded only once."""
    if num_frames == 0:
        return None
    return item.frames if len(item.frames) <= num_frames else item.frames.thin(num_frames)


def frames_problem(item: JudgeItem, num_frames: int) -> str | None:
    """Why a judge that looks at so many frames cannot judge an item, or None."""
    if num_frames and item.frames is None:
        return "the video's frames are missing"
    if not item.response.strip():
        return "there is no answer to judge"
    if num_frames == 0:
        return None
    seen, total = len(item.frames), item.frames.total
    if seen < min(num_frames, total):
        return f"got {seen} of the {min(num_frames, total)} frames that this judge looks at"
    return None


def sent_along(model: EndpointChatModel) -> dict[str, Any]:
    """What of an endpoint's settings decides how a judge there sees a request, as part of the judge's settings."""
    sent = {name: getattr(model.config, name) for name in _SENT}
    if model.config.logprobs:  # else left out: verdicts from before the setting are the same verdicts
        sent["logprobs"] = model.config.logprobs
    return {"endpoint": sent}


def model_name(model: ChatModel) -> str:
    """What a model was asked for as: a Hub id, a folder's name or its name at an endpoint."""
    return getattr(model, "asked_as", model.name)
