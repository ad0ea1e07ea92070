"""What a build is made of, resolved and hashed before any model is loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataset_builder import __version__
from dataset_builder.assemble import Facts, settings_of
from dataset_builder.settings import BuildConfig
from dataset_builder.stages import SHARD_SCHEMA, fingerprint
from dataset_builder.stages.job import Job, is_remote
from dataset_builder.table import QuestionTable

# Raise this when the dataset's columns or the meaning of their values change.
DATASET_SCHEMA = 2
# How an endpoint is asked, not what: changing these changes no answer and must not cost one.
_OPERATION = (
    "base_url",
    "provider",
    "api_key_env",
    "concurrency",
    "requests_per_minute",
    "max_retries",
    "timeout",
    "backoff",
    "max_backoff",
    "spend_limit",
    "price",
)


def config_hash(config: BuildConfig, limit: int | None = None) -> str:
    """Hash of what the config says of the dataset (not of the files it names, nor of how endpoints are reached)."""
    plain = asdict(config)
    entries = [*plain["zoo"], *plain["judges"], plain["pairs"]["confirm"] or {}]
    entries += [source["member"] for source in plain["sources"] if "member" in source]
    for entry in entries:
        if entry.get("endpoint"):
            entry["endpoint"] = what_is_sent(entry["endpoint"])
    return fingerprint({"config": plain, "limit": limit})


def what_is_sent(endpoint: dict) -> dict:
    """The endpoint's settings that decide a request's content."""
    return {key: value for key, value in endpoint.items() if key not in _OPERATION}


def identity(entry: Any) -> dict:
    """What stands for the weights behind a member or judge: a revision, or an endpoint's model and what it is sent."""
    if getattr(entry, "endpoint", None) is None:
        from dataset_builder.models import model_revision

        return {"revision": model_revision(entry.model, entry.revision)}
    from dataset_builder.models import served_name

    sent, name = what_is_sent(asdict(entry.endpoint)), served_name(entry.model)
    return {"model": entry.model, "revision": entry.revision or f"endpoint:{name}", "endpoint": sent}


def make_members(zoo: list[Any]) -> list[dict]:
    """Zoo entries with their ``identity``."""
    return [asdict(member) | {"identity": identity(member)} for member in zoo]


def make_judges(specs: list[Any]) -> list[dict]:
    """Judges with everything that determines their scores under ``identity``; the weight is no part of it."""
    judges = []
    for spec in specs:
        skip = ("weight", "model", "revision", "endpoint")
        settings = {key: value for key, value in asdict(spec).items() if key not in skip}
        made: dict = {"settings": settings, "code": judge_code(spec)}
        if spec.kind != "reference":
            made |= identity(spec)
        judges.append({"name": spec.name, "spec": asdict(spec), "identity": made})
    return judges


def judge_code(spec: Any) -> Any:
    """What of a judge's code determines its scores: its prompt, or the revision of its rules."""
    if spec.kind == "visual":
        from dataset_builder.judges.visual import REFERENCE_PROMPT, VERIFIER_PROMPT

        return [VERIFIER_PROMPT, REFERENCE_PROMPT] if spec.use_references else VERIFIER_PROMPT
    if spec.kind != "reference":
        from dataset_builder.judges.prompts import prompt_hash

        return prompt_hash(spec.kind)
    from dataset_builder.judges import ReferenceJudge

    judge = ReferenceJudge()
    return [judge.revision, judge.settings_hash]


def make_job(config: BuildConfig, work: Path, questions: str = "questions.arrow") -> Job:
    """The job of sampling and judging all questions of a table in the work folder."""
    return Job(
        work=str(work),
        seed=config.seed,
        members=make_members(config.zoo),
        judges=make_judges(config.judges),
        questions=questions,
    )


def judge_weights(config: BuildConfig) -> dict[str, float]:
    """Weight of each judge in the aggregate, by the judge's name."""
    return {spec.name: float(spec.weight) for spec in config.judges}


def build_fingerprint(config_key: str, job: Job, table: QuestionTable, rejected: dict[str, int], more: Any = "") -> str:
    """Hash of everything that determines the dataset: config, code versions, rows, videos, models and judges."""
    return fingerprint(
        {
            "config": config_key,
            "schemas": [SHARD_SCHEMA, DATASET_SCHEMA],
            "questions": table.content_key(),
            "members": [[m["name"], m["identity"]] for m in job.members],
            "judges": [[j["name"], j["identity"]] for j in job.judges],
            "rejected": rejected,
            "more": more,
        }
    )


def provenance(config: BuildConfig, job: Job, config_key: str, key: str, limit: int | None, facts: Facts) -> dict:
    """What ``provenance.json`` says of how the dataset was made; no path of the machine it was made on."""
    from dataset_builder.models import served_name

    def judged(name: str) -> dict:
        found = sorted((revision, settings) for judge, revision, settings in facts.judged if judge == name)
        return {
            "revision": found[0][0] if found else None,
            "settings": {settings: settings_of(Path(job.work), settings) for _, settings in found},
        }

    return {
        "name": config.name,
        "code_version": __version__,
        "seed": config.seed,
        "limit": limit,
        "block_size": config.block_size,
        "max_shard_mb": config.max_shard_mb,
        "sources": [
            {"kind": s.kind, "source": s.source, "license": s.license, "redistribute": s.redistribute}
            for s in config.sources
        ],
        "split": asdict(config.split),
        "pairs": pairs_settings(config),
        "ids_only": config.ids_only,
        "zoo": [
            {
                "name": m["name"],
                "revision": m["identity"]["revision"],
                "served_as": sorted(facts.served.get(m["name"], ())),
                "endpoint": is_remote(m),
                "samples": m["samples"],
                "decoding": m["decoding"],
                "prompt": m["prompt"],
                "system": m["system"],
                "template_hash": facts.templates.get(m["name"]),
            }
            for m in job.members
        ],
        "judges": [
            {
                "name": j["name"],
                "weight": j["spec"].get("weight", 1.0),
                "kind": j["spec"]["kind"],
                "model": served_name(j["spec"]["model"]) if "model" in j["spec"] else None,
                "endpoint": is_remote(j),
                **judged(j["name"]),
            }
            for j in job.judges
        ],
        "errors": dict(sorted(facts.errors.items())),
        "schemas": {"shards": SHARD_SCHEMA, "dataset": DATASET_SCHEMA},
        "config_hash": config_key,
        "fingerprint": key,
    }


def pairs_settings(config: BuildConfig) -> dict:
    """The selection's settings without paths and without how an endpoint is reached."""
    return without_places(asdict(config.pairs))


def without_places(settings: dict) -> dict:
    """The plain values of pair rules, with file and model names in place of paths of this machine."""
    for entry in settings["decontaminate"]:
        for name in ("dataset", "questions", "videos"):
            entry.pop(name)
    if settings["confirm"]:
        settings["confirm"] = {key: value for key, value in settings["confirm"].items() if key != "endpoint"}
        settings["confirm"]["model"] = Path(settings["confirm"]["model"]).name
    for place, name in ((settings, "diversity_model"), (settings["dedup"], "model")):
        place[name] = place[name] and Path(place[name]).name
    return settings
