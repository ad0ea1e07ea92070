"""Planned harm, and the book of everything that was asked and sent."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.hub.repo import Repo

KINDS = ("status", "reset", "cut", "lost", "slow", "revoke")
_KEPT = 20_000  # requests in the log


@dataclass
class Fault:
    """A rule about what goes wrong.

    Attributes:
        kind: ``status`` (an error reply before anything is done), ``reset`` (the connection is torn before anything is
            done), ``cut`` (the reply announces its whole body and stops half way), ``lost`` (everything is done, then
            the connection is torn without a reply), ``slow`` (a wait, then all as usual), ``revoke`` (the request's
            token is taken back before anything is done).
        on: kinds of requests that it strikes (``commit``, ``resolve``, ``lfs-upload``, …); empty: all of them.
        probability: of striking a request.
        times: how often it strikes at most; None: without end.
        skip: so many matching requests pass first.
        status: of a ``status`` fault.
        headers: of a ``status`` fault, for example ``{"Retry-After": "0"}``.
        seconds: of a ``slow`` fault.
        methods: of requests that it strikes; empty: all of them.
    """

    kind: str
    on: list[str] = field(default_factory=list)
    probability: float = 1.0
    times: int | None = None
    skip: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 1.0
    methods: list[str] = field(default_factory=list)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"fault {self.kind!r}: take one of {KINDS}")
        self.on = [self.on] if isinstance(self.on, str) else list(self.on)


class Faults:
    """The rules in force; the first that strikes counts."""

    def __init__(self):
        self._lock, self._rules, self._random = threading.Lock(), [], random.Random(0)

    def plan(self, rules: list[Fault], seed: int = 0) -> None:
        """Put these rules in the place of the former ones."""
        with self._lock:
            self._rules, self._random = list(rules), random.Random(seed)

    def strike(self, kind: str, method: str) -> Fault | None:
        """The fault of this request, which uses it up."""
        with self._lock:
            for rule in self._rules:
                if (rule.on and kind not in rule.on) or (rule.methods and method not in rule.methods):
                    continue
                if rule.times == 0:
                    continue
                if rule.skip > 0:
                    rule.skip -= 1
                    continue
                if self._random.random() >= rule.probability:
                    continue
                if rule.times is not None:
                    rule.times -= 1
                return rule
            return None

    def show(self) -> list[dict]:
        with self._lock:
            return [asdict(rule) for rule in self._rules]


class Book:
    """Counts since the start, or since they were last cleared.

    ``requests`` by kind; ``faults`` by kind of fault; ``uploads``: how often each content arrived whole, named
    ``TYPE:NS/NAME PATH HASH`` with ``lfs`` for the path of a large object (its hash is a sha256, a regular file's the
    git hash); ``repeated``: those that came more than once; ``uploaded_bytes``: content that was received, parts of
    objects included; ``downloaded_bytes``: content that was sent; ``leaks``: requests that carried a token to the
    storage origin, which has no business with it.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._requests, self._faults, self._uploads = Counter(), Counter(), Counter()
            self._sums, self._log = Counter(), []

    def request(self, kind: str, method: str, path: str, fault: Fault | None) -> None:
        with self._lock:
            self._requests[kind] += 1
            if fault:
                self._faults[fault.kind] += 1
            if len(self._log) < _KEPT:
                entry = {"kind": kind, "method": method, "path": path, "fault": fault.kind if fault else None}
                self._log.append(entry)

    def upload(self, repo: Repo, path: str, oid: str) -> None:
        with self._lock:
            self._uploads[f"{repo.type}:{repo.repo_id} {path} {oid}"] += 1

    def add(self, name: str, amount: int = 1) -> None:
        """Add to ``uploaded_bytes``, ``downloaded_bytes`` or ``leaks``."""
        with self._lock:
            self._sums[name] += amount

    def show(self) -> dict:
        with self._lock:
            sums = {name: self._sums[name] for name in ("uploaded_bytes", "downloaded_bytes", "leaks")}
            return {
                "requests": dict(self._requests),
                "faults": dict(self._faults),
                "uploads": dict(self._uploads),
                "repeated": [name for name, times in self._uploads.items() if times > 1],
                **sums,
            }

    def log(self) -> list[dict]:
        with self._lock:
            return list(self._log)
