"""Where the numbers of a card come from, found out by changing artefacts and rendering the card again.

A card is text made from the files of a folder. `trace` gives every field of the JSON and Parquet files in it other
values, many fields at a time, and watches which numbers of the card move. A number that no change moves is written in
the template, or comes from somewhere else: nobody could trace it.

Which field moved a number is found by group testing: with fields numbered in binary, every digit splits them into two
groups, and each group is changed once. A number's sources are among the fields all of whose groups moved it; the text
of the card is compared only where it is otherwise the same, so that a section that comes or goes moves nothing.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from cards.verify.page import Page, Span

LONG = 12  # a longer list holds rows: what they have in common is one field
SHARED = 3  # a name of fewer fields is not worth a card of its own
GROWTH = 3_000_000  # bytes that a file of weights is made longer by
NUMBER = re.compile(r"(?<![\w.,/-])\d[\d,]*(?:\.\d+)?(?![\w/])(?!\.\d)")  # in a string, such as a reason or a version
VALUES, ROWS = "values", "rows"


@dataclass(frozen=True)
class Number:
    """A number of the card: its text, where it stands, and the words around it."""

    text: str
    line: int
    context: str


@dataclass
class Trace:
    """What was found.

    Attributes:
        numbers: every number that the card shows, in order; those of its YAML block first.
        sources: by place in ``numbers``, the fields (``FILE: path``) that may have moved it; with ``exact`` one
            that did, or some that did together.
        renders: how often the card was rendered.
        refused: fields that no card can be rendered without as they are.
    """

    numbers: list[Number]
    sources: dict[int, list[str]] = field(default_factory=dict)
    renders: int = 0
    refused: list[str] = field(default_factory=list)

    @property
    def untraced(self) -> list[Number]:
        """The numbers that no change of an artefact moved."""
        return [number for place, number in enumerate(self.numbers) if place not in self.sources]

    def of(self, text: str) -> list[str]:
        """Sources of the first number whose context holds these words."""
        for place, number in enumerate(self.numbers):
            if text in number.context:
                return self.sources.get(place, [])
        raise AssertionError(f"no number of the card stands at {text!r}")


def trace(
    render: Callable[[Path], str],
    folder: Path,
    *,
    patterns: Iterable[str] = ("**/*.json", "**/*.parquet"),
    weights: Iterable[str] = ("**/*.safetensors",),
    wording: Sequence[str] = (),
    exact: bool = False,
    salts: int = 3,
) -> Trace:
    """Trace every number of a card.

    Args:
        render: makes the card's text from the folder; may raise when a field is not as it should be.
        folder: a copy of everything that the card is made of; it is changed, and is as before at the end.
        patterns: files whose fields are changed.
        weights: files that are made longer, for cards that tell their size.
        wording: patterns of numbers that are words, as the verifiers name them (``95 % interval``).
        exact: also change the fields one at a time, so that a number is laid to a field that moved it all alone.
        salts: how often to try, each time with other values, before a number counts as untraceable.
    """
    card = Card(render(folder), wording)
    found, artefacts = Trace(card.numbers, renders=1), Artefacts(folder, patterns, weights)

    def moved(fields: Iterable[str], salt: int) -> set[int]:
        """Numbers that move when these fields change; those that cannot be changed are found and left out."""
        fields = [name for name in fields if name not in found.refused]
        if not fields:
            return set()
        found.renders += 1
        try:
            artefacts.change(fields, salt)
            return card.moved(Card(render(folder), wording))
        except Exception:
            if len(fields) == 1:
                found.refused.append(fields[0])
                return set()
        half = len(fields) // 2
        return moved(fields[:half], salt) | moved(fields[half:], salt)

    try:
        for salt in range(salts):
            for kind in (VALUES, ROWS):
                _decode(found, artefacts.fields[kind], lambda names, salt=salt: moved(names, salt))
            if found.untraced and not salt:
                _by_name(found, artefacts.fields[VALUES], lambda names: moved(names, 0))
            if not found.untraced:
                break
        if exact:
            _confirm(found, moved, salts)
    finally:
        artefacts.restore()
    return found


def _decode(found: Trace, fields: list[str], moved: Callable[[list[str]], set[int]]) -> None:
    """Change the fields in groups and lay each number that is still open to the fields whose groups all moved it."""
    open_ones = {place for place in range(len(found.numbers)) if place not in found.sources}
    if not fields or not open_ones:
        return
    suspects: dict[int, Counter] = defaultdict(Counter)
    digits = max(1, (len(fields) - 1).bit_length())
    for digit in range(digits):
        for side in (0, 1):
            group = [name for place, name in enumerate(fields) if place >> digit & 1 == side]
            for number in moved(group) & open_ones:
                suspects[number].update(group)
    for number, groups in suspects.items():
        most = max(groups.values())  # all digits, unless two fields hide each other's change
        found.sources[number] = [name for name, count in groups.items() if count == most]


def _by_name(found: Trace, fields: list[str], moved: Callable[[list[str]], set[int]]) -> None:
    """Change all fields of one name: some change so much together, such as the heads of a table, that others hide."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in fields:
        names[re.split(r"[.\] ]", name)[-1]].append(name)
    for group in sorted((group for group in names.values() if len(group) >= SHARED), key=len, reverse=True):
        open_ones = {place for place in range(len(found.numbers)) if place not in found.sources}
        if not open_ones:
            return
        for place in moved(group) & open_ones:
            found.sources[place] = group


