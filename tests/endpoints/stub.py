"""An OpenAI-compatible server that plays zoo members and judges: every reply is a pure function of its request.

    python -m tests.endpoints.stub --latency 4 --slots 64 --port 8000

``GET /v1/models`` lists the models, ``GET /stats`` counts what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.endpoints.serving import LoopbackServer, Request, Response

CRITERIA = ("relevance", "accuracy", "completeness", "clarity")
_WORDS = (
    "a",
    "the",
    "red",
    "green",
    "blue",
    "square",
    "circle",
    "moves",
    "left",
    "right",
    "up",
    "down",
    "slowly",
    "stops",
)


class StubServer(LoopbackServer):
    """The stub.

    Args:
        port: 0 takes a free one.
        latency: seconds that a call takes.
        slots: calls worked on at once; others wait. None works on all.
        key: refuse other keys with 401.
        models: refuse other model names with 404; empty accepts all.
        reply: ``reply(body) -> text`` in place of :func:`play`; may return a :class:`Response` for everything else.
        usage: whether tokens are counted in the reply.
    """

    def __init__(
        self,
        port: int = 0,
        latency: float = 0.0,
        slots: int | None = None,
        key: str | None = None,
        models: tuple[str, ...] = (),
        reply: Callable[[dict], str | Response] | None = None,
        usage: bool = True,
    ):
        super().__init__(port)
        self.latency, self.key, self.models, self.reply, self.usage = latency, key, models, reply or play, usage
        self.calls, self.in_flight, self.most_in_flight = 0, 0, 0
        self.bodies: Counter[bytes] = Counter()
        self._slots, self._gate = slots, None

    def stats(self) -> dict[str, int]:
        """What was asked so far. ``repeated`` counts calls whose body came before; ``most_in_flight`` is a maximum."""
        return {
            "calls": self.calls,
            "distinct": len(self.bodies),
            "repeated": self.calls - len(self.bodies),
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
        }

    async def handle(self, request: Request) -> Response:
        """Chat completions, the list of models, counts."""
        if request.path == "/stats":
            return Response.json(self.stats())
        if request.path in ("/health", "/v1/health"):
            return Response.json({"status": "ok"})
        if request.path == "/v1/models":
            names = self.models or ("stub",)
            return Response.json({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        if request.path != "/v1/chat/completions" or request.method != "POST":
            return Response.json({"error": {"message": f"no such path: {request.path}"}}, 404)
        if self._gate is None and self._slots is not None:
            self._gate = asyncio.Semaphore(self._slots)
        self.calls += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self._gate is None:
                return await self._chat(request)
            async with self._gate:
                return await self._chat(request)
        finally:
            self.in_flight -= 1

    async def _chat(self, request: Request) -> Response:
        loop = asyncio.get_running_loop()
        ready = loop.time() + self.latency
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return Response.json({"error": {"message": f"wrong key: {request.headers.get('authorization')}"}}, 401)
        self.bodies[hashlib.blake2b(request.body, digest_size=16).digest()] += 1
        try:
            body = json.loads(request.body)
        except ValueError:
            return Response.json({"error": {"message": "the body is not JSON"}}, 400)
        if self.models and body.get("model") not in self.models:
            return Response.json({"error": {"message": f"The model `{body.get('model')}` does not exist"}}, 404)
        text = self.reply(body)
        if (wait := ready - loop.time()) > 0:
            await asyncio.sleep(wait)
        return text if isinstance(text, Response) else Response.json(completion(body, text, self.usage))


def completion(body: dict, text: str, usage: bool = True) -> dict[str, Any]:
    """A chat completion's body around a text; a word is a token, a frame is 256. Cut at ``max_tokens`` words."""
    limit, words = body.get("max_tokens"), text.split()
    cut = limit is not None and len(words) > limit and not text.startswith("{")
    if cut:
        text = " ".join(words[:limit])
    reply = {
        "id": "chatcmpl-" + hashlib.sha256(text.encode()).hexdigest()[:8],
        "object": "chat.completion",
        "created": 0,
        "model": f"{body.get('model')}-stub",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "length" if cut else "stop",
            }
        ],
    }
    if usage:
        prompt = len(message_text(body["messages"]).split()) + 256 * frame_count(body["messages"])
        count = len(text.split())
        reply["usage"] = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
    return reply


def message_text(messages: list[dict]) -> str:
    """All text of the messages; pictures and videos left out."""
    texts = []
    for message in messages:
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts += [f"{message.get('role')}: {part['text']}" for part in parts if part.get("type") == "text"]
    return "\n".join(texts)


def frame_count(messages: list[dict]) -> int:
    """Image and video parts of the messages."""
    contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
    return sum(part.get("type") in ("image_url", "video_url") for content in contents for part in content)


def is_judging(body: dict) -> bool:
    """Whether a request asks for a verdict: by the four criteria it names, or by a schema of the reply."""
    if body.get("response_format"):
        return True
    text = message_text(body["messages"]).lower()
    return all(word in text for word in CRITERIA)


def play(body: dict) -> str:
    """What the stub says: a verdict where one is asked for, else a few words; the seed changes only the words."""
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    text = message_text(body["messages"])
    if schema is not None:
        return json.dumps(fill(schema, f"{body.get('model')}\n{text}"))
    if is_judging(body):
        digest = hashlib.sha256(f"{body.get('model')}\n{text}".encode()).digest()
        verdict: dict[str, Any] = {name: 1 + digest[i] % 5 for i, name in enumerate(CRITERIA)}
        return json.dumps({**verdict, "reason": f"because of {digest[8:10].hex()}"})
    digest = hashlib.sha256(f"{body.get('model')}\n{text}\n{body.get('seed')}".encode()).digest()
    return " ".join(_WORDS[byte % len(_WORDS)] for byte in digest[: 1 + digest[31] % 6])


def fill(schema: dict, salt: str) -> Any:
    """A value of a JSON schema (objects, arrays, enums, numbers, strings, booleans), chosen by a hash of the salt."""
    number = int.from_bytes(hashlib.sha256(salt.encode()).digest()[:4], "big")
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {name: fill(inner, f"{salt}\n{name}") for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [fill(schema.get("items", {}), f"{salt}\n{i}") for i in range(max(1, schema.get("minItems", 1)))]
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 1), schema.get("maximum", 5)
        return low + number % (int(high - low) + 1)
    if kind == "boolean":
        return bool(number % 2)
    return f"because of {number:08x}"


def main() -> None:
    """Serve until stopped; the first line on stdout is the base_url."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds a call takes")
    parser.add_argument("--slots", type=int, default=None, help="calls worked on at once")
    args = parser.parse_args()
    server = StubServer(args.port, args.latency, args.slots)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve(lambda: print(server.url, flush=True)))


if __name__ == "__main__":
    main()
