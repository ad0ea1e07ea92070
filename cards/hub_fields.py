"""Are the fields of a card's YAML block such as the Hub documents them? Checked here, without network.

``hub_fields.yaml`` holds what the Hub knows: licences, languages, tasks, sizes. Its own validation
(``card.validate()``) needs the live Hub and is not part of this. Keys that the file says nothing of are left alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dataset_builder.errors import KitError

OTHER = "other"
_LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LICENSE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LONG_LANGUAGE = re.compile(r"[a-z]{3}")  # ISO 639-2 and 639-3: thousands, of which no list is kept here
_SPLIT = re.compile(r"\w+(\.\w+)*")
# How ``datasets`` spells a column: its name, and one of these.
_FEATURE_KINDS = ("dtype", "list", "struct", "sequence")
_COUNTS = ("num_bytes", "num_examples")


@cache
def known() -> dict[str, Any]:
    """What the Hub knows, by field; ``languages`` as a set."""
    found = yaml.safe_load(Path(__file__).with_name("hub_fields.yaml").read_text(encoding="utf-8"))
    return {**found, "languages": frozenset(found["languages"].split())}


def check_fields(data: Mapping[str, Any], kind: str) -> None:
    """Refuse a YAML block that the Hub would not understand.

    Args:
        data: the block.
        kind: ``dataset``, ``model`` or ``evaluator``.

    Raises:
        KitError: with the first field that is wrong, and what it may be.
    """
    for line in problems(data, kind):
        raise KitError(f"the {kind} card: {line}")


def problems(data: Mapping[str, Any], kind: str) -> Iterator[str]:
    """One line for each field that is not as the Hub documents it; see :func:`check_fields`."""
    yield from _license(data)
    for value in _listed(data.get("language")):
        if value not in known()["languages"] and not (isinstance(value, str) and _LONG_LANGUAGE.fullmatch(value)):
            yield f"'language' has '{value}', which is no ISO 639 code (two or three small letters, as in 'en')"
    if kind == "dataset":
        yield from _words(data, "task_categories", "tasks")
        yield from _words(data, "size_categories", "size_categories")
        yield from _configs(data)
        yield from _infos(data)
    else:
        yield from _words(data, "pipeline_tag", "tasks")
        yield from _words(data, "base_model_relation", "base_model_relations")
        yield from _model_index(data)
    for name in ("datasets", "base_model"):
        for value in _listed(data.get(name)):
            if not (isinstance(value, str) and _REPO_ID.fullmatch(value)):
                yield f"'{name}' has '{value}', which is no id of a repo (NAMESPACE/NAME)"
    for name in ("tags", "datasets", "task_categories", "size_categories"):
        if name in data and not isinstance(data[name], list):
            yield f"'{name}' is no list"
    for value in _listed(data.get("tags")):
        if not (isinstance(value, str) and value.strip()):
            yield f"'tags' has '{value}', which is no word"
    for name in ("pretty_name", "library_name", "license_name", "license_link"):
        if name in data and not (isinstance(data[name], str) and data[name].strip()):
            yield f"'{name}' is no text"


def hub_license(names: list[str]) -> str:
    """The word for the field ``license``: the Hub's id of the only licence, else ``other``."""
    word = names[0].strip().casefold() if len(names) == 1 else OTHER
    return word if word in known()["licenses"] else OTHER


def license_name(names: list[str]) -> str:
    """A ``license_name`` for what has no id on the Hub, as the Hub wants it beside ``license: other``."""
    plain = [re.sub(r"[^a-z0-9.+-]+", "-", name.casefold()).strip("-") for name in names]
    return "-and-".join(filter(None, plain)) or "not-stated"


def _license(data: Mapping[str, Any]) -> Iterator[str]:
    for value in _listed(data.get("license")):
        if value not in known()["licenses"]:
            yield (
                f"'license' is '{value}', which is no licence id of the Hub ({_LICENSES}); write license: other with a "
                "license_name"
            )
    if OTHER in _listed(data.get("license")) and not _LICENSE_NAME.fullmatch(str(data.get("license_name") or "")):
        yield "'license' is other, which wants a 'license_name' of small letters, digits, '.', '+' and '-'"
    link = data.get("license_link")
    if isinstance(link, str) and not (link in ("LICENSE", "LICENSE.md") or re.match(r"https?://\S+$", link)):
        yield f"'license_link' is '{link}'; it is LICENSE, LICENSE.md or an address"


