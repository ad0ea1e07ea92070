"""Which judge a verdict is from, told so exactly that two results can be refused a comparison.

The same predictions moved from 82.0 to 70.8 and 77.6 between versions of one served judge (LLaVA-Hound), so the version
that a server reports counts as much as the name that was asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataset_builder.judges import Judge

_DECIDING = ("kind", "revision", "reported", "settings_hash")  # the revision names the model: see below


def judge_record(judge: Judge) -> dict[str, Any]:
    """What a result says about its judge; ask for it after judging, when a server has said what it is.

    Returns:
        ``name``, ``kind``, ``model`` (as it was asked for; None without one), ``revision``, ``reported`` (what an
        endpoint said it is), ``settings_hash``, ``settings`` (prompt, frames, decoding), ``criteria`` (the range
        of each), and the ``fingerprint`` of what decides a verdict.
    """
    record = {
        "name": judge.name,
        "kind": judge.kind,
        "model": judge.model_name,
        "revision": judge.revision,
        "reported": sorted(judge.reported),
        "settings_hash": judge.settings_hash,
        "settings": judge.settings,
        "criteria": {c.name: [c.low, c.high] for c in getattr(judge, "criteria", ())},  # a pair judge has none
    }
    return {**record, "fingerprint": fingerprint_of(record)}


def fingerprint_of(record: Mapping[str, Any]) -> str:
    """16 hex digits over kind, revision, reported versions and settings of a judge's record.

    The revision stands for the model: content of a folder, commit of a Hub id, or an endpoint's model by name. So a
    checkpoint that is moved or renamed is the same judge, and one retrained in place is another.
    """
    text = json.dumps([record.get(key) for key in _DECIDING], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def same_judge(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two records are of one judge and settings; by their hashes if one is old and has no fingerprint."""
    if a.get("fingerprint") and b.get("fingerprint"):
        return a["fingerprint"] == b["fingerprint"]
    return all(a.get(key) == b.get(key) for key in ("revision", "settings_hash"))


def describe_judge(record: Mapping[str, Any]) -> str:
    """One line for tables: name, kind, model, and the first digits of the fingerprint."""
    model = record.get("model") or record.get("revision")
    version = f", reported as {', '.join(record['reported'])}" if record.get("reported") else ""
    return f"{record.get('name')} ({record.get('kind') or 'judge'}, {model}{version}; {judge_digits(record)})"


def judge_digits(record: Mapping[str, Any]) -> str:
    """The first eight digits by which reports tell judges apart."""
    return str(record.get("fingerprint") or record.get("settings_hash") or "unknown")[:8]


def selection_judges(dataset: str | Path) -> list[dict[str, Any]]:
    """The judges whose scores chose a dataset's pairs, as its ``provenance.json`` names them (weight above 0).

    Raises:
        KitError: there is no such dataset, or its provenance is missing or broken.
    """
    from dataset_builder.loading import dataset_folder
    from eval.results import read_json

    provenance = read_json(dataset_folder(dataset, "provenance.json") / "provenance.json")
    return [judge for judge in provenance.get("judges", []) if judge.get("weight", 1.0) > 0]


def shared_model(record: Mapping[str, Any], judges: Iterable[Mapping[str, Any]]) -> str | None:
    """The name of the first judge of ``judges`` that an evaluator shares its model with, or None.

    A figure by such an evaluator is *self-judged*: training has already selected for what this model likes. Models are
    the same when their weights' hash (or the Hub commit) is, or when an endpoint serves the same name. A comparison
    with reference answers has no model to share.
    """
    mine = {record.get("revision"), _served(record.get("model")), *map(_served, record.get("reported") or ())}
    mine -= {None, "", "unknown"}
    for judge in judges:
        if judge.get("kind") == "reference" or record.get("kind") == "reference":
            continue
        if mine & {judge.get("revision"), _served(judge.get("model"))}:
            return judge["name"]
    return None


def _served(model: str | None) -> str | None:
    """A served model's name in the form that an endpoint judge's revision has by default."""
    return f"endpoint:{model}" if model else None
