"""What a stage is asked to do, and under which key its shards are stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.settings import Member, from_dict
from dataset_builder.stages.store import SHARD_SCHEMA, ShardStore, fingerprint
from dataset_builder.table import QuestionTable

STAGES = ("sampling", "judging")
CALL_CACHE = "calls.sqlite"


@dataclass
class Job:
    """What a worker needs to know; plain values only, so that it travels as JSON.

    Attributes:
        work: the work folder.
        seed: the build's seed.
        members: a zoo entry's settings with ``identity``, which stands for everything that determines its answers.
        judges: ``{spec, name, identity}``; identity stands for everything that determines the judge's scores.
        questions: the question table's name inside the work folder.
        blocks: the blocks of this worker.
        prefix: put before the stage names; a control run has its own shards.
        device: where models run.
        threads: CPU threads of this worker.
        share: part (0–1) of every endpoint's limits that this worker may use.
        calls: name of the call cache inside the work folder; workers that may not share a file have their own.
    """

    work: str
    seed: int
    members: list[dict]
    judges: list[dict]
    questions: str = "questions.arrow"
    blocks: list[int] = field(default_factory=list)
    prefix: str = ""
    device: str = "auto"
    threads: int = 1
    share: float = 1.0
    calls: str = CALL_CACHE

    @cached_property
    def table(self) -> QuestionTable:
        """The questions."""
        return QuestionTable(Path(self.work) / self.questions)

    @property
    def block_count(self) -> int:
        return self.table.block_count

    def block(self, index: int) -> list[dict]:
        """The questions of one block."""
        return self.table.block(index)

    @property
    def samples(self) -> int:
        """Answers to each question, over all members."""
        return sum(member["samples"] for member in self.members)

    def stage(self, name: str) -> str:
        """The stage's name in the store."""
        return f"{self.prefix}{name}"


def is_remote(entry: dict) -> bool:
    """Whether a member's or a judge's settings name an endpoint."""
    return entry.get("spec", entry).get("endpoint") is not None


def member_settings(member: dict) -> Member:
    """A job's member as the dataclass it came from."""
    return from_dict({key: value for key, value in member.items() if key != "identity"}, Member, "job")


def block_seed(seed: int, member: str, block: int) -> int:
    """The seed of one block of one member: 31 bits of a hash, so that neighbours are unrelated."""
    digest = hashlib.sha256(f"{seed}\0{member}\0{block}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def call_seed(seed: int, member: str, question_id: str, sample: int) -> int:
    """The seed of one call to an endpoint: calls do not share a generator, so each has its own."""
    digest = hashlib.sha256(f"{seed}\0{member}\0{question_id}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def sampling_key(job: Job, member: dict, block: int, questions: list[dict] | None = None) -> str:
    """Fingerprint of everything that determines a member's answers to a block."""
    questions = questions if questions is not None else job.block(block)
    return fingerprint(
        {
            "schema": SHARD_SCHEMA,
            "seed": job.seed,
            "block": block,
            "member": {key: member[key] for key in ("name", "identity", "samples", "decoding", "prompt", "system")},
            "threads": 0 if is_remote(member) else job.threads,
            "questions": [[q["question_id"], q["question"], q["sha256"]] for q in questions],
        }
    )


def judging_key(job: Job, judge: dict, block: int, responses: list[dict], questions: list[dict] | None = None) -> str:
    """Fingerprint of everything that determines a judge's scores of a block's answers."""
    questions = questions if questions is not None else job.block(block)
    return fingerprint(
        {
            "schema": SHARD_SCHEMA,
            "block": block,
            "judge": judge["identity"],
            "threads": 0 if is_remote(judge) else job.threads,
            "questions": [[q["question_id"], q["question"], q["answers"], q["sha256"]] for q in questions],
            "responses": [[r["response_id"], r["response"]] for r in responses],
        }
    )


def read_member(job: Job, store: ShardStore, member: dict, block: int) -> list[dict] | None:
    """One member's answers to a block; None when they have to be made."""
    return store.read(job.stage("sampling"), member["name"], block, sampling_key(job, member, block))


def read_responses(job: Job, store: ShardStore, block: int) -> list[dict] | None:
    """Answers of all members to one block, member after member; None while one is missing."""
    rows: list[dict] = []
    for member in job.members:
        part = read_member(job, store, member, block)
        if part is None:
            return None
        rows += part
    return rows


def read_scores(job: Job, store: ShardStore, judge: dict, block: int, responses: list[dict]) -> list[dict] | None:
    """One judge's rows ``{response_id, scores}`` for the answers of a block; None when they have to be made."""
    return store.read(job.stage("judging"), judge["name"], block, judging_key(job, judge, block, responses))


def need_responses(job: Job, store: ShardStore, block: int) -> list[dict]:
    """Answers of all members to one block.

    Raises:
        KitError: one is missing.
    """
    rows = read_responses(job, store, block)
    if rows is None:
        raise KitError(f"answers of block {block} are missing in {job.work}: run the same command again")
    return rows


def settings_file(work: Path, settings_hash: str) -> Path:
    """Where the work folder spells out a judge's settings."""
    return work / "judges" / f"{settings_hash}.json"


def unique_answers(responses: list[dict]) -> dict[tuple[str, str], dict]:
    """The first row of every (question, text): equal answers to the same question are judged once."""
    unique: dict[tuple[str, str], dict] = {}
    for row in responses:
        unique.setdefault((row["question_id"], row["response"]), row)
    return unique


def score_rows(responses: list[dict], scores: dict[tuple[str, str], list[Any]]) -> list[dict]:
    """A judging shard's rows ``{response_id, scores}``, in the order of the answers."""
    return [
        {"response_id": r["response_id"], "scores": [vars(s) for s in scores[r["question_id"], r["response"]]]}
        for r in responses
    ]
