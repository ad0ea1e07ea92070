"""From finished shards to the rows the selection reads: all answers with all scores, in the questions' order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.answers import mark_duplicates
from dataset_builder.errors import KitError
from dataset_builder.judges.base import aggregate, disagreement
from dataset_builder.schema import FEATURES
from dataset_builder.stages import ShardStore
from dataset_builder.stages.job import Job, need_responses, read_scores, settings_file
from dataset_builder.table import QuestionTable

RESPONSES = "assembled/responses.parquet"
PAIRS = "assembled/pairs.parquet"
RESPONSE_SCHEMA = FEATURES["responses"].arrow_schema
PAIR_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("response_id_chosen", pa.string()),
        ("response_id_rejected", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("model_chosen", pa.string()),
        ("model_rejected", pa.string()),
        ("score_chosen", pa.float64()),
        ("score_rejected", pa.float64()),
        ("margin", pa.float64()),
        ("judges", pa.list_(pa.string())),
    ]
)
_DIGITS = 9
_ROWS = 4096


class Facts:
    """What a build says of its answers without keeping them.

    Attributes:
        answers: their number.
        errors: answers and scores that could not be made, by member or judge.
        flags: answers by flag.
        templates: template hash of each member.
        served: models that an endpoint reported, by member.
        judged: ``(judge, revision, settings hash)`` that occur.
    """

    def __init__(self):
        self.answers = 0
        self.errors, self.flags = Counter(), Counter()
        self.templates: dict[str, str] = {}
        self.served: dict[str, set[str]] = {}
        self.judged: set[tuple[str, str, str]] = set()

    def add(self, row: dict) -> None:
        """Take one answer with its scores into account."""
        self.answers += 1
        self.flags.update(row["flags"])
        if row.get("error"):
            self.errors[row["model"]] += 1
        if row["model"] not in self.templates:
            self.templates[row["model"]] = json.loads(row["sampling"]).get("template_hash")
        self.served.setdefault(row["model"], set()).add(row["model_revision"])
        for score in row["scores"]:
            self.judged.add((score["judge"], score["judge_revision"], score["settings_hash"]))
        self.errors.update({score["judge"] for score in row["scores"] if score["error"]})


def collect(job: Job, weights: dict[str, float]) -> Iterator[tuple[dict, list[dict]]]:
    """Every question with its answers and all their scores, block after block.

    Args:
        job: whose shards are finished.
        weights: of the judges, by name.

    Yields:
        (row of the question table, full rows of the ``responses`` config with ``error``).

    Raises:
        KitError: a shard is missing.
    """
    store = ShardStore(Path(job.work))
    for block in range(job.block_count):
        rows = need_responses(job, store, block)
        scores: dict[str, list[dict]] = {row["response_id"]: [] for row in rows}
        for judge in job.judges:
            judged = read_scores(job, store, judge, block, rows)
            if judged is None:
                raise KitError(f"scores of block {block} are missing in {job.work}: run the same command again")
            for entry in judged:
                scores[entry["response_id"]] += entry["scores"]
        answers: dict[str, list[dict]] = {}
        for row in rows:
            full = {**row, "scores": scores[row["response_id"]]}
            full["score"], full["disagreement"] = summarise(full["scores"], weights)
            answers.setdefault(row["question_id"], []).append(full)
        for question in job.block(block):
            found = answers.get(question["question_id"], [])
            mark_duplicates(found)
            yield question, found


def summarise(scores: list[dict], weights: dict[str, float]) -> tuple[float | None, float | None]:
    """Aggregate of all judges (None when one is missing), and their disagreement.

    Both are from 0 to 1; the disagreement is None with fewer than two judges that scored the answer.
    """
    total, spread = aggregate(scores, weights), disagreement(scores)
    return (None if total is None else round(total, _DIGITS)), (None if spread is None else round(spread, _DIGITS))


def write_responses(found: Iterable[tuple[dict, list[dict]]], work: Path) -> Facts:
    """Write ``assembled/responses.parquet`` from :func:`collect`, a few thousand rows in memory at a time."""
    facts = Facts()

    def rows() -> Iterator[dict]:
        for question, answers in found:
            shared = {key: question[key] for key in ("question_id", "video_id", "question", "answer")}
            for answer in answers:
                facts.add(answer)
                yield {**answer, **shared}

    write_rows(rows(), work / RESPONSES, RESPONSE_SCHEMA)
    return facts


def write_rows(rows: Iterable[dict], path: Path, schema: pa.Schema) -> None:
    """Write rows as Parquet; the file has its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(new, schema) as writer:
        chunk: list[dict] = []
        for row in rows:
            chunk.append(row)
            if len(chunk) == _ROWS:
                writer.write_table(pa.Table.from_pylist(chunk, schema))
                chunk = []
        if chunk:
            writer.write_table(pa.Table.from_pylist(chunk, schema))
    new.replace(path)


def read_parquet(path: Path, columns: list[str] | None = None) -> Iterator[dict]:
    """Rows of a Parquet file, a few thousand in memory at a time."""
    for batch in pq.ParquetFile(path).iter_batches(_ROWS, columns=columns):
        yield from batch.to_pylist()


def beside(table: QuestionTable, rows: Iterable[dict]) -> Iterator[tuple[dict, list[dict]]]:
    """Every question with its rows of another file in the same order (empty where there is none).

    Raises:
        KitError: the rows are not in the table's order.
    """
    groups = groupby(rows, key=lambda row: row["question_id"])
    key, group = next(groups, (None, None))
    for question in table:
        if question["question_id"] == key:
            yield question, list(group)
            key, group = next(groups, (None, None))
        else:
            yield question, []
    if key is not None:
        raise KitError(f"{table.path}: the answers of question {key} are not in its order: run the same command again")


def table_facts(table: QuestionTable) -> dict[str, Any]:
    """``{clips, questions, splits}`` of a question table."""
    clips, last, splits = 0, None, Counter()
    for row in table:
        clips += row["sha256"] != last
        last = row["sha256"]
        splits[row["split"]] += 1
    return {"clips": clips, "questions": len(table), "splits": dict(sorted(splits.items()))}


def settings_of(work: Path, settings_hash: str) -> dict | None:
    """A judge's settings, spelled out, from the work folder."""
    file = settings_file(work, settings_hash)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
