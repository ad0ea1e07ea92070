"""What a benchmark is: a name, where its rows may come from, and what its task file says about it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

KEYS = ("name", "dataset", "abstract", "languages", "tags", "paper")


@dataclass(frozen=True)
class Benchmark:
    """A set of open questions about videos, as one task evaluates it.

    Attributes:
        name: of the task.
        module: the file that describes it, for :func:`metadata`; always ``__name__``.
        version: raise it when the same data would give other rows or prompts.
        files: names that its published question files go by, the preferred one first; empty if it has no published
            shape, only the kit's own.
        source: its name among the sources of a dataset of this kit; None takes every row.
        default: folder or Hub id that is read when nothing is named; None has none.
    """

    name: str
    module: str
    version: int = 1
    files: tuple[str, ...] = ()
    source: str | None = None
    default: str | None = None


def metadata(benchmark: Benchmark) -> dict[str, str | list[str]]:
    """The entries of a task file's docstring: ``KEYS``, of which languages and tags are lists."""
    found: dict[str, str | list[str]] = {}
    for part in (sys.modules[benchmark.module].__doc__ or "").strip().split("\n\n"):
        head, _, body = part.strip().partition("\n")
        key = head.removesuffix(":")
        if head.endswith(":") and key in KEYS:
            text = " ".join(body.split())
            found[key] = [word.strip() for word in text.split(",")] if key in ("languages", "tags") else text
    return found
