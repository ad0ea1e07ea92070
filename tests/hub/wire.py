"""Requests, replies and routes over the standard library's HTTP server; planned faults are done here."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.errors import HubError
from tests.hub.faults import Fault

if TYPE_CHECKING:
    from tests.hub.context import Hub

_BLOCK = 1 << 18
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class Request:
    """What a client asks.

    Attributes:
        method: ``GET``, …
        path: as it was sent, without the query.
        query: each name with all its values.
        headers: of the request.
        args: what the route's pattern found in the path.
        origin: address of the server that was asked, as the client wrote it.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    args: dict[str, Any]
    origin: str
    _handler: _Handler

    def body(self) -> bytes:
        return b"".join(self._handler.blocks())

    def save_body(self, target: Path) -> int:
        """Write the body to a file.

        Returns:
            Its length in bytes.
        """
        with target.open("wb") as stream:
            for block in self._handler.blocks():
                stream.write(block)
            return stream.tell()

    def json(self) -> Any:
        """The body, which has to be JSON."""
        try:
            return json.loads(self.body() or b"{}")
        except ValueError:
            raise HubError(400, "The body is not JSON") from None

    def flag(self, name: str) -> bool:
        return self.text(name, "").lower() in ("1", "true")

    def text(self, name: str, default: str | None = None) -> str | None:
        return self.query.get(name, [default])[0]


@dataclass
class Reply:
    """What the client gets: ``content`` or, streamed and by ranges, the file ``path``."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def json(cls, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
        return cls(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})


class Routes:
    """A table from paths to functions.

    A pattern is a path with holes: ``{type}`` takes ``models``, ``datasets`` or ``spaces`` (found in ``args`` without
    the s), ``{repo}`` an id with or without namespace, ``{path}`` all that is left, any other hole one segment.
    """

    def __init__(self):
        self._table: list[tuple[tuple[str, ...], list[str], str, Callable, dict[str, str]]] = []

    def join(self, *others: Routes) -> Routes:
        """Take over the rows of other tables, after the own ones."""
        for other in others:
            self._table += other._table
        return self

    def add(self, methods: str, pattern: str, kind: str, **args: str):
        """A decorator: the function ``(hub, request)`` answers these requests.

        Args:
            methods: of the requests, separated by spaces.
            pattern: of their paths.
            kind: under which they are counted and struck.
            args: what the path does not say.
        """

        def register(function: Callable) -> Callable:
            self._table.append((tuple(methods.split()), pattern.strip("/").split("/"), kind, function, args))
            return function

        return register

    def find(self, method: str, path: str) -> tuple[str, Callable, dict[str, Any]] | None:
        segments = [unquote(part) for part in path.strip("/").split("/")]
        for methods, pattern, kind, function, args in self._table:
            if method in methods and (found := _match(pattern, segments)) is not None:
                return kind, function, {**args, **found}
        return None


def _match(pattern: list[str], segments: list[str]) -> dict[str, Any] | None:
    if not pattern or pattern == ["{path}"]:
        rest = "/".join(segments)
        return None if segments and not pattern else ({"path": rest} if pattern else {})
    if not segments:
        return None
    hole, first = pattern[0], segments[0]
    if hole == "{repo}":
        for width in (2, 1):
            rest = _match(pattern[1:], segments[width:])
            if len(segments) >= width and rest is not None:
                return {"repo": "/".join(segments[:width]), **rest}
        return None
    if hole == "{type}":
        found = {"type": first[:-1]} if first in ("models", "datasets", "spaces") else None
    elif hole.startswith("{"):
        found = {hole.strip("{}"): first}
    else:
        found = {} if hole == first else None
    rest = None if found is None else _match(pattern[1:], segments[1:])
    return None if rest is None else {**found, **rest}


class HubServer(ThreadingHTTPServer):
    """One origin on 127.0.0.1.

    Args:
        port: 0 takes a free one.
        routes: what it answers.
        hub: handed to the functions of the routes.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, routes: Routes, hub: Hub):
        self.routes, self.hub = routes, hub
        self._open: set[socket.socket] = set()
        self._idle = threading.Condition()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request_thread(self, request, client_address) -> None:
        with self._idle:
            self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._idle:
                self._open.discard(request)
                self._idle.notify_all()

    def stop(self) -> None:
        """Hang up on everybody, and come back when the last request has ended."""
        self.shutdown()
        self.server_close()
        with self._idle:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._idle.wait_for(lambda: not self._open, timeout=10)

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""