def _confirm(found: Trace, moved: Callable[[list[str], int], set[int]], salts: int) -> None:
    """Lay every number to one field that moves it alone, or to fields that do so together if none does."""
    confirmed: dict[int, list[str]] = {}
    tried: set[tuple[str, int]] = set()
    for salt in range(salts):
        while rest := [place for place in found.sources if place not in confirmed]:
            wanted = Counter(n for place in rest for n in found.sources[place] if (n, salt) not in tried)
            if not wanted:
                break
            name = wanted.most_common(1)[0][0]
            tried.add((name, salt))
            for place in moved([name], salt):
                confirmed.setdefault(place, [name])
    for place in [place for place in found.sources if place not in confirmed]:
        if place not in confirmed:  # one move of these fields may confirm several
            group = found.sources[place]
            confirmed |= {n: group for n in moved(group, 0) if found.sources.get(n) == group and n not in confirmed}
    found.sources = confirmed


class Card:
    """The numbers of a card, and what stands around each: a sentence, or the head and first cell of a table's cell."""

    def __init__(self, text: str, wording: Sequence[str] = ()):
        page = Page(text)
        page.constants(*wording)
        self.front = {path: value for path, value in _leaves(page.front, ()) if _is_number(value)}
        head = [Number(str(value), 0, "YAML: " + _name(path)) for path, value in self.front.items()]
        spans = [Span(s.text.rstrip(","), s.start, s.start + len(s.text.rstrip(","))) for s in page.left_over()]
        self.numbers = [*head, *(Number(s.text, page.line(s.start), page.context(s)) for s in spans)]
        masked = _masked(page.body, [(span.start, span.end) for span in spans])
        pieces = _cells(page, masked) | _sentences(masked)
        within: dict[tuple[int, int], list[int]] = defaultdict(list)
        borders = sorted(pieces)
        for place, span in enumerate(spans, len(head)):
            within[borders[bisect_right(borders, (span.start, len(masked))) - 1]].append(place)
        self.pieces: dict[str, list[list[int]]] = defaultdict(list)
        for border in borders:
            if border in within:
                self.pieces[pieces[border]].append(within[border])

    def moved(self, other: Card) -> set[int]:
        """Places of my numbers that are others in the other card, where that says the same otherwise."""
        places = {n for n, path in enumerate(self.front) if other.front.get(path, self.front[path]) != self.front[path]}
        for words, mine in self.pieces.items():
            theirs = other.pieces.get(words, [])
            if len(mine) == len(theirs):  # else a row came or went, and nobody knows which
                for ours, others in zip(mine, theirs):
                    places |= {m for m, o in zip(ours, others) if self.numbers[m].text != other.numbers[o].text}
        return places


