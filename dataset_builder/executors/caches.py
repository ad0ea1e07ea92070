"""Call caches of tasks on several machines. SQLite files must not be shared between machines, so each task writes its
own and only reads the common one; the process that plans a build merges them while no task runs."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from dataset_builder.models.cache import CallCache
from dataset_builder.stages.job import CALL_CACHE

_MERGE = (
    "INSERT OR IGNORE INTO replies SELECT key, reply, checksum FROM task.replies",
    "INSERT INTO spending SELECT endpoint, cost FROM task.spending WHERE true "
    "ON CONFLICT (endpoint) DO UPDATE SET cost = cost + excluded.cost",
)


def task_cache(rank: int, tasks: int) -> str:
    """Name of a task's own call cache."""
    return f"calls-{rank:05d}-of-{tasks:05d}.sqlite"


class TaskCache(CallCache):
    """A task's own cache, which also finds what is in the build's common one.

    Args:
        path: of the task's own file.
        common: of the common file, which nobody writes while tasks run; it need not be there.
        tasks: number of tasks; each may spend an equal part of what an endpoint's limit leaves.
    """

    def __init__(self, path: Path, common: Path, tasks: int):
        super().__init__(path)
        self._tasks = tasks
        self._common: CallCache | None = _ReadOnly(common) if common.exists() else None

    def get(self, key: str) -> dict | None:
        """The reply kept under a key, or None."""
        found = super().get(key)
        return found if found is not None or self._common is None else self._common.get(key)

    def spent(self, endpoint: str) -> float:
        """What this task spent, and its part of what was spent before; held against its part of the limit."""
        before = self._common.spent(endpoint) / self._tasks if self._common is not None else 0.0
        return super().spent(endpoint) + before

    def close(self) -> None:
        """Close both files."""
        super().close()
        if self._common is not None:
            self._common.close()


class _ReadOnly(CallCache):
    """A cache that is read without a lock or a side file, as several machines may do at once."""

    def _open(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def merge_caches(work: Path) -> int:
    """Move what tasks were told, and what they spent, into the build's common cache.

    Call it only while no task of the build runs. A kill in the middle loses nothing and counts nothing twice: a file's
    rows are taken in one transaction, which also empties the file's spending.

    Returns:
        The number of files merged.
    """
    files = sorted(work.glob("calls-*-of-*.sqlite"))
    for file in files:
        CallCache(file).close()  # moves a damaged file aside
        common = CallCache(work / CALL_CACHE)
        common.close()
        connection = sqlite3.connect(work / CALL_CACHE, isolation_level=None)
        try:
            # Without write-ahead logs a transaction over two files is one.
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("ATTACH ? AS task", (str(file),))
            connection.execute("PRAGMA task.journal_mode=DELETE")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _MERGE:
                connection.execute(statement)
            connection.execute("DELETE FROM task.spending")
            connection.execute("COMMIT")
        finally:
            connection.close()
        for ending in ("", "-wal", "-shm", "-journal"):
            file.with_name(file.name + ending).unlink(missing_ok=True)
    return len(files)
