"""A reader for tests of the importers: writes a file, reads it as a source, and has what came of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from dataset_builder.settings import (
    PreferenceSource,
    SplitConfig,
)
from dataset_builder.sources import read_sources
from dataset_builder.table import QuestionTable


class Reader:
    """Writes a file, reads it as a source and gives back what came of it."""

    def __init__(self, root: Path, videos: Path):
        self.root, self.videos, self.work = root, videos, root / "work"

    def file(self, rows, name: str = "rows.jsonl") -> str:
        path = self.root / name
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            path.write_text("[" + ",\n".join(lines) + "]" if path.suffix == ".json" else "\n".join(lines))
        return str(path)

    def read(self, source, **options):
        self.report = read_sources([source], SplitConfig(0, 0), self.work, 8, **options)
        lines = (self.work / "rejected.jsonl").read_text().splitlines()
        self.rejected = [json.loads(line) for line in lines]
        assert all("\n" not in row["reason"] for row in self.rejected)
        assert Counter(row["kind"] for row in self.rejected) == self.report.rejected
        return list(QuestionTable(self.work / "questions.arrow")) if self.report.questions else []

    def pairs(self, rows, name: str = "rows.jsonl", **more) -> list[dict]:
        source = PreferenceSource("preferences", self.file(rows, name), videos=str(self.videos), **more)
        self.questions = self.read(source)
        return pq.read_table(self.work / "imported.parquet").to_pylist()

    @property
    def kinds(self) -> list[tuple]:
        return [(row["row"], row["field"], row["kind"]) for row in self.rejected]


def texts(questions) -> list[tuple]:
    return sorted((q["source_id"], q["question"], q["answer"]) for q in questions)


def talk(*turns: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]


def write_dataset(rows: list[dict], features: Features, path: Path) -> None:
    """A Parquet file as `datasets` writes it, without importing a codec."""
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, features.arrow_schema), path)