def _masked(text: str, spans: list[tuple[int, int]]) -> str:
    """The text with ``#`` in place of these numbers and 0 for every other digit, every letter in its place."""
    letters = list(re.sub(r"\d", "0", text))
    for begin, end in spans:
        letters[begin:end] = "#" + "\x7f" * (end - begin - 1)
    return "".join(letters)


def _words(masked: str) -> str:
    return re.sub(r"0+", "0", masked.replace("\x7f", "").replace("*", "")).replace("< #", "#")


def _cells(page: Page, masked: str) -> dict[tuple[int, int], str]:
    """Every cell of a table by its place: what its column and its row are called, and its own words."""
    found = {}
    for table in page.tables:
        for row in table.rows:
            label = _words(masked[row[0].start : row[0].end])
            for place, cell in enumerate(row):
                head = (
                    _words(masked[table.head[place].start : table.head[place].end]) if place < len(table.head) else ""
                )
                found[cell.start, cell.end] = f"{head}|{label}|{_words(masked[cell.start : cell.end])}"
        for cell in table.head:
            found[cell.start, cell.end] = f"{_words(masked[cell.start : cell.end])}|"
    return found


def _sentences(masked: str) -> dict[tuple[int, int], str]:
    """Every sentence outside of tables by its place."""
    found, start = {}, 0
    for line in masked.split("\n"):
        if not line.startswith("|"):
            for piece in re.finditer(r".+?(?:[.;:,!?](?=\s)|$)", line):
                found[start + piece.start(), start + piece.end()] = _words(piece[0])
        start += len(line) + 1
    return found


class Artefacts:
    """The files of a folder by their fields, and a way to change some fields for a while."""

    def __init__(self, folder: Path, patterns: Iterable[str], weights: Iterable[str]):
        self.fields: dict[str, list[str]] = {VALUES: [], ROWS: []}
        self._kept: dict[Path, bytes] = {}
        self._content: dict[Path, Any] = {}  # of JSON
        self._tables: dict[Path, pa.Table] = {}
        self._dirty: set[Path] = set()
        self._where: dict[str, tuple[Path, tuple]] = {}
        for path in sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()}):
            self._kept[path], name = path.read_bytes(), str(path.relative_to(folder))
            if path.suffix == ".parquet":
                table = self._tables[path] = parquet.ParquetFile(path).read()
                plain = [c for c in table.schema if c.name != "video"]
                leaves = [leaf for c in plain for leaf in _leaves(table[c.name].to_pylist(), (c.name,), rows=True)]
                rows: Iterable[tuple] = [()] if len(table) > 1 else []
            else:
                content = self._content[path] = json.loads(self._kept[path])
                leaves, rows = list(_leaves(content, ())), _lists(content, ())
            for place in dict.fromkeys(place for place, value in leaves if _mutable(value)):
                self._add(VALUES, f"{name}: {_name(place)}", path, place)
            for place in dict.fromkeys(rows):
                self._add(ROWS, f"{name}: {_name(place)}[]", path, place)
        for path in sorted({p for pattern in weights for p in folder.glob(pattern) if p.is_file()}):
            self._kept[path] = path.read_bytes()
            self._add(VALUES, f"{path.relative_to(folder)}: size", path, ())

    def _add(self, kind: str, name: str, path: Path, place: tuple) -> None:
        self.fields[kind].append(name)
        self._where[name] = (path, place)

    def change(self, names: Iterable[str], salt: int) -> None:
        """Give these fields other values, and all others their own."""
        values: dict[Path, set[tuple]] = defaultdict(set)
        rows: dict[Path, set[tuple]] = defaultdict(set)
        for name in names:
            path, place = self._where[name]
            (rows if name.endswith("[]") else values)[path].add(place)
        self.restore(self._dirty - {*values, *rows})
        for path in {*values, *rows}:
            self._dirty.add(path)
            self._write(path, values[path], rows[path], salt)

    def restore(self, paths: set[Path] | None = None) -> None:
        """Put files back as they were; all that were changed by default."""
        for path in list(self._dirty if paths is None else paths):
            path.write_bytes(self._kept[path])
            self._dirty.discard(path)

    def _write(self, path: Path, values: set[tuple], rows: set[tuple], salt: int) -> None:
        if path in self._content:
            content = _altered(self._content[path], (), values, rows, salt)
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        elif path in self._tables:
            table = self._tables[path]
            for name in {place[0] for place in values}:
                place = table.schema.get_field_index(name)
                column = _altered(table[name].to_pylist(), (name,), values, set(), salt, rows_below=True)
                table = table.set_column(
                    place, table.schema.field(name), pa.array(column, table.schema.field(name).type)
                )
            parquet.write_table(table.take(_left(len(table), salt)) if rows else table, path)
        else:
            path.write_bytes(self._kept[path] + b"\0" * GROWTH * (salt + 1))


