"""Rows of a file, one after the other and never all in memory: JSONL, JSON lists, CSV, TSV and Parquet."""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dataset_builder.errors import KitError, RowError
from dataset_builder.settings import near
from dataset_builder.text import one_line

# A row's number (from 1: the line of a JSONL, CSV or TSV file, else the entry) and its fields, or why it has none.
Item = tuple[int, dict[str, Any]] | RowError
FILE_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_CHUNK = 1 << 20
_SPACE = re.compile(r"\s*")
_BATCH, _BATCH_WITH_BYTES = 1024, 8  # rows; a video in a row may have tens of megabytes


def read_rows(file: str, key: str, columns: dict[str, str] | None = None) -> Iterator[Item]:
    """Rows of a file, told apart by its ending (`.json` by its first character too).

    Args:
        file: the path, as the person wrote it.
        key: of the configuration, for messages.
        columns: the file's own column names by the kit's; these columns come back under the kit's names.

    Raises:
        KitError: the file is missing, cannot be read, is empty, or lacks a mapped column.
    """
    path, columns = Path(file), columns or {}
    try:
        with open(path, "rb") as stream:
            found = False
            for item in _by_ending(path, stream, file, key, columns):
                found = True
                yield _rename(item, columns)
            if not found:
                raise KitError(f"{key}: {file}: is empty; each row is one question")
    except FileNotFoundError:
        raise KitError(f"{key}: {file}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise KitError(f"{key}: {file}: cannot be read ({one_line(str(error))})") from None


def _by_ending(path: Path, stream: BinaryIO, file: str, key: str, columns: dict[str, str]) -> Iterator[Item]:
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv"):
        return _delimited(path, file, key, columns, "\t" if ending == ".tsv" else ",")
    if ending == ".parquet":
        return _parquet(path, file, key, columns)
    if ending != ".jsonl" and _first(stream) == b"[":
        return _json_list(stream, file)
    return _lines(stream, file)


def _rename(item: Item, columns: dict[str, str]) -> Item:
    """A row under the kit's names. A field of one of these names that is mapped away is the file's own matter."""
    if isinstance(item, RowError) or not columns:
        return item
    number, row = item
    renamed = {name: value for name, value in row.items() if name not in columns and name not in columns.values()}
    renamed.update({name: row[theirs] for name, theirs in columns.items() if theirs in row})
    return number, renamed


def check_columns(columns: dict[str, str], there: list[str], where: str) -> None:
    """Refuse a mapping onto columns that are not there.

    Raises:
        KitError: naming the column and the nearest one.
    """
    for name, theirs in columns.items():
        if theirs not in there:
            hint = near(theirs, there) or f"; its columns are {', '.join(map(one_line, there))}"
            raise KitError(f"{where}: columns.{name}: there is no column {theirs!r}{hint}")


def parse_line(line: bytes, file: str, number: int) -> dict[str, Any]:
    """One line of a JSONL file.

    Raises:
        RowError: it is no JSON object.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise RowError(file, number, None, "is not UTF-8 text", "bad_json") from None
    except json.JSONDecodeError as error:
        reason = f"is not valid JSON ({error.msg} at column {error.colno})"
        raise RowError(file, number, None, reason, "bad_json") from None
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        raise RowError(file, number, None, "is not JSON that can be read", "bad_json") from None
    return _object(row, file, number)


def _object(row: Any, file: str, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RowError(file, number, None, 'must be a JSON object such as {"video": …, "question": …}', "bad_json")
    return row


def _lines(stream: BinaryIO, file: str) -> Iterator[Item]:
    for number, line in enumerate(stream, start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        try:
            yield number, parse_line(line, file, number)
        except RowError as error:
            yield error


def _first(stream: BinaryIO) -> bytes:
    """First character of a text file that is no space; the stream is back at its beginning afterwards."""
    head = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    stream.seek(0)
    return head


def _json_list(stream: BinaryIO, file: str) -> Iterator[Item]:
    """Entries of a JSON list, parsed one at a time. What follows broken JSON cannot be read and is said so."""
    decoder, reader = json.JSONDecoder(), codecs.getreader("utf-8-sig")(stream)
    text, at, number, ended = "", 0, 0, False

    def broken(reason: str) -> RowError:
        return RowError(file, number + 1, None, f"{reason}; nothing behind it can be read", "bad_json")

    try:
        text = reader.read(_CHUNK)
        at = _skip(text, text.index("[") + 1)
        while True:
            wanted = _CHUNK
            if at < len(text) and text[at] == "]":
                return
            try:
                row, end = decoder.raw_decode(text, at)
                end = _skip(text, end)
                # Nothing behind the entry: a number may go on, and the mark is yet to come.
                if end < len(text):
                    if text[end] not in ",]":
                        yield broken("is not followed by ',' or ']'")
                        return
                    number, at = number + 1, _skip(text, end + (text[end] == ","))
                    try:
                        yield number, _object(row, file, number)
                    except RowError as error:
                        yield error
                    continue
                reason = "is where the list breaks off"
            except json.JSONDecodeError as error:
                reason = f"is not valid JSON ({error.msg})" if at < len(text) else "is where the list breaks off"
                wanted = len(text) - at + _CHUNK  # doubled: an entry of any size is parsed a few times only
            if ended:
                yield broken(reason)
                return
            more = reader.read(wanted)
            text, at, ended = text[at:] + more, 0, not more
            at = _skip(text, 0)
    except UnicodeDecodeError:
        yield broken("is not UTF-8 text")
    except (RecursionError, ValueError):
        yield broken("is not JSON that can be read")


def _skip(text: str, at: int) -> int:
    """The next position that is no white space."""
    return _SPACE.match(text, at).end()


def _delimited(path: Path, file: str, key: str, columns: dict[str, str], mark: str) -> Iterator[Item]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = csv.reader(text, delimiter=mark, strict=True)
        head = next(rows, None)
        if head is None:
            return
        check_columns(columns, head, f"{key}: {file}")
        if doubled := [name for name in head if head.count(name) > 1]:
            raise KitError(f"{key}: {file}: the column {doubled[0]!r} is there twice")
        while True:
            number = rows.line_num + 1  # the line a row begins in: a quoted cell may hold line breaks
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield RowError(file, number, None, f"is not a row that can be read ({error})", "bad_csv")
                continue
            if not cells:
                continue
            if len(cells) != len(head):
                reason = f"has {len(cells)} cells, the first line has {len(head)}"
                yield RowError(file, number, None, reason, "bad_csv")
                continue
            yield number, {name: _cell(name, cell) for name, cell in zip(head, cells, strict=True) if cell.strip()}


def _cell(name: str, cell: str) -> Any:
    """A cell; lists such as `answers` are written as JSON."""
    if cell.lstrip().startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        return value if isinstance(value, list) else cell
    return cell


def _parquet(path: Path, file: str, key: str, columns: dict[str, str]) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        names = table.schema_arrow.names
        check_columns(columns, names, f"{key}: {file}")
        heavy = any("binary" in str(field.type) for field in table.schema_arrow)
        number = 0
        for batch in table.iter_batches(_BATCH_WITH_BYTES if heavy else _BATCH):
            for row in batch.to_pylist():
                number += 1
                yield number, {name: value for name, value in row.items() if not _missing(value)}
    except pa.ArrowException as error:
        raise KitError(f"{key}: {file}: is no Parquet file that can be read ({one_line(str(error))})") from None


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
