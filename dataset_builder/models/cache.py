"""Replies that were paid for, kept by content: the same call is never made twice, not even after a kill.

One SQLite file. Every reply is in it before anybody sees it; several threads and processes may use it at once.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, checksum TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (endpoint TEXT PRIMARY KEY, cost REAL NOT NULL) WITHOUT ROWID;
"""
_CHECKED_WHOLE = 64 * 2**20  # bytes; a larger file is checked where it is read
_BUSY = 60.0  # seconds to wait for another process's write


class Flights:
    """Calls on their way, so that who asks the same in the meantime waits for the one call. Safe for threads."""

    def __init__(self):
        self._lock, self._flying = threading.Lock(), {}

    def claim(self, key: str) -> tuple[Future, bool]:
        """The future of a call, and whether it is the caller who has to make the call and :meth:`land` it."""
        with self._lock:
            if key in self._flying:
                return self._flying[key], False
            self._flying[key] = future = Future()
            return future, True

    def land(self, key: str, result: Any = None) -> None:
        """Give the result to all who wait; None tells them that the call was broken off."""
        with self._lock:
            future = self._flying.pop(key)
        future.set_result(result)


class CallCache:
    """Replies by the hash of everything that decides them, and what was spent so far at each endpoint.

    Args:
        path: of the SQLite file; made with its folder when it is not there. A damaged file is moved aside.

    Raises:
        KitError: the file cannot be made or opened.
    """

    def __init__(self, path: str | Path):
        self.path, self.flights, self._lock = Path(path), Flights(), threading.Lock()
        self.budgets: dict[str, Any] = {}  # account -> what all models of this process set aside there
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._move_aside(error)
                self._connection = self._open()
        except (OSError, sqlite3.Error) as error:
            raise KitError(f"{self.path}: the cache of calls cannot be opened: {error}") from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")  # whole after a kill; only a power cut loses the last
            if self.path.stat().st_size <= _CHECKED_WHOLE:
                found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise sqlite3.DatabaseError(found.splitlines()[-1])
            connection.executescript(_SCHEMA)
            connection.execute("SELECT key, reply, checksum FROM replies LIMIT 1").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        for ending in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + ending)
            if part.exists():
                part.replace(aside.with_name(aside.name + ending))
        print(
            f"warning: {self.path}: the cache of calls is damaged ({error}); moved to {aside.name}, a new one begins",
            file=sys.stderr,
        )

    def get(self, key: str) -> dict | None:
        """The reply kept under a key, or None. A row that does not match its checksum counts as none."""
        row = self._run("SELECT reply, checksum FROM replies WHERE key = ?", (key,))
        if row is None or _checksum(row[0]) != row[1]:
            return None
        return json.loads(row[0])

    def put(self, key: str, reply: dict) -> None:
        """Keep a reply; it is safe from a kill once this returns."""
        text = json.dumps(reply, sort_keys=True, separators=(",", ":"))
        self._run("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, text, _checksum(text)))

    def spend(self, endpoint: str, cost: float) -> None:
        """Add to what was spent at an endpoint."""
        self._run(
            "INSERT INTO spending VALUES (?, ?) ON CONFLICT (endpoint) DO UPDATE SET cost = cost + excluded.cost",
            (endpoint, cost),
        )

    def spent(self, endpoint: str) -> float:
        """What was spent at an endpoint so far, by whatever process."""
        row = self._run("SELECT cost FROM spending WHERE endpoint = ?", (endpoint,))
        return row[0] if row else 0.0

    def __len__(self) -> int:
        return self._run("SELECT count(*) FROM replies", ())[0]

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        with self._lock:
            self._connection.close()

    def _run(self, statement: str, values: tuple) -> tuple | None:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            hint = "" if isinstance(error, sqlite3.OperationalError) else "; move it away and run the command again"
            raise KitError(f"{self.path}: the cache of calls cannot be used: {error}{hint}") from error


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
