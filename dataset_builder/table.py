"""The question table: all questions of a build in one Arrow file, one record batch a block, never all in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.errors import KitError

# The columns of the dataset's `questions` config, then what only a build needs: the split, the file on this machine
# and whether its bytes may be put into the dataset.
QUESTION_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("video_id", pa.string()),
        ("source", pa.string()),
        ("source_id", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("license", pa.string()),
        ("sha256", pa.string()),
        ("phash", pa.string()),
        ("duration", pa.float64()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("question_type", pa.string()),
        ("origin", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),
        ("embed", pa.bool_()),
    ]
)
_ROWS = 4096


def write_questions(rows: Iterable[dict[str, Any]], path: Path, block_size: int, limit: int | None = None) -> int:
    """Write a question table, sorted by video and id.

    Args:
        rows: one dict a question with the keys of :data:`QUESTION_SCHEMA`, in any order; they are not kept in memory.
        path: of the table.
        block_size: questions per block.
        limit: take only the first so many rows.

    Returns:
        The number of questions.

    Raises:
        KitError: there is no row, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    loose, ordered, new = (path.with_name(f".{path.name}.{part}.tmp") for part in ("loose", "sorted", "new"))
    try:
        rows = iter(rows if limit is None else islice(rows, limit))
        with pq.ParquetWriter(loose, QUESTION_SCHEMA) as writer:
            while chunk := list(islice(rows, _ROWS)):
                writer.write_table(pa.Table.from_pylist(chunk, QUESTION_SCHEMA))
        sort_parquet(loose, ordered, ("sha256", "question_id"))
        count = _write_blocks(ordered, new, block_size)
        if count:
            os.replace(new, path)
        return count
    except OSError as error:
        raise KitError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        for file in (loose, ordered, new):
            file.unlink(missing_ok=True)


def sort_parquet(source: Path, target: Path, columns: Iterable[str]) -> None:
    """Sort a Parquet file by columns into another one, on disk where memory does not suffice (DuckDB)."""
    with database(target.parent) as connection:
        order = ", ".join(f'"{name}"' for name in columns)
        connection.execute(
            f"COPY (SELECT * FROM read_parquet(?) ORDER BY {order}) TO '{_quoted(target)}' (FORMAT parquet)",
            [str(source)],
        )


def database(scratch: Path, memory: str = "256MB"):
    """A DuckDB connection in memory that spills to a folder; one thread, so that results come in one order."""
    import duckdb

    return duckdb.connect(
        config={"memory_limit": memory, "threads": 1, "temp_directory": str(scratch), "preserve_insertion_order": True}
    )


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _write_blocks(source: Path, target: Path, block_size: int) -> int:
    """Cut the sorted rows into record batches of one block each."""
    count, left = 0, None
    schema = QUESTION_SCHEMA.with_metadata({"block_size": str(block_size)})
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:

        def put(table: pa.Table) -> None:
            writer.write_batch(table.combine_chunks().to_batches()[0].cast(schema))

        for batch in pq.ParquetFile(source).iter_batches(max(_ROWS, block_size)):
            table = pa.Table.from_batches([batch])
            left = table if left is None else pa.concat_tables([left, table])
            count += table.num_rows
            while left.num_rows >= block_size:
                put(left.slice(0, block_size))
                left = left.slice(block_size)
        if left is not None and left.num_rows:
            put(left)
    return count


class QuestionTable:
    """A question table on disk, read block by block.

    Args:
        path: what :func:`write_questions` wrote.

    Raises:
        KitError: the file is missing or damaged.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        try:
            self._file = pa.ipc.open_file(pa.OSFile(str(path), "rb"))
        except (OSError, pa.ArrowInvalid):
            raise KitError(f"{path}: is missing or damaged: run the same command again") from None
        self.block_size = int(self._file.schema.metadata[b"block_size"])
        self.block_count = self._file.num_record_batches
        last = self._file.get_batch(self.block_count - 1).num_rows if self.block_count else 0
        self._rows = self.block_size * max(0, self.block_count - 1) + last

    def __len__(self) -> int:
        return self._rows

    def batch(self, index: int) -> pa.RecordBatch:
        """One block as a record batch."""
        return self._file.get_batch(index)

    def block(self, index: int) -> list[dict[str, Any]]:
        """One block as rows."""
        return self.batch(index).to_pylist()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows, sorted by video and id."""
        for index in range(self.block_count):
            yield from self.block(index)

    def content_key(self) -> str:
        """16 hex digits of a hash over all rows, without the file names of this machine."""
        digest = hashlib.sha256(str(self.block_size).encode())
        for index in range(self.block_count):
            for row in self.block(index):
                row.pop("path")
                digest.update(repr(list(row.values())).encode())
        return digest.hexdigest()[:16]
