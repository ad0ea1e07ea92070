"""A proxy before an OpenAI-compatible server that injects faults and writes down every call.

    python -m tests.endpoints.proxy --upstream http://127.0.0.1:8000 --log calls.jsonl --rate 0.3

The fault of an attempt is a pure function of (call, attempt, seed), where a call is the hash of the request without its
seed, and the seed that its first attempt had: :func:`planned_faults` foretells it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import io
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.endpoints.serving import LoopbackServer, Request, Response
from tests.endpoints.stub import CRITERIA, completion, is_judging, message_text

WIRE_FAULTS = ("429_after", "429", "500", "503", "reset", "timeout", "truncated", "malformed")
SCORE_FAULTS = ("score_7", "score_nan", "score_five")
ALL_FAULTS = (*WIRE_FAULTS, *SCORE_FAULTS, "empty")
_TAIL = 60  # characters
_SEED_STEPS = 64  # a client may raise the seed by so many before it counts as another call


def content_key(body: dict) -> str:
    """Hash of a request without its seed, 16 hex digits."""
    rest = {name: value for name, value in body.items() if name != "seed"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def fault_of(call: str, attempt: int, seed: int, rate: float, kinds: tuple[str, ...], judging: bool) -> str | None:
    """The fault of one attempt (from 0) of a call, or None. Answers have no scores to spoil."""
    usable = [kind for kind in kinds if judging or kind not in SCORE_FAULTS]
    digest = hashlib.sha256(f"{seed}|{call}|{attempt}".encode()).digest()
    if not usable or int.from_bytes(digest[:6], "big") >= rate * 2**48:
        return None
    return usable[int.from_bytes(digest[6:12], "big") % len(usable)]


def planned_faults(
    call: str, seed: int, rate: float, kinds: tuple[str, ...] = ALL_FAULTS, judging: bool = False, most: int = 1000
) -> list[str]:
    """The faults of a call before its first good attempt: their number is the number of repetitions it needs."""
    faults = []
    while len(faults) < most:
        fault = fault_of(call, len(faults), seed, rate, kinds, judging)
        if fault is None:
            break
        faults.append(fault)
    return faults


@dataclass
class Call:
    """One attempt as the log has it.

    Attributes:
        number: position in the log, from 0.
        call: which call it belongs to.
        attempt: which of the call's attempts it is, from 0.
        fault: what was done to it, or None.
        judging: whether it asked for a verdict.
        seed: that it was sent with.
        tail: the last characters of the request's text.
        delivered: True when its response was written out, False when the caller hung up, None when it was on its way
            as the log ended.
    """

    number: int
    call: str
    attempt: int
    fault: str | None
    judging: bool
    seed: int | None
    tail: str
    delivered: bool | None = None


def read_log(path: str | Path) -> list[Call]:
    """All attempts in the order in which they arrived."""
    calls: dict[int, Call] = {}
    for line in Path(path).read_text().splitlines():
        entry = json.loads(line)
        if entry.pop("event") == "start":
            calls[entry["number"]] = Call(**entry)
        else:
            calls[entry["number"]].delivered = entry["delivered"]
    return list(calls.values())


def attempts_by_call(calls: list[Call]) -> dict[str, list[Call]]:
    """The log sorted by call."""
    grouped: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        grouped[call.call].append(call)
    return dict(grouped)


class FaultProxy(LoopbackServer):
    """The proxy.

    Args:
        upstream: address of the server, with or without ``/v1``.
        log: JSONL file of the calls.
        rate: share of attempts with a fault.
        kinds: which faults, equally often.
        seed: of the faults.
        retry_after: what the ``Retry-After`` header of ``429_after`` says.
        hang: seconds after which a ``timeout`` is cut.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        upstream: str,
        log: str | Path,
        rate: float = 0.0,
        kinds: tuple[str, ...] = ALL_FAULTS,
        seed: int = 0,
        retry_after: str = "0",
        hang: float = 600.0,
        port: int = 0,
    ):
        super().__init__(port)
        parts = urlsplit(upstream)
        self.upstream, self.log = (parts.hostname, parts.port), Path(log)
        self.rate, self.kinds, self.seed, self.retry_after, self.hang = rate, kinds, seed, retry_after, hang
        if unknown := set(kinds) - set(ALL_FAULTS):
            raise ValueError(f"unknown faults: {sorted(unknown)}")
        self._attempts: dict[str, int] = defaultdict(int)
        self._seeds: dict[str, list[int]] = defaultdict(list)  # content -> seeds of first attempts
        self._numbers: dict[int, int] = {}  # id of a request on its way -> number
        self._count = 0
        self._file = self.log.open("a", buffering=1, encoding="utf-8")

    def __exit__(self, *rest: object) -> None:
        super().__exit__(*rest)
        self._file.close()

    async def handle(self, request: Request) -> Response:
        """Forward, or do harm."""
        if not request.path.endswith("/chat/completions"):
            return await self._forward(request)
        body = json.loads(request.body)
        call = self._call_of(body)
        attempt, judging = self._attempts[call], is_judging(body)
        self._attempts[call] += 1
        fault = fault_of(call, attempt, self.seed, self.rate, self.kinds, judging)
        number, self._count = self._count, self._count + 1
        self._numbers[id(request)] = number
        entry = {"number": number, "call": call, "attempt": attempt, "fault": fault, "judging": judging}
        tail = message_text(body["messages"])[-_TAIL:]
        self._write("start", {**entry, "seed": body.get("seed"), "tail": tail})
        if fault is None:
            return await self._forward(request)
        return await self._harm(fault, request, body)

    def delivered(self, request: Request, whole: bool) -> None:
        """Note the end of an attempt."""
        number = self._numbers.pop(id(request), None)
        if number is not None:
            self._write("end", {"number": number, "delivered": whole})

    def _write(self, event: str, entry: dict) -> None:
        self._file.write(json.dumps({"event": event, **entry}) + "\n")

    def _call_of(self, body: dict) -> str:
        key, seed = content_key(body), body.get("seed")
        if seed is None:
            return f"{key}:none"
        for first in self._seeds[key]:
            if 0 <= seed - first <= _SEED_STEPS:
                return f"{key}:{first}"
        self._seeds[key].append(seed)
        return f"{key}:{seed}"

    async def _harm(self, fault: str, request: Request, body: dict) -> Response:
        error = {"error": {"message": f"injected: {fault}"}}
        if fault == "429_after":
            return Response.json(error, 429, {"retry-after": self.retry_after})
        if fault in ("429", "500", "503"):
            return Response.json(error, int(fault))
        if fault == "reset":
            return Response(reset=True)
        if fault == "timeout":
            await asyncio.sleep(self.hang)
            return Response(reset=True)
        if fault in ("truncated", "malformed"):
            whole = await self._forward(request)
            if fault == "truncated":  # announced in full, sent in half
                encoded = whole.encode()
                return Response(raw=encoded[: len(encoded) - len(whole.body) // 2 - 1])
            return Response(200, whole.body[:-2], {"content-type": "application/json"})
        return Response.json(completion(body, spoiled(fault)))

    async def _forward(self, request: Request) -> Response:
        reader, writer = await asyncio.open_connection(*self.upstream, limit=2**20)
        try:
            kept = {k: v for k, v in request.headers.items() if k not in ("connection", "content-length", "host")}
            kept |= {"host": f"{self.upstream[0]}:{self.upstream[1]}", "connection": "close"}
            kept["content-length"] = str(len(request.body))
            lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{k}: {v}" for k, v in kept.items())]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + request.body)
            head = await reader.readuntil(b"\r\n\r\n")
            parsed = http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2]))
            length = parsed.get("content-length")
            rest = await (reader.read() if length is None else reader.readexactly(int(length)))
        finally:
            writer.close()
        response = http.client.HTTPResponse(_Bytes(head + rest))
        response.begin()
        return Response(response.status, response.read(), {"content-type": response.getheader("content-type", "")})


class _Bytes:
    """Bytes where ``http.client`` wants a socket."""

    def __init__(self, data: bytes):
        self.data = data

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(self.data)


def spoiled(fault: str) -> str:
    """The text of a reply whose content is at fault: a verdict with one impossible score, or nothing."""
    if fault == "empty":
        return ""
    scores = dict.fromkeys(CRITERIA, "3")
    scores["accuracy"] = {"score_7": "7", "score_nan": "NaN", "score_five": '"five"'}[fault]
    return "{" + ", ".join(f'"{name}": {value}' for name, value in scores.items()) + ', "reason": "spoiled"}'


def main() -> None:
    """Serve until stopped; the first line on stdout is the base_url."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--log", required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--kinds", default=",".join(ALL_FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry-after", default="0")
    parser.add_argument("--hang", type=float, default=600.0)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    kinds = tuple(filter(None, args.kinds.split(",")))
    server = FaultProxy(
        args.upstream, args.log, args.rate, kinds, args.seed, args.retry_after, args.hang, port=args.port
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(server.serve(lambda: print(server.url, flush=True)))


if __name__ == "__main__":
    main()