def _leaves(value: Any, path: tuple, rows: bool = False) -> Iterator[tuple[tuple, Any]]:
    """Every value that is no list and no dict with its path, in which all rows of a long list are one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(inner, (*path, LONG if rows or len(value) > LONG else place))
    else:
        yield path, value


def _lists(value: Any, path: tuple) -> Iterator[tuple]:
    """Every list of rows; some of them can be left out. A pair of numbers is an interval."""
    if isinstance(value, list):
        if len(value) > LONG or (len(value) > 1 and isinstance(value[0], dict)):
            yield path
        for place, inner in enumerate(value):
            yield from _lists(inner, (*path, place if len(value) <= LONG else LONG))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _lists(inner, (*path, key))


def _altered(
    value: Any, path: tuple, values: set[tuple], rows: set[tuple], salt: int, seed: int = 0, rows_below: bool = False
) -> Any:
    """The value with the leaves at these paths changed and some rows of these lists left out."""
    if isinstance(value, dict):
        return {k: _altered(inner, (*path, k), values, rows, salt, seed) for k, inner in value.items()}
    if isinstance(value, list):
        long = rows_below or len(value) > LONG
        kept = [value[n] for n in _left(len(value), salt)] if path in rows else value
        return [
            _altered(inner, (*path, LONG if long else n), values, rows, salt, 31 * seed + n)
            for n, inner in enumerate(kept)
        ]
    return _other(value, seed, salt, path) if path in values and _mutable(value) else value


def _left(count: int, salt: int) -> list[int]:
    """Which rows stay: of few all but the last, of many four fifths, or every other four of them."""
    if count <= LONG:
        return list(range(max(1, count - 1 - salt)))
    return [n for n in range(count) if (n % 5 if salt == 0 else (n // 4 + salt) % 2)]


def _other(value: Any, seed: int, salt: int, path: tuple) -> Any:
    """Another value of the same kind; of verdicts some are turned round, so that their mean moves."""
    step = 1 + (seed * 7 + salt * 3 + len(_name(path))) % 5
    if isinstance(value, bool):
        return value if (seed + salt) % 3 else not value
    if isinstance(value, int):
        in_rows = LONG in path
        if in_rows and value in (0, 1):
            return value if (seed * seed + salt) % 3 else 1 - value
        return value + step
    if isinstance(value, float):
        if 0 <= value <= 1:
            moved = (value + 0.0713 * step + 0.0009) % 1
            return moved if LONG not in path or value not in (0.0, 1.0) or (seed + salt) % 3 == 0 else value
        return value * (1 + 0.113 * step)
    return NUMBER.sub(lambda found: str(int(re.sub(r"\D.*", "", found[0])) + step) + _rest(found[0]), value)


def _rest(text: str) -> str:
    return text[len(re.match(r"\d+", text)[0]) :]


def _mutable(value: Any) -> bool:
    return _is_number(value) or isinstance(value, bool) or (isinstance(value, str) and bool(NUMBER.search(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _name(path: tuple) -> str:
    text = ""
    for part in path:
        text += (f"[{'*' if part == LONG else part}]") if isinstance(part, int) else f".{part}" if text else str(part)
    return text
