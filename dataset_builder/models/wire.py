"""One call to an OpenAI-compatible server: sent once, and told apart by what can be done when it goes wrong.

``huggingface_hub``'s client writes the request and knows the providers; it neither retries nor follows anything here,
so one call of :meth:`Wire.send` is one request on the wire.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.settings import EndpointConfig

RETRIED = {408, 409, 425, 429}  # and everything from 500 on
_STOPPING = {
    401: "refuses the key",
    402: "asks for payment",
    403: "refuses access",
    404: "does not know this model or address",
}
_NEVER = -9999.0  # log-probability of what cannot come; minus infinity has no place in JSON
_MESSAGE = 200  # characters of a server's own words that are passed on


class Fault(Exception):
    """A call that may go better another time.

    Args:
        reason: one line.
        retry_after: seconds that the server asks to wait.
        content: whether a reply came and its content was at fault.
        maybe_paid: whether the server may have done, and charged, the work.
        connected: whether there was a server at all.
    """

    def __init__(
        self,
        reason: str,
        retry_after: float | None = None,
        content: bool = False,
        maybe_paid: bool = False,
        connected: bool = True,
    ):
        super().__init__(reason)
        self.reason, self.retry_after, self.content = reason, retry_after, content
        self.maybe_paid, self.connected = maybe_paid, connected


class Refused(Exception):
    """A request that this server will never answer; other requests may go well."""


@dataclass(frozen=True)
class WireReply:
    """A server's reply, read. Token counts are None when it does not count; ``logprobs`` is as in ``ChatReply``."""

    text: str
    finish_reason: str
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    logprobs: list[list] | None = None


def endpoint_key(config: EndpointConfig) -> str | None:
    """The key out of the environment; None when the config names no variable.

    Raises:
        KitError: the variable is not set, or holds what cannot be a key.
    """
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise KitError(f"the environment variable {config.api_key_env} holds no key; set it and run the command again")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise KitError(f"the environment variable {config.api_key_env} holds what cannot be a key; set it anew")
    return key


def server_name(config: EndpointConfig) -> str:
    """How messages and the call cache call the server."""
    return config.base_url or f"provider:{config.provider or 'auto'}"


class Wire:
    """The connections to one server, for one event loop.

    Args:
        config: where and how.
        model: its name at the server.
    """

    def __init__(self, config: EndpointConfig, model: str):
        self.config, self.model, self._checked = config, model, config.base_url is not None
        key = endpoint_key(config)
        self._secrets = [key] if key else []
        self._idle: list[Any] = []  # connections; the one used last is the next
        self._certificates = None
        # Without a key the client would send the login to the Hub in its place: to a base_url it must not.
        headers = {"authorization": None} if config.base_url and not key else {}
        where = {"base_url": config.base_url} if config.base_url else {"provider": config.provider}
        self._client = _client_class()(**where, api_key=key, timeout=config.timeout, headers=headers)

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await self._idle.pop().aclose()

    def _connection(self) -> Any:
        """A connection nobody uses.

        They are our own because huggingface_hub's client follows redirects, and refuses even loopback when
        HF_HUB_OFFLINE is set; one each because httpx looks at all connections of a pool for every call, which with 64
        of them takes milliseconds.
        """
        import httpx

        if self._idle:
            return self._idle.pop()
        if self._certificates is None:
            self._certificates = httpx.create_ssl_context()
        return httpx.AsyncClient(verify=self._certificates, follow_redirects=False, timeout=self.config.timeout)

    async def send(self, messages: list[dict], parameters: dict[str, Any]) -> WireReply:
        """Make one call.

        Args:
            messages: in OpenAI's form.
            parameters: fields of the request's body; ``response_format`` goes out as it stands.

        Raises:
            Fault: it may go better another time.
            Refused: it will not, but other calls may.
            KitError: no call to this server will.
        """
        import httpx
        from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

        await self._check_provider()
        exchange = _Exchange(self._connection(), parameters.get("response_format"))
        token = _EXCHANGE.set(exchange)
        try:
            async with asyncio.timeout(self.config.timeout):
                await self._client.chat_completion(messages, model=self.model, extra_body=parameters)
        except (TimeoutError, httpx.TimeoutException, InferenceTimeoutError):
            raise Fault(f"no answer within {self.config.timeout:g} s", maybe_paid=True) from None
        except HfHubHTTPError as error:
            raise self._judge_status(error.response) from None
        except httpx.ConnectError:
            raise Fault("no connection", connected=False) from None
        except (httpx.HTTPError, httpx.StreamError):  # which of them depends on when it broke: no message says so
            raise Fault("the connection broke", maybe_paid=True) from None
        finally:
            _EXCHANGE.reset(token)
            self._idle.append(exchange.connection)
        return exchange.reply

    def _judge_status(self, response: Any) -> Exception:
        """What an HTTP error means, as the exception to raise."""
        status = response.status_code
        if status in RETRIED or status >= 500:
            return Fault(f"HTTP {status}", retry_after=retry_after(response.headers.get("retry-after")))
        words = self._words(response)
        if status in _STOPPING:
            where = f"{server_name(self.config)}, model {self.model}"
            hint = ""
            if status in (401, 403):
                name = self.config.api_key_env
                hint = f"; check the key in {name}" if name else "; name its key's variable in api_key_env"
            return KitError(f"{where}: the server {_STOPPING[status]} (HTTP {status}{words}){hint}")
        return Refused(f"HTTP {status}{words}")

    def _words(self, response: Any) -> str:
        """``: message`` of an error body, in one short line without the key; empty when there is none."""
        try:
            body = response.json()
            message = body.get("error", body.get("detail", body.get("message", "")))
            if isinstance(message, dict):
                message = message.get("message", "")
            text = " ".join(str(message).split())
        except (ValueError, AttributeError, RuntimeError):  # no JSON, no object, or a body that was not read
            return ""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return f": {text[:_MESSAGE]}" if text else ""

    async def _check_provider(self) -> None:
        """Ask the Hub once, outside the event loop, who serves the model: a wrong name is one clear line."""
        if self._checked:
            return
        from huggingface_hub.inference._providers import get_provider_helper

        def check() -> None:
            helper = get_provider_helper(self.config.provider, task="conversational", model=self.model)
            key = self._secrets[0] if self._secrets else None
            helper.prepare_request(inputs=[], parameters={}, headers={}, model=self.model, api_key=key)

        try:
            await asyncio.to_thread(check)
        except Exception as error:  # whatever the Hub or its client says: nothing was sent to a provider yet
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            for secret in self._secrets:
                reason = reason.replace(secret, "***")
            raise KitError(f"{server_name(self.config)}, model {self.model}: cannot be asked: {reason}") from None
        self._checked = True


