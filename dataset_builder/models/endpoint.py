"""A model behind an OpenAI-compatible endpoint: many calls at once, repeated on faults, never paid for twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any
from weakref import WeakKeyDictionary

from dataset_builder.errors import KitError
from dataset_builder.models.base import BadReply, ChatReply, ChatRequest, Decoding, served_name
from dataset_builder.models.cache import CallCache, Flights
from dataset_builder.models.limits import Pace, Payment, budget_of
from dataset_builder.models.parts import JPEG_QUALITY, frame_parts
from dataset_builder.models.wire import Fault, Refused, Wire, WireReply, endpoint_key, server_name
from dataset_builder.settings import EndpointConfig

Check = Callable[[str], None]
_OVERHEAD = 64  # tokens of a chat template around a request, at most


def account_of(config: EndpointConfig, model: str) -> str:
    """The name under which a call cache books what is spent on a model at an endpoint."""
    return f"{server_name(config)} {model}"


class EndpointChatModel:
    """A served model behind the chat interface.

    Args:
        name: what the dataset calls it.
        model: its name at the endpoint.
        config: where it is served, and within which limits.
        cache: of calls; None keeps nothing and forgets what was spent.
        revision: what to record; by default ``endpoint:MODEL``, for what a server runs is known to the server alone.
        clock: seconds, for the rate limit.
        sleep: waits so many seconds, for the rate limit and between repetitions.

    Raises:
        KitError: the environment variable with the key is not set.
    """

    is_endpoint = True

    def __init__(
        self,
        name: str,
        model: str,
        config: EndpointConfig,
        cache: CallCache | None = None,
        revision: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        endpoint_key(config)  # a missing key is said at once
        self.name, self.model, self.config, self.cache = name, model, config, cache
        self.asked_as = served_name(model)
        self.revision = revision or f"endpoint:{self.asked_as}"
        self.template_hash = "endpoint"  # the server's own
        # Calls to another server are other calls, unless a revision says that the same model answers there.
        self._identity = [revision or server_name(config), model]
        self._flights = cache.flights if cache is not None else Flights()
        self._budget = budget_of(account_of(config, model), cache)
        self._pace = Pace(config.requests_per_minute, clock, sleep)
        self._stopped: str | None = None  # why no call can go well
        self._sleep, self._jitter = sleep, random.Random()
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, _Session] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"EndpointChatModel({self.name!r}, {self.model!r} at {server_name(self.config)})"

    async def areply(
        self, request: ChatRequest, decoding: Decoding, seed: int, check: Check | None = None
    ) -> ChatReply:
        """Ask once, and again while it is worth it.

        Args:
            request: what to ask.
            decoding: how to answer.
            seed: of the sampling; each reply whose content was at fault raises it by one for the next attempt.
            check: raises :class:`BadReply` for a text that cannot be used.

        Returns:
            The reply; one with ``error`` when ``max_retries`` repetitions did not help or the server refused.

        Raises:
            BudgetReached: the call could pass the spend limit.
            KitError: no call to this endpoint can go well (key, model name, nothing there).
        """
        if request.frames is not None:
            await asyncio.to_thread(getattr, request.frames, "digest")  # hashes megabytes, the first time
        key = self._key(request, decoding, seed)
        while True:
            future, mine = self._flights.claim(key)
            if mine:
                break
            # Somebody asks the same right now. Shielded: who stops waiting must not take the result from others.
            reply = await asyncio.shield(asyncio.wrap_future(future))
            if reply is not None and _passes(reply, check):
                return replace(reply, attempts=0, cost=0.0)
        reply = None
        try:
            reply = self._kept(key, check) or await self._call(key, request, decoding, seed, check)
        finally:
            self._flights.land(key, reply)
        return reply

    def generate(
        self,
        requests: list[ChatRequest],
        decoding: Decoding,
        seed: int,
        batch_size: int | None = None,
        check: Check | None = None,
    ) -> list[ChatReply]:
        """Ask everything, at most ``concurrency`` at once; also where an event loop is running already.

        Args:
            requests: what to ask. The same request again is another sample: its seed is one higher each time.
            decoding: how to answer.
            seed: of the sampling.
            batch_size: not used here.
            check: as for :meth:`areply`.

        Raises:
            BudgetReached, KitError: as for :meth:`areply`, after the calls on the wire have ended.
        """
        seen: Counter = Counter()

        async def run() -> list[ChatReply]:
            tasks = []
            for request in requests:
                same = self._key(request, decoding, 0)
                tasks.append(asyncio.ensure_future(one(request, seed + seen[same])))
                seen[same] += 1
            try:
                return _first_error(await asyncio.gather(*tasks, return_exceptions=True))
            finally:
                await self.aclose()

        failed = threading.Event()
        gate: list[asyncio.Semaphore] = []

        async def one(request: ChatRequest, seed: int) -> ChatReply | None:
            if not gate:
                gate.append(asyncio.Semaphore(2 * self.config.concurrency))  # so many are encoded and in memory
            async with gate[0]:
                if failed.is_set():
                    return None
                try:
                    return await self.areply(request, decoding, seed, check)
                except BaseException:
                    failed.set()
                    raise

        return _run(run)

    async def aclose(self) -> None:
        """Close the connections of this event loop; the next call opens new ones."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.wire.close()

    def _key(self, request: ChatRequest, decoding: Decoding, seed: int) -> str:
        """Hash of everything that decides a reply; not of how often and how fast it is asked for."""
        config = self.config
        frames = None
        if request.frames is not None:
            frames = [request.frames.digest, config.frames, config.max_side, JPEG_QUALITY]
        content = {
            "endpoint": self._identity,
            "question": request.question,
            "system": request.system,
            "frames": frames,
            "decoding": [decoding.temperature, decoding.top_p, decoding.max_new_tokens],
            "seed": seed,
            "send_seed": config.send_seed,
            "schema": request.schema if config.structured == "json_schema" else None,
            "extra_body": config.extra_body,
        }
        if config.logprobs:  # else left out, so that calls from before the setting stay known
            content["logprobs"] = config.logprobs
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _kept(self, key: str, check: Check | None) -> ChatReply | None:
        kept = self.cache.get(key) if self.cache is not None else None
        reply = ChatReply(**kept, attempts=0, cost=0.0) if kept is not None else None
        return reply if reply is not None and _passes(reply, check) else None

    async def _call(
        self, key: str, request: ChatRequest, decoding: Decoding, seed: int, check: Check | None
    ) -> ChatReply:
        messages = await self._messages(request)
        parameters = self._parameters(request, decoding)
        worst = self._worst_cost(request, decoding)
        cost, bad_contents, connected = 0.0, 0, False
        for attempt in range(self.config.max_retries + 1):
            if self.config.send_seed:
                parameters["seed"] = seed + bad_contents
            payment = Payment(worst)
            try:
                sent = await self._send(messages, parameters, payment)
                fault = self._content_fault(sent.text, check)
            except Refused as refused:
                return ChatReply("", "stop", 0, 0, error=str(refused), attempts=attempt + 1, cost=cost)
            except Fault as error:
                fault = error
            cost += payment.cost
            if fault is None:
                reply = _chat_reply(sent, attempt + 1, cost)
                if self.cache is not None:
                    self.cache.put(key, {k: v for k, v in asdict(reply).items() if k not in ("attempts", "cost")})
                return reply
            bad_contents += fault.content
            connected = connected or fault.connected
            if attempt < self.config.max_retries:
                await self._sleep(self._pause(attempt, fault))
        if not connected:
            raise KitError(f"{server_name(self.config)}: nothing answers there; start it and run the command again")
        reason = f"no usable reply in {attempt + 1} attempts; the last: {fault.reason}"
        return ChatReply("", "stop", 0, 0, error=reason, attempts=attempt + 1, cost=cost)

    async def _send(self, messages: list[dict], parameters: dict, payment: Payment) -> WireReply:
        """One attempt, when there is room and time for it; what it cost stands in ``payment`` afterwards."""
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            session = self._sessions[loop] = _Session(self.config, self.model)
        async with session.gate:
            await self._pace.wait()
            if self._stopped is not None:
                raise KitError(self._stopped)
            async with self._budget.reserve(payment, self.config.spend_limit):
                try:
                    reply = await session.wire.send(messages, parameters)
                except Fault as fault:
                    payment.cost = payment.worst if fault.maybe_paid else 0.0
                    raise
                except (Refused, KitError) as error:
                    payment.cost = 0.0
                    if isinstance(error, KitError):  # those who wait for their turn must not try the same
                        self._stopped = str(error)
                    raise
                if None not in (reply.prompt_tokens, reply.completion_tokens):
                    payment.cost = self._price(reply.prompt_tokens, reply.completion_tokens)
                return reply

    @staticmethod
    def _content_fault(text: str, check: Check | None) -> Fault | None:
        if not text:
            return Fault("the reply is empty", content=True)
        try:
            if check is not None:
                check(text)
        except BadReply as error:
            return Fault(" ".join(str(error).split()), content=True)
        return None

    def _pause(self, attempt: int, fault: Fault) -> float:
        """Seconds before the next attempt: by chance up to a bound that doubles, besides what the server asks."""
        bound = min(self.config.max_backoff, self.config.backoff * 2.0**attempt)
        asked = fault.retry_after or 0.0
        if asked > self.config.max_backoff:
            print(f"warning: {server_name(self.config)} asks to wait {asked:.0f} s", file=sys.stderr)
        # After what the server asks, jitter too: or all who were sent away would come back at once.
        return asked + self._jitter.uniform(0, bound)

    async def _messages(self, request: ChatRequest) -> list[dict]:
        question = _sendable(request.question)
        content: Any = question
        if request.frames is not None:
            parts = await asyncio.to_thread(frame_parts, request.frames, self.config.frames, self.config.max_side)
            content = [*parts, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        if request.system is not None:
            messages.insert(0, {"role": "system", "content": _sendable(request.system)})
        return messages

    def _parameters(self, request: ChatRequest, decoding: Decoding) -> dict[str, Any]:
        parameters = {
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,  # said even when 1: servers take a checkpoint's own default for what is not
            "max_tokens": decoding.max_new_tokens,
            **({"logprobs": True, "top_logprobs": self.config.logprobs} if self.config.logprobs else {}),
            **self.config.extra_body,
        }
        if request.schema is not None and self.config.structured == "json_schema":
            schema = {"name": "reply", "strict": True, "schema": request.schema}
            parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
        return parameters

    def _worst_cost(self, request: ChatRequest, decoding: Decoding) -> float:
        """What a call costs at most: no token of text is shorter than a byte, and the answer may use its whole room."""
        text = len(request.question.encode("utf-8", "replace")) + len((request.system or "").encode("utf-8", "replace"))
        frames = 0 if request.frames is None else len(request.frames)
        return self._price(text + _OVERHEAD + frames * self.config.price.frame_tokens, decoding.max_new_tokens)

    def _price(self, prompt: int, completion: int) -> float:
        return (prompt * self.config.price.prompt + completion * self.config.price.completion) / 1e6


class _Session:
    """What belongs to one event loop."""

    def __init__(self, config: EndpointConfig, model: str):
        self.wire, self.gate = Wire(config, model), asyncio.Semaphore(config.concurrency)


def _sendable(text: str) -> str:
    """The text without halves of characters, which no encoding of a request can hold."""
    return text.encode("utf-8", "replace").decode()


def _chat_reply(sent: WireReply, attempts: int, cost: float) -> ChatReply:
    return ChatReply(
        text=sent.text,
        finish_reason=sent.finish_reason,
        prompt_tokens=sent.prompt_tokens or 0,
        completion_tokens=sent.completion_tokens or 0,
        model=sent.model,
        logprobs=sent.logprobs,
        attempts=attempts,
        cost=cost,
    )


def _passes(reply: ChatReply, check: Check | None) -> bool:
    """Whether a reply that somebody else asked for, or that was kept, is one for this caller too."""
    if check is None or reply.error is not None:
        return True
    try:
        check(reply.text)
    except BadReply:
        return False
    return True


def _first_error(results: list[Any]) -> list[Any]:
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine to its end, in a thread of its own when this one has an event loop running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    outcome: list[Any] = []

    def inside() -> None:
        try:
            outcome.extend((asyncio.run(main()), None))
        except BaseException as error:
            outcome.extend((None, error))

    thread = threading.Thread(target=inside, name="endpoint-calls")
    thread.start()
    thread.join()
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
