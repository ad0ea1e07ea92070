"""What has to be remembered of all rows while they stream by, on disk: ids, named splits, videos in use."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE ids (id TEXT PRIMARY KEY, file TEXT, row INTEGER, content TEXT) WITHOUT ROWID;
CREATE TABLE asked (content BLOB PRIMARY KEY, id TEXT) WITHOUT ROWID;
CREATE TABLE pairs (content BLOB PRIMARY KEY, file TEXT, row INTEGER) WITHOUT ROWID;
CREATE TABLE splits (sha256 TEXT PRIMARY KEY, split TEXT, file TEXT, row INTEGER) WITHOUT ROWID;
CREATE TABLE videos (sha256 TEXT PRIMARY KEY, path TEXT, embed INTEGER) WITHOUT ROWID;
"""


class Scratch:
    """A temporary SQLite file; use it in a ``with`` block, which removes it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self._remove()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-8192"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_TABLES)
        self._connection.execute("BEGIN")

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._remove()

    def _remove(self) -> None:
        for end in ("", "-journal"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    def _one(self, statement: str, *values: Any) -> tuple | None:
        return self._connection.execute(statement, values).fetchone()

    def claim_id(self, name: str, file: str, row: int, content: dict[str, Any]) -> tuple[str, int, dict] | None:
        """Take a question id for a row, or say which row has it: (file, row, content)."""
        earlier = self._one("SELECT file, row, content FROM ids WHERE id = ?", name)
        if earlier is not None:
            return earlier[0], earlier[1], json.loads(earlier[2])
        self._one("INSERT INTO ids VALUES (?, ?, ?, ?)", name, file, row, json.dumps(content, ensure_ascii=False))
        return None

    def id_of(self, sha256: str, question: str) -> str | None:
        """Id of the question that was asked of a video before."""
        found = self._one("SELECT id FROM asked WHERE content = ?", _digest(sha256, question))
        return found[0] if found else None

    def asked(self, sha256: str, question: str, name: str) -> None:
        """Remember a question's id."""
        self._one("INSERT OR IGNORE INTO asked VALUES (?, ?)", _digest(sha256, question), name)

    def claim_pair(self, name: str, chosen: str, rejected: str, file: str, row: int) -> tuple[str, int] | None:
        """Take a pair for a row, or say which row has it."""
        key = _digest(name, chosen, rejected)
        earlier = self._one("SELECT file, row FROM pairs WHERE content = ?", key)
        if earlier is None:
            self._one("INSERT INTO pairs VALUES (?, ?, ?)", key, file, row)
        return earlier

    def split(self, sha256: str) -> tuple[str, str, int] | None:
        """(split, file, row) that was named for a video."""
        return self._one("SELECT split, file, row FROM splits WHERE sha256 = ?", sha256)

    def name_split(self, sha256: str, split: str, file: str, row: int) -> None:
        """Name a video's split; the first name stays."""
        self._one("INSERT OR IGNORE INTO splits VALUES (?, ?, ?, ?)", sha256, split, file, row)

    def use_video(self, sha256: str, path: str, embed: bool) -> None:
        """A question is about this video. It may be embedded only if every one of its rows allows it."""
        self._one(
            "INSERT INTO videos VALUES (?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET embed = min(embed, excluded.embed)",
            sha256,
            path,
            int(embed),
        )

    def embed(self, sha256: str) -> bool:
        """Whether the dataset may hold the video."""
        return bool(self._one("SELECT embed FROM videos WHERE sha256 = ?", sha256)[0])

    def videos(self) -> Iterator[tuple[str, str]]:
        """(sha256, path) of the videos in use, sorted."""
        yield from self._connection.execute("SELECT sha256, path FROM videos ORDER BY sha256")


def _digest(*texts: str) -> bytes:
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).digest()
