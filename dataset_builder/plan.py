"""What a build is made of, resolved and hashed before any model is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset_builder.config import BuildConfig
from dataset_builder.errors import KitError, RowError
from dataset_builder.sources import Question
from dataset_builder.stages import SHARD_SCHEMA, fingerprint
from dataset_builder.worker import Job, settings_file

# Raise this when the dataset's columns or the meaning of their values change.
DATASET_SCHEMA = 1


def config_hash(config: BuildConfig, limit: int | None = None) -> str:
    """Hash of the config as it was written (not of the files it names), with the limit."""
    return fingerprint({"config": asdict(config), "limit": limit})


def model_revision(name_or_path: str, revision: str | None = None) -> str:
    """Content hash of a checkpoint folder, or the commit a Hub id stands for, without loading the model.

    Raises:
        KitError: there is no such checkpoint.
    """
    from dataset_builder.models import checkpoint_revision

    path = Path(name_or_path)
    if path.exists() or str(name_or_path).startswith(("/", "./", "../")) or str(name_or_path).count("/") != 1:
        if not path.is_dir():
            raise KitError(f"{name_or_path}: there is no checkpoint folder here")
        return checkpoint_revision(path)
    from huggingface_hub import hf_hub_download

    try:
        file = Path(hf_hub_download(str(name_or_path), "config.json", revision=revision))
    except Exception as error:  # the Hub's client raises many kinds, all of which mean the same here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KitError(f"{name_or_path}: neither a checkpoint folder nor a model on the Hub: {reason}") from None
    return file.parent.name  # …/snapshots/COMMIT/config.json


def make_members(zoo: list[Any]) -> list[dict]:
    """Zoo entries with their resolved revision under ``identity``."""
    members = []
    for member in zoo:
        entry = asdict(member)
        entry["identity"] = {"revision": model_revision(member.model, member.revision)}
        members.append(entry)
    return members


def make_judges(specs: list[Any]) -> list[dict]:
    """Judges with everything that determines their scores under ``identity``; the weight is no part of it."""
    judges = []
    for spec in specs:
        settings = {key: value for key, value in asdict(spec).items() if key not in ("weight", "model", "revision")}
        identity: dict = {"settings": settings, "code": judge_code(spec.kind)}
        if spec.kind == "visual":
            identity["revision"] = model_revision(spec.model, spec.revision)
        judges.append({"name": spec.name, "spec": asdict(spec), "identity": identity})
    return judges


def judge_code(kind: str) -> Any:
    """What of a judge's code determines its scores: revision of its rules, or its prompt."""
    if kind == "visual":
        from dataset_builder.judges.visual import VERIFIER_PROMPT

        return VERIFIER_PROMPT
    from dataset_builder.judges import ReferenceJudge

    judge = ReferenceJudge()
    return [judge.revision, judge.settings_hash]


def make_job(config: BuildConfig, questions: list[Question], work: Path) -> Job:
    """The job of sampling and judging all questions, in the order given."""
    return Job(
        work=str(work),
        seed=config.seed,
        members=make_members(config.zoo),
        judges=make_judges(config.judges),
        questions=[job_question(q) for q in questions],
        block_size=config.block_size,
    )


def job_question(question: Question) -> dict:
    """What the stages need to know of a question."""
    return {
        "question_id": question.question_id,
        "question": question.question,
        "answers": list(question.answers),
        "video_sha256": question.sha256,
        "video_path": question.path,
    }


def question_row(question: Question) -> dict:
    """The assembled row of a question: the columns of the ``questions`` config and its split."""
    return {**question.columns(), "split": question.split}


def may_embed(config: BuildConfig, question: Question) -> bool:
    """Whether the dataset may carry the clip's bytes: the source allows it and the clip's licence is known."""
    return config.source.redistribute and bool(question.license) and question.license.lower() != "unknown"


def build_fingerprint(config_key: str, job: Job, questions: list[Question], rejected: list[RowError]) -> str:
    """Hash of everything that determines the dataset: config, code versions, rows, videos, models and judges."""
    return fingerprint(
        {
            "config": config_key,
            "schemas": [SHARD_SCHEMA, DATASET_SCHEMA],
            "questions": [question_row(q) for q in questions],
            "members": [[m["name"], m["identity"]] for m in job.members],
            "judges": [[j["name"], j["identity"]] for j in job.judges],
            "rejected": sorted(error.kind for error in rejected),
        }
    )


def _settings(job: Job, settings_hash: str) -> dict | None:
    file = settings_file(Path(job.work), settings_hash)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def provenance(
    config: BuildConfig,
    job: Job,
    config_key: str,
    key: str,
    limit: int | None,
    responses: dict[str, list[dict]],
) -> dict:
    """What ``provenance.json`` says of how the dataset was made; no path of the machine it was made on."""
    rows = [row for rows in responses.values() for row in rows]
    templates = {row["model"]: json.loads(row["sampling"])["template_hash"] for row in rows}
    seen = {(s["judge"], s["judge_revision"], s["settings_hash"]) for row in rows for s in row["scores"]}
    return {
        "name": config.name,
        "seed": config.seed,
        "limit": limit,
        "block_size": config.block_size,
        "source": {
            "kind": config.source.kind,
            "source": config.source.source,
            "license": config.source.license,
            "redistribute": config.source.redistribute,
        },
        "split": asdict(config.split),
        "pairs": asdict(config.pairs),
        "zoo": [
            {
                "name": m["name"],
                "revision": m["identity"]["revision"],
                "samples": m["samples"],
                "decoding": m["decoding"],
                "template_hash": templates.get(m["name"]),
            }
            for m in job.members
        ],
        "judges": [
            {
                "name": j["name"],
                "weight": j["spec"].get("weight", 1.0),
                "kind": j["spec"]["kind"],
                "revision": min(s[1] for s in seen if s[0] == j["name"]),
                "settings": {s[2]: _settings(job, s[2]) for s in sorted(seen) if s[0] == j["name"]},
            }
            for j in job.judges
        ],
        "schemas": {"shards": SHARD_SCHEMA, "dataset": DATASET_SCHEMA},
        "config_hash": config_key,
        "fingerprint": key,
    }