def _words(data: Mapping[str, Any], field: str, listed_as: str) -> Iterator[str]:
    for value in _listed(data.get(field)):
        if value not in known()[listed_as]:
            yield f"'{field}' has '{value}', which the Hub does not know (cards/hub_fields.yaml lists what it knows)"


def _configs(data: Mapping[str, Any]) -> Iterator[str]:
    """``configs``: a list of ``{config_name, data_files: [{split, path}], default, …}``, at most one the default."""
    configs = data.get("configs")
    if configs is None:
        return
    if not (isinstance(configs, list) and all(isinstance(entry, dict) for entry in configs)):
        yield "'configs' is no list of configs"
        return
    names = [entry.get("config_name") for entry in configs]
    for name, times in Counter(map(str, names)).items():
        if times > 1 or name in ("None", ""):
            yield f"'configs' has {times} entries of the config_name '{name}'"
    if sum(entry.get("default") is True for entry in configs) > 1:
        yield "'configs' has more than one default"
    for entry in configs:
        files = entry.get("data_files")
        for file in files if isinstance(files, list) else [files]:
            named = isinstance(file, dict) and set(file) == {"split", "path"} and _SPLIT.fullmatch(str(file["split"]))
            paths = file.get("path") if isinstance(file, dict) else file
            good = all(isinstance(path, str) and path and not path.startswith("/") for path in _listed(paths))
            if not (paths and good and (named or isinstance(file, str))):
                yield f"'configs': data_files of {entry.get('config_name')} are no {{split, path}} in the repo: {file}"


def _infos(data: Mapping[str, Any]) -> Iterator[str]:
    """``dataset_info``: features, splits with counts, sizes that add up; of configs that there are."""
    infos = data.get("dataset_info")
    configs = {entry.get("config_name") for entry in _listed(data.get("configs")) if isinstance(entry, dict)}
    for info in _listed(infos):
        if not isinstance(info, dict):
            yield "'dataset_info' is no list of configs"
            continue
        name = info.get("config_name", "default")
        if configs and name not in configs:
            yield f"'dataset_info' tells of the config '{name}', which 'configs' does not have"
        for column in info.get("features") or []:
            if not _is_feature(column):
                yield f"'dataset_info' of {name}: '{column}' is no column as datasets writes one (name, and its dtype)"
        splits = info.get("splits") or []
        for split in splits:
            counts = [split.get(key) for key in _COUNTS] if isinstance(split, dict) else [None]
            if not all(type(value) is int and value >= 0 for value in counts):
                yield f"'dataset_info' of {name}: a split has no whole num_bytes and num_examples: {split}"
                return
        if "dataset_size" in info and info["dataset_size"] != sum(split["num_bytes"] for split in splits):
            yield f"'dataset_info' of {name}: dataset_size is not the sum of the splits' num_bytes"
        if "download_size" in info and type(info["download_size"]) is not int:
            yield f"'dataset_info' of {name}: download_size is no whole number"


def _is_feature(column: Any, named: bool = True) -> bool:
    """Whether a column has a name (where it needs one) and exactly one kind, and so has what it is made of."""
    if not isinstance(column, dict):
        return not named and isinstance(column, str)
    kinds = [key for key in column if key in _FEATURE_KINDS]
    if len(kinds) != 1 or (named and not isinstance(column.get("name"), str)):
        return False
    inner = column[kinds[0]]
    if isinstance(inner, list):
        return bool(inner) and all(_is_feature(part) for part in inner)
    return _is_feature(inner, named=False) if isinstance(inner, dict) else isinstance(inner, str)


def _model_index(data: Mapping[str, Any]) -> Iterator[str]:
    """``model-index``: results with a task, a dataset and metrics that are numbers."""
    for model in _listed(data.get("model-index")):
        for result in model.get("results") or [] if isinstance(model, dict) else [{}]:
            task, dataset = result.get("task") or {}, result.get("dataset") or {}
            if task.get("type") not in known()["tasks"]:
                yield f"'model-index' has a result of the task '{task.get('type')}', which the Hub does not know"
            if not (dataset.get("type") and dataset.get("name")):
                yield "'model-index' has a result without a dataset's type and name"
            for metric in result.get("metrics") or [{}]:
                value = metric.get("value")
                if not metric.get("type") or isinstance(value, bool) or not isinstance(value, (int, float)):
                    yield f"'model-index' has a metric that is no number: {metric}"


def _listed(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]
