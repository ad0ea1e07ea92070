"""Release notes: the newest section of the changelog, and what is different from the version before."""

from __future__ import annotations

import re
from pathlib import Path

from cards.push.copies import split_card
from cards.push.plan import CARD, Plan, RepoPlan
from cards.push.remote import Remote

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
_LONGEST = 4000  # characters of the changelog's section


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
            old = remote.text(repo, CARD, tags[before])
            new = repo.final.files.get(CARD)
            if old is not None and new is not None:
                lines += changes(repo, before, old.decode("utf-8", "replace"), new.read().decode("utf-8", "replace"))
    if len(lines) == 2:
        lines.append("The first version.")
    section = newest_section(CHANGELOG.read_text(encoding="utf-8")) if CHANGELOG.is_file() else ""
    return "\n".join([*lines, *(["", section] if section else [])]).strip() + "\n"


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


def changes(repo: RepoPlan, before: str, old: str, new: str) -> list[str]:
    """What two cards of a repo say differently: rows by config and split, and measured values."""
    lines = []
    for what, (was, now) in _pairs(measures(split_card(old)[0]), measures(split_card(new)[0])).items():
        if was != now:
            lines.append(f"- {repo.repo_id}: {what}: {_said(was)} in {before}, {_said(now)} now")
    return lines or [f"- {repo.repo_id}: the same rows and scores as {before}"]


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


def _pairs(old: dict, new: dict) -> dict[str, tuple]:
    return {name: (old.get(name), new.get(name)) for name in [*old, *(name for name in new if name not in old)]}


def _said(value: float | None) -> str:
    return "not there" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"
