"""Release notes: the newest section of the changelog, and what is different from the version before."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cards.push.copies import split_card
from cards.push.extras import TRAINING_ARGS
from cards.push.plan import CARD, Plan, RepoPlan
from cards.push.remote import Remote
from cards.run_folder import Run

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"  # the kit's, where the run has none of its own
_LONGEST = 4000  # characters of the changelog's section
# Files, beside the card, from which is read which models and judges a version is made of.
_ABOUT = {"dataset": "provenance.json", "model": TRAINING_ARGS, "evaluator": "config.json"}


def release_notes(plan: Plan, remote: Remote) -> str:
    """Notes of this version, as text for commits and tags.

    Args:
        plan: what is pushed.
        remote: where the version before is read, if there is one.
    """
    lines = [f"{plan.name} {plan.version}", ""]
    for repo in plan.repos:
        _, tags = remote.refs(repo)
        before = previous(plan.version, list(tags))
        if before is not None:
            old = facts(repo, lambda path, repo=repo, tag=tags[before]: remote.text(repo, path, tag))
            lines += changes(repo, before, old, facts(repo, lambda path, repo=repo: _planned(repo, path)))
    if len(lines) == 2:
        lines.append("The first version.")
    section = changelog(plan.run)
    return "\n".join([*lines, *(["", section] if section else [])]).strip() + "\n"


def changelog(run: Run) -> str:
    """The newest section of ``CHANGELOG.md`` in the run folder, or else of the kit's; empty without one."""
    path = next((path for path in (run.folder / "CHANGELOG.md", CHANGELOG) if path.is_file()), None)
    return newest_section(path.read_text(encoding="utf-8")) if path is not None else ""


def newest_section(changelog: str) -> str:
    """The first section of a changelog, headed by ``##``; cut at a line when it is long."""
    found = re.search(r"^## .*?(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE)
    text = found[0].strip() if found else ""
    return text if len(text) <= _LONGEST else text[:_LONGEST].rsplit("\n", 1)[0] + "\n…"


def previous(version: str, tags: list[str]) -> str | None:
    """The newest version tag below a version; None without one."""

    def order(tag: str) -> tuple:
        return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[.+-]", tag[1:]))

    older = [tag for tag in tags if re.match(r"v\d", tag) and order(tag) < order(version)]
    return max(older, key=order) if older else None


def changes(repo: RepoPlan, before: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What two versions of a repo differ in: rows by config and split, scores, models and judges."""
    lines = []
    for what in [*old, *(name for name in new if name not in old)]:
        if old.get(what) != new.get(what):
            lines.append(f"- {repo.repo_id}: {what}: {_said(old.get(what))} in {before}, {_said(new.get(what))} now")
    return lines or [f"- {repo.repo_id}: the same rows, models and scores as {before}"]


def facts(repo: RepoPlan, read: Callable[[str], bytes | None]) -> dict[str, Any]:
    """Rows and scores that a version's card tells, and the models and judges of its other files.

    Args:
        repo: whose version.
        read: gives a file's content by its path; None where there is none.
    """
    data, _ = split_card((read(CARD) or b"").decode("utf-8", "replace"))
    found = measures(data)
    try:
        about = yaml.safe_load(content) if (content := read(_ABOUT[repo.kind])) else {}
    except (yaml.YAMLError, UnicodeDecodeError):
        about = {}
    return {**found, **models(repo.kind, about if isinstance(about, dict) else {})}


def measures(data: dict) -> dict[str, float]:
    """Rows and scores that a card's YAML block tells."""
    found: dict[str, float] = {}
    for info in data.get("dataset_info") or []:
        for split in info.get("splits") or []:
            found[f"rows of {info.get('config_name')}/{split.get('name')}"] = split.get("num_examples")
    for model in data.get("model-index") or []:
        for result in model.get("results") or []:
            for metric in result.get("metrics") or []:
                found[f"{metric.get('name') or metric.get('type')}"] = metric.get("value")
    return found


def models(kind: str, about: dict[str, Any]) -> dict[str, str]:
    """Which models and judges a version is made of.

    Args:
        kind: of the repo.
        about: ``provenance.json`` of a dataset, ``training_args.yaml`` of a model, ``config.json`` of an evaluator.
    """
    if kind == "dataset":
        return {
            f"{what} {each.get('name')}": str(each.get("revision") or each.get("model") or "there")
            for what, key in (("member", "zoo"), ("judge", "judges"))
            for each in about.get(key) or []
            if isinstance(each, dict)
        }
    if kind == "model":
        rounds = about.get("rounds") or []
        said = {"arm": about.get("arm"), "base": about.get("base"), "rounds": len(rounds) or None}
        said["dataset"] = " ".join(str(about[key]) for key in ("dataset", "dataset_fingerprint") if about.get(key))
    else:
        record = about.get("record") or {}
        said = {"judge": record.get("name"), "revision": record.get("revision")}
        said["settings"] = record.get("settings_hash")
    return {key: str(value) for key, value in said.items() if value}


def _planned(repo: RepoPlan, path: str) -> bytes | None:
    file = repo.final.files.get(path)
    return file.read() if file is not None else None


def _said(value: Any) -> str:
    if value is None:
        return "not there"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
