"""Reference log-probabilities, computed once: kept in memory, and in a file of the run that a stop cannot lose."""

from __future__ import annotations

import json
import os
from pathlib import Path


class ReferenceStore:
    """Log-probabilities of (chosen, rejected) by the content of a pair.

    A scope is made of everything else they depend on: the reference's weights, frames, resolution, template, type of
    the arithmetic. So values of another model or another template are never served.

    Args:
        folder: a JSONL file per scope is kept there; None keeps them in memory only.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = None if folder is None else Path(folder)
        self._scopes: dict[str, dict[str, tuple[float, float]]] = {}
        self.computed = 0  # pairs that had to be computed

    def scope(self, key: str) -> dict[str, tuple[float, float]]:
        """All that is known under a key; lines that a stop has cut are left out."""
        if key not in self._scopes:
            self._scopes[key] = known = {}
            if self.folder is not None and (path := self.folder / f"{key}.jsonl").exists():
                for line in path.read_bytes().splitlines():
                    try:
                        pair, chosen, rejected = json.loads(line)
                    except (ValueError, TypeError):
                        continue
                    known[pair] = (chosen, rejected)
        return self._scopes[key]

    def add(self, key: str, found: list[tuple[str, float, float]], write: bool = True) -> None:
        """Keep new values; `write` is for one of several processes that hold the same ones."""
        self.scope(key).update({pair: (chosen, rejected) for pair, chosen, rejected in found})
        self.computed += len(found)
        if self.folder is not None and write and found:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(entry) + "\n" for entry in found)
            with (self.folder / f"{key}.jsonl").open("ab") as stream:
                if stream.tell() and not _ends_with_newline(self.folder / f"{key}.jsonl"):
                    lines = "\n" + lines  # the last writer was killed within a line
                stream.write(lines.encode())
                stream.flush()
                os.fsync(stream.fileno())


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
