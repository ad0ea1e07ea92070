"""What the Hub tells about a repo: its files, its card's metadata and what it derives from both."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from typing import Any

import yaml

from tests.hub import cards
from tests.hub.repo import Repo, folder_id
from tests.hub.store import Store

LISTED = {"_id", "id", "modelId", "author", "sha", "private", "gated", "disabled", "downloads", "likes", "tags"}
LISTED |= {"pipeline_tag", "library_name", "createdAt", "lastModified"}


def info(store: Store, repo: Repo, revision: str, blobs: bool) -> dict[str, Any]:
    """A repo at a revision, as ``/api/models/ID`` and its like tell it.

    Args:
        store: where contents are.
        repo: which one.
        revision: branch, tag or commit.
        blobs: whether files come with sizes and hashes.
    """
    commit = repo.commit(repo.resolve(revision))
    tree = commit["tree"]
    data = cards.card_data(store.read(repo, "README.md", commit["id"]))
    entry: dict[str, Any] = {
        "_id": repo.origin,
        "id": repo.repo_id,
        "author": repo.namespace,
        "sha": commit["id"],
        "lastModified": commit["date"],
        "createdAt": repo.created,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": cards.tags(data or {}),
        "siblings": [_sibling(path, found, blobs) for path, found in tree.items()],
        "usedStorage": sum(found["size"] for found in tree.values()),
    }
    if data is not None:
        entry["cardData"] = json.loads(json.dumps(data, default=str))
    if repo.type == "model":
        entry |= {"modelId": repo.repo_id, **_model(store, repo, commit["id"], data or {})}
    if repo.type == "space":
        entry["sdk"] = repo.sdk
    if repo.type == "dataset" and data and isinstance(data.get("pretty_name"), str):
        entry["description"] = data["pretty_name"]
    return entry


def chosen(entry: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name in names}


def storage(store: Store, repo: Repo) -> dict[str, Any]:
    """A repo as the settings of its owner list it."""
    about = info(store, repo, "main", blobs=False)
    seen = "private" if repo.private else "public"
    return {
        "id": repo.repo_id,
        "type": repo.type,
        "updatedAt": about["lastModified"],
        "visibility": seen,
        "storage": about["usedStorage"],
        "storagePercent": 0.0,
    }


def listing(tree: dict[str, dict], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder (``""``: all), folders before what is in them."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path in tree:
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            name = prefix + "/".join(parts[:depth])
            entries.setdefault(name, path_entry(tree, name))
        if recursive or len(parts) == 1:
            entries[path] = path_entry(tree, path)
    return [entries[name] for name in sorted(entries)]


def path_entry(tree: dict[str, dict], path: str) -> dict[str, Any] | None:
    """A file or a folder as listings show it, None when there is no such path."""
    found = tree.get(path)
    if found is None:
        if not any(other.startswith(f"{path}/") for other in tree):
            return None
        return {"type": "directory", "oid": folder_id(tree, path), "size": 0, "path": path}
    entry = {"type": "file", "oid": found["oid"], "size": found["size"], "path": path}
    if "lfs" in found:
        entry["lfs"] = {"oid": found["lfs"]["sha256"], "size": found["size"], "pointerSize": found["lfs"]["pointer"]}
    return entry


def _sibling(path: str, found: dict, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    entry: dict[str, Any] = {"rfilename": path, "blobId": found["oid"], "size": found["size"]}
    if "lfs" in found:
        large = found["lfs"]
        entry["lfs"] = {"sha256": large["sha256"], "size": found["size"], "pointerSize": large["pointer"]}
    return entry


def _model(store: Store, repo: Repo, commit: str, data: dict[str, Any]) -> dict[str, Any]:
    entry = {name: data[name] for name in ("pipeline_tag", "library_name", "model-index") if name in data}
    try:
        config = json.loads(store.read(repo, "config.json", commit) or b"{}")
    except ValueError:
        config = {}
    entry["config"] = {name: config[name] for name in ("architectures", "model_type") if name in config}
    if config and "library_name" not in entry:
        entry["library_name"] = "transformers"
    if parameters := _parameters(store, repo, commit):
        entry["safetensors"] = {"parameters": dict(parameters), "total": sum(parameters.values())}
    if results := _results(store, repo, commit):
        entry["evalResults"] = results
    return entry


def _parameters(store: Store, repo: Repo, commit: str) -> Counter[str]:
    """Numbers of parameters by type, read from the heads of the weight files."""
    counts: Counter[str] = Counter()
    for path, found in repo.tree(commit).items():
        if "/" in path or not (path.startswith("model") and path.endswith(".safetensors")):
            continue
        with store.content_path(found).open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            try:
                tensors = json.loads(stream.read(min(length, found["size"])))
                tensors.pop("__metadata__", None)
                for tensor in tensors.values():
                    counts[tensor["dtype"]] += prod(tensor["shape"])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # whatever it is, it is no weight file
    return counts


def _results(store: Store, repo: Repo, commit: str) -> list[dict[str, Any]]:
    """The entries of ``.eval_results/*.yaml``; a file that is none is told as an error."""
    entries = []
    for path in repo.tree(commit):
        if not (path.startswith(".eval_results/") and path.endswith(".yaml")):
            continue
        try:
            rows = yaml.safe_load(store.read(repo, path, commit) or b"")
            for row in rows:
                if not {"id", "task_id"} <= set(row["dataset"]) or "value" not in row:
                    raise KeyError(path)
                entries.append({"filename": path, "data": json.loads(json.dumps(row, default=str)), "verified": False})
        except (yaml.YAMLError, KeyError, TypeError):
            entries.append({"filename": path, "error": "not a list of results"})
    return entries
