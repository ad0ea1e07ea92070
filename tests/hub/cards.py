"""The YAML at the head of a README, as the Hub reads and checks it."""

from __future__ import annotations

import re
from typing import Any

import yaml

_HEAD = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code")
_LISTS = ("tags", "datasets", "metrics", "task_categories", "size_categories", "configs")


def card_data(readme: bytes | None) -> dict[str, Any] | None:
    """The metadata of a README, None when it has none that can be read."""
    if readme is None:
        return None
    try:
        content = yaml.safe_load(_head(readme.decode("utf-8", "replace")) or "")
    except yaml.YAMLError:
        return None
    return content if isinstance(content, dict) else None


def check(content: str, repo_type: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a README's metadata: a few of the checks that the Hub makes."""
    head = _head(content)
    if head is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(head)
    except yaml.YAMLError as error:
        return [f"bad YAML: {' '.join(str(error).split())}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"], []
    errors = []
    if "license" in data and not _fits(data["license"], _LICENSE):
        errors.append('"license" must be one of the known ids, or a list of them')
    if "language" in data and not _fits(data["language"], _LANGUAGE):
        errors.append('"language" must be a language code, or a list of them')
    for name in _LISTS:
        if name in data and data[name] is not None and not isinstance(data[name], (list, str)):
            errors.append(f'"{name}" must be an array')
    for config in data.get("configs") or []:
        if repo_type == "dataset" and not (isinstance(config, dict) and isinstance(config.get("config_name"), str)):
            errors.append('"configs[]" needs a "config_name"')
    for model in data.get("model-index") or []:
        if not (isinstance(model, dict) and "name" in model and isinstance(model.get("results"), list)):
            errors.append('"model-index[]" needs a "name" and "results"')
    return errors, []


def tags(data: dict[str, Any]) -> list[str]:
    """What a repo is found by: its tags and what else its metadata says."""
    found = _listed(data.get("tags"))
    for name, prefix in (
        ("license", "license"),
        ("language", ""),
        ("datasets", "dataset"),
        ("base_model", "base_model"),
    ):
        found += [f"{prefix}:{value}" if prefix else value for value in _listed(data.get(name))]
    for name in ("task_categories", "size_categories"):
        found += [f"{name}:{value}" for value in _listed(data.get(name))]
    for name in ("library_name", "pipeline_tag"):
        found += _listed(data.get(name))
    return list(dict.fromkeys(found))


def _head(content: str) -> str | None:
    found = _HEAD.match(content)
    return found.group(1) if found else None


def _fits(value: Any, pattern: re.Pattern[str]) -> bool:
    values = _listed(value)
    return bool(values) and all(pattern.fullmatch(one) for one in values)


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [str(one) for one in values]