class _Torn(Exception):
    """The connection is to end without a word."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, *args):
        pass

    def __getattr__(self, name: str):
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self._left = None  # of the request's body; None before it was begun
        if parts.netloc:  # asked as a proxy, see LoopbackHub.environment
            kind, function, args = ("viewer" if parts.netloc.startswith("datasets-server.") else "stray"), _unknown, {}
        else:
            found = self.server.routes.find("GET" if self.command == "HEAD" else self.command, parts.path)
            kind, function, args = found or ("unknown", _unknown, {})
        fault = None if kind == "control" else self.server.hub.faults.strike(kind, self.command)
        if kind != "control":
            self.server.hub.book.request(kind, self.command, self.path, fault)
        query = parse_qs(parts.query, keep_blank_values=True)
        origin = f"http://{self.headers.get('Host')}"
        request = Request(self.command, parts.path, query, self.headers, args, origin, self)
        try:
            reply = self._answer(function, request, fault)
            for _ in self.blocks():  # what nobody read would be taken for the next request
                pass
            self._send(reply, cut=fault is not None and fault.kind == "cut")
        except (_Torn, ConnectionError, TimeoutError):
            self._tear()

    def _answer(self, function: Callable, request: Request, fault: Fault | None) -> Reply:
        if fault and fault.kind == "reset":
            raise _Torn
        if fault and fault.kind == "slow":
            time.sleep(fault.seconds)
        if fault and fault.kind == "revoke":
            self.server.hub.revoke(request)
        if fault and fault.kind == "status":
            return Reply.json({"error": "planned fault"}, fault.status, fault.headers)
        try:
            reply = function(self.server.hub, request)
        except HubError as error:
            headers = {"X-Error-Message": error.message, **error.headers}
            if error.code:
                headers["X-Error-Code"] = error.code
            reply = Reply.json({"error": error.message, **error.body}, error.status, headers)
        except ConnectionError:
            raise
        except Exception:
            self.server.hub.crashes.append(traceback.format_exc())
            reply = Reply.json({"error": "the hub itself is at fault"}, 500)
        if fault and fault.kind == "lost":
            raise _Torn
        return reply

    def blocks(self):
        """The request's body in pieces, whichever way its length was told; each piece comes once."""
        if self._left == 0:
            return
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self._read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self._left = int(self.headers.get("Content-Length") or 0) if self._left is None else self._left
            while self._left:
                block = self._read(min(self._left, _BLOCK))
                self._left -= len(block)
                yield block
        self._left = 0

    def _read(self, size: int) -> bytes:
        block = self.rfile.read(size)
        if len(block) < size:
            raise ConnectionResetError("the client hung up")
        return block

    def _send(self, reply: Reply, cut: bool) -> None:
        start, length, status = 0, len(reply.content), reply.status
        headers = dict(reply.headers)
        if reply.path:
            size = reply.path.stat().st_size
            headers.setdefault("Content-Type", "application/octet-stream")
            headers["Accept-Ranges"] = "bytes"
            start, length = self._range(size)
            if length is None:
                status, length, headers["Content-Range"] = 416, 0, f"bytes */{size}"
            elif self.headers.get("Range"):
                status, headers["Content-Range"] = 206, f"bytes {start}-{start + length - 1}/{size}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value).encode("ascii", "replace").decode())
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        wanted = length // 2 if cut else length
        if reply.path and status != 416:
            self._send_file(reply.path, start, wanted)
        else:
            self.wfile.write(reply.content[:wanted])
        if cut and length:
            self.close_connection = True

    def _range(self, size: int) -> tuple[int, int | None]:
        """Start and length of what is asked for; a length of None when the file has nothing there."""
        found = _RANGE.fullmatch(self.headers.get("Range", "").strip())
        if not found or found.groups() == ("", ""):
            return 0, size
        first, last = found.groups()
        if not first:
            start, end = max(size - int(last), 0), size
        else:
            start, end = int(first), min(int(last) + 1, size) if last else size
        return (start, end - start) if start < end else (0, None)

    def _send_file(self, path: Path, start: int, length: int) -> None:
        with path.open("rb") as stream:
            stream.seek(start)
            while length and (block := stream.read(min(length, _BLOCK))):
                self.wfile.write(block)
                self.server.hub.book.add("downloaded_bytes", len(block))
                length -= len(block)

    def _tear(self) -> None:
        """End the connection at once, with a reset and not a farewell."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _unknown(hub: Hub, request: Request) -> Reply:
    raise HubError(404, f"There is nothing at {request.path}")
