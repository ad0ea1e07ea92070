"""A lean HTTP/1.1 server on loopback: enough for JSON calls by the thousand, in a thread or a process of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass
class Request:
    """One HTTP request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Response:
    """One HTTP response. ``raw`` goes out as it stands and ends the connection; ``reset`` cuts it without a word."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    reset: bool = False

    @classmethod
    def json(cls, data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """A JSON body."""
        return cls(status, json.dumps(data).encode(), {"content-type": "application/json", **(headers or {})})

    def encode(self) -> bytes:
        """Head and body."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Status')}", f"content-length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + self.body


class LoopbackServer:
    """Serves :meth:`handle` on 127.0.0.1 at a free port; as a context manager in a thread of its own."""

    def __init__(self, port: int = 0):
        self.port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready, self._stop = threading.Event(), None
        self._error: BaseException | None = None

    @property
    def url(self) -> str:
        """What a configuration's ``base_url`` takes."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def handle(self, request: Request) -> Response:
        """Answer one request; cancelled when the caller hangs up."""
        return Response.json({"error": {"message": f"no such path: {request.path}"}}, 404)

    def delivered(self, request: Request, whole: bool) -> None:
        """Called when a response was written (whole) or the caller hung up before."""

    async def serve(self, announce: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled."""
        loop = asyncio.get_running_loop()
        self._loop, self._stop = loop, asyncio.Event()
        connections: set[_Connection] = set()
        server = await loop.create_server(lambda: _Connection(self, connections), "127.0.0.1", self.port, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        announce()
        try:
            await self._stop.wait()
        finally:
            server.close()
            for connection in list(connections):
                connection.transport.abort()

    def __enter__(self):
        def run() -> None:
            try:
                asyncio.run(self.serve(self._ready.set))
            except BaseException as error:
                self._error = error
            finally:
                self._ready.set()

        self._thread = threading.Thread(target=run, name=type(self).__name__, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


class _Connection(asyncio.Protocol):
    """One connection with keep-alive; requests are answered one after another."""

    def __init__(self, server: LoopbackServer, connections: set):
        self.server, self.connections, self.transport = server, connections, None
        self.received, self.head, self.length, self.task = bytearray(), None, 0, None

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=2**22)
        self.connections.add(self)

    def connection_lost(self, error) -> None:
        self.connections.discard(self)
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._next()

    def _next(self) -> None:
        if self.task is not None:
            return
        if self.head is None:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            first, *lines = self.received[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            self.head, self.length = (first.split(" "), headers), int(headers.get("content-length", 0))
            del self.received[: end + 4]
        if len(self.received) < self.length:
            return
        (method, path, *_), headers = self.head
        request = Request(method, path, headers, bytes(self.received[: self.length]))
        del self.received[: self.length]
        self.head = None
        self.task = asyncio.ensure_future(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            response = await self.server.handle(request)
        except asyncio.CancelledError:
            self.server.delivered(request, False)
            raise
        except Exception as error:
            response = Response.json({"error": {"message": f"{type(error).__name__}: {error}"}}, 500)
        self.task = None
        gone = self.transport.is_closing()
        self.server.delivered(request, not gone)
        if gone:
            return
        if response.reset:
            self.transport.abort()
        elif response.raw is not None:
            self.transport.write(response.raw)
            self.transport.close()
        else:
            self.transport.write(response.encode())
            self._next()