@dataclass
class _Exchange:
    """What one call hands past ``chat_completion``, which would change the one and lose parts of the other."""

    connection: Any
    response_format: dict | None
    reply: WireReply | None = None


_EXCHANGE: ContextVar[_Exchange] = ContextVar("exchange")


@lru_cache(maxsize=1)
def _client_class() -> type:
    """``AsyncInferenceClient`` on our own connections, and with ``response_format`` in OpenAI's form at any server."""
    from huggingface_hub import AsyncInferenceClient

    class Client(AsyncInferenceClient):
        async def _get_async_client(self):
            return _EXCHANGE.get().connection

        async def _inner_post(self, request_parameters, *, stream=False):
            exchange = _EXCHANGE.get()
            if exchange.response_format is not None:
                request_parameters.json["response_format"] = exchange.response_format
            exchange.reply = read_reply(await super()._inner_post(request_parameters, stream=False))
            return {}

    return Client


def read_reply(body: bytes) -> WireReply:
    """Read the body of a chat completion.

    Raises:
        Fault: it is not one, or holds no text.
    """
    try:
        data = json.loads(body)
    except ValueError:  # also bytes that are no UTF-8
        raise Fault("the reply is not JSON", maybe_paid=True) from None
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        raise Fault("the reply holds no choices", maybe_paid=True)
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
    model, finish = data.get("model"), choice.get("finish_reason")
    return WireReply(
        text=_text(message),
        finish_reason="stop" if finish in (None, "eos", "eos_token", "stop_sequence") else str(finish),
        model=model if isinstance(model, str) else None,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks to wait: a number of seconds or a date; None when it says neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
        return seconds if 0 <= seconds < float("inf") else None
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value.strip())
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _text(message: dict) -> str:
    """What was said: content as text or in parts, or the refusal that some servers put beside an empty content."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if not isinstance(content, str) or not content.strip():
        content = message.get("refusal")
    return content.strip() if isinstance(content, str) else ""


def _logprobs(found: Any) -> list[list] | None:
    """``choice.logprobs`` in OpenAI's form, or None when any of it is missing or odd: it is an extra, never a fault."""
    content = found.get("content") if isinstance(found, dict) else None
    if not isinstance(content, list) or not content:
        return None
    try:
        return [[*_token(entry), [_token(other) for other in entry.get("top_logprobs") or ()]] for entry in content]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _token(entry: dict) -> list:
    token, logprob = entry["token"], entry["logprob"]
    if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, (int, float)):
        raise TypeError("no token")
    if not logprob <= 1e-3:  # NaN, or a probability above 1 by more than rounding
        raise ValueError("no log-probability")
    return [token, max(float(logprob), _NEVER)]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
