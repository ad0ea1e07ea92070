"""A card as a page of text, tables and numbers, with an account of the numbers that a rule has dealt with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from dataset_builder.errors import KitError

_FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
# Numbers that say nothing about this release: code, names in backticks, links, pictures, the citation.
_ASIDE = re.compile(r"```.*?```|`[^`\n]*`|!?\[[^\]\n]*\]\([^)\s]*\)|https?://\S+|<[^>\n]*>", re.DOTALL)
# A sign belongs to a number; a digit inside a name (qwen2_5_vl, fp32, round-1) is no number.
_NUMBER = re.compile(r"(?<![\w.,/-])(?<!\w[−+-])[−+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w/])(?!\.\d)")
_CELL = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Span:
    """A piece of the page: its text, and where it begins and ends."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Table:
    """A table of the page: the cells of its head and of every row below."""

    head: list[Span]
    rows: list[list[Span]]

    def column(self, name: str) -> int | None:
        """Place of the first column whose head begins so; None without one."""
        return next((place for place, cell in enumerate(self.head) if cell.text.startswith(name)), None)


class Page:
    """A card.

    Args:
        text: of README.md.
        name: what messages call it.

    Attributes:
        front: its YAML block.
        body: the text below it; all places count from its beginning.

    Raises:
        KitError: it has no YAML block, or one that cannot be read.
    """

    def __init__(self, text: str, name: str = "README.md"):
        found = _FRONT.match(text)
        if found is None:
            raise KitError(f"{name}: has no YAML block between '---' lines, so this is no card of a release")
        try:
            self.front = yaml.safe_load(found.group(1)) or {}
        except yaml.YAMLError as error:
            raise KitError(f"{name}: its YAML block cannot be read: {str(error).splitlines()[0]}") from None
        if not isinstance(self.front, dict):
            raise KitError(f"{name}: its YAML block holds no names and values")
        self.body, self._before = text[found.end() :], text[: found.end()].count("\n")
        self._claimed = bytearray(len(self.body))
        self.tables = list(self._tables())

    @classmethod
    def read(cls, path: Path) -> Page:
        """Read a card.

        Raises:
            KitError: there is none.
        """
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise KitError(f"{path}: there is no card to verify ({type(error).__name__})") from None

    def line(self, place: int) -> int:
        """Line in the file, from 1."""
        return self._before + self.body.count("\n", 0, place) + 1

    def claim(self, *spans: Span) -> None:
        """Say that a rule has dealt with all numbers in these places."""
        for span in spans:
            self._claimed[span.start : span.end] = b"\1" * (span.end - span.start)

    def find(self, pattern: str) -> re.Match | None:
        """First place that fits; a blank in the pattern stands for any white space, since cards are wrapped."""
        return re.search(pattern.replace(" ", r"\s+"), self.body, re.MULTILINE)

    def group(self, found: re.Match, group: int | str = 1) -> Span:
        """What a group of a match stands for."""
        return Span(found[group], *found.span(group))

    def table(self, *heads: str) -> Table | None:
        """The first table whose head's cells begin so, one after the other; None without one."""
        for table in self.tables:
            if len(table.head) >= len(heads) and all(c.text.startswith(h) for c, h in zip(table.head, heads)):
                return table
        return None

    def constants(self, *patterns: str) -> None:
        """Claim numbers that are part of the wording of every card, wherever they stand."""
        for pattern in patterns:
            for found in re.finditer(pattern.replace(" ", r"\s+"), self.body, re.MULTILINE):
                self.claim(self.group(found, 0))

    def left_over(self) -> list[Span]:
        """Every number of the text that no rule has dealt with."""
        masked = _ASIDE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), self.body)
        found = (Span(match[0], *match.span()) for match in _NUMBER.finditer(masked))
        return [span for span in found if not any(self._claimed[span.start : span.end])]

    def context(self, span: Span, width: int = 60) -> str:
        """The words around a number, in one line."""
        begin = max(self.body.rfind("\n", 0, span.start) + 1, span.start - width)
        end = self.body.find("\n", span.end)
        return self.body[begin : min(end if end >= 0 else len(self.body), span.end + width)].strip()

    def _tables(self) -> Iterator[Table]:
        rows: list[list[Span]] = []
        start = 0
        for line in [*self.body.split("\n"), ""]:
            if line.startswith("|"):
                rows.append(self._cells(line, start))
            elif rows and (line.strip() or len(rows) > 1):  # a template may leave a blank line below the head
                if len(rows) > 1:
                    yield Table(rows[0], rows[2:])
                rows = []
            start += len(line) + 1

    @staticmethod
    def _cells(line: str, start: int) -> list[Span]:
        bars = [found.start() for found in _CELL.finditer(line)]
        cells = []
        for left, right in pairwise(bars):
            raw = line[left + 1 : right]
            text = raw.strip()
            begin = start + left + 1 + (len(raw) - len(raw.lstrip()) if text else 0)
            cells.append(Span(text.replace("\\|", "|"), begin, begin + len(text)))
        return cells
