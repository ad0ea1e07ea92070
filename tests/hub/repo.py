"""One repo on disk: its settings, references and commits.

A commit holds its whole tree, ``{path: entry}``; an entry is ``{"oid", "size"}`` of a regular file (the git hash of
its content), and has ``"lfs": {"sha256", "pointer"}`` where the content is a large object (``oid`` is then the git hash
of the pointer). Commit ids are hashes over what was committed and on what, without times: the same work gives the same
ids. The date stands beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.hub.errors import HubError, revision_not_found

ATTRIBUTES = ".gitattributes"
_LARGE = """
7z arrow avi bin bz2 ckpt ftz gif gz h5 jpeg jpg joblib mkv model mov mp3 mp4 msgpack npy npz onnx ot parquet pb
pickle pkl png pt pth rar safetensors tar tgz tflite wasm wav webm webp xz zip zst
"""
LFS_RULE = "filter=lfs diff=lfs merge=lfs -text"
INITIAL_ATTRIBUTES = "".join(f"*.{ending} {LFS_RULE}\n" for ending in _LARGE.split()).encode()
_HEX = re.compile(r"[0-9a-f]{7,40}")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_hash(content: bytes) -> str:
    """The name that git gives a file's content, 40 hex digits."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """What git holds in the place of a large object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def regular_entry(content: bytes) -> dict[str, Any]:
    return {"oid": git_hash(content), "size": len(content)}


def lfs_entry(sha256: str, size: int) -> dict[str, Any]:
    text = pointer(sha256, size)
    return {"oid": git_hash(text), "size": size, "lfs": {"sha256": sha256, "pointer": len(text)}}


def write_json(path: Path, content: Any) -> None:
    """Write so that a reader finds the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1))
    part.replace(path)


class Repo:
    """A repo.

    Args:
        folder: where it lies; ``repo.json`` in it is read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        state = json.loads((folder / "repo.json").read_text())
        self.type: str = state["type"]
        self.repo_id: str = state["id"]
        self.origin: str = state["origin"]  # the id at creation: commit ids hang on it, and outlive a move
        self.private: bool = state["private"]
        self.gated: str | bool = state["gated"]
        self.granted: list[str] = state["granted"]
        self.created: str = state["created"]
        self.sdk: str | None = state["sdk"]
        self.branches: dict[str, str] = state["branches"]
        self.tags: dict[str, dict[str, str]] = state["tags"]
        self.pulls: dict[str, str] = state["pulls"]

    @classmethod
    def create(cls, folder: Path, repo_type: str, repo_id: str, private: bool, sdk: str | None) -> Repo:
        state = {"type": repo_type, "id": repo_id, "origin": f"{repo_type}:{repo_id}", "private": private, "sdk": sdk}
        state |= {"gated": False, "granted": [], "created": now(), "branches": {}, "tags": {}, "pulls": {}}
        write_json(folder / "repo.json", state)
        return cls(folder)

    def save(self) -> None:
        state = {"type": self.type, "id": self.repo_id, "origin": self.origin, "private": self.private}
        state |= {"gated": self.gated, "granted": self.granted, "created": self.created, "sdk": self.sdk}
        state |= {"branches": self.branches, "tags": self.tags, "pulls": self.pulls}
        write_json(self.folder / "repo.json", state)

    @property
    def namespace(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def page(self) -> str:
        """Path of the repo's web page."""
        return self.repo_id if self.type == "model" else f"{self.type}s/{self.repo_id}"

    # References ------------------------------------------------------------------------------------------------------

    def resolve(self, revision: str) -> str:
        """The commit id of a branch, a tag, a full reference, or the first digits of a commit id.

        Raises:
            HubError: 404 ``RevisionNotFound``.
        """
        name = revision
        for prefix in ("refs/heads/", "refs/tags/"):
            name = name.removeprefix(prefix)
        if name in self.branches:
            return self.branches[name]
        if name in self.tags:
            return self.tags[name]["commit"]
        if revision.startswith("refs/pr/") and (pull := revision.removeprefix("refs/pr/")) in self.pulls:
            return self.pulls[pull]
        if _HEX.fullmatch(revision):
            found = [path.stem for path in (self.folder / "commits").glob(f"{revision}*.json")]
            if len(found) == 1:
                return found[0]
        raise revision_not_found(revision)

    def head(self, revision: str) -> str:
        """The commit that a commit on this branch or pull request would build on.

        Raises:
            HubError: 404 there is no such branch; 400 it is a tag or a commit, which cannot grow.
        """
        commit = self.resolve(revision)
        if revision.removeprefix("refs/heads/") in self.branches or revision.startswith("refs/pr/"):
            return commit
        raise HubError(400, f"Cannot commit to {revision}: it is not a branch")

    def set_head(self, revision: str, commit: str) -> None:
        if revision.startswith("refs/pr/"):
            self.pulls[revision.removeprefix("refs/pr/")] = commit
        else:
            self.branches[revision.removeprefix("refs/heads/")] = commit
        self.save()

    # Commits ---------------------------------------------------------------------------------------------------------

    def commit(self, sha: str) -> dict[str, Any]:
        return json.loads((self.folder / "commits" / f"{sha}.json").read_text())

    def tree(self, revision: str) -> dict[str, dict]:
        return self.commit(self.resolve(revision))["tree"]

    def add_commit(self, parent: str | None, tree: dict[str, dict], title: str, message: str, author: str) -> str:
        """Write a commit without moving any reference to it.

        Returns:
            Its id.
        """
        tree = dict(sorted(tree.items()))
        text = json.dumps([self.origin, parent, tree, title, message, author], sort_keys=True)
        sha = hashlib.sha1(text.encode()).hexdigest()
        content = {"id": sha, "parent": parent, "title": title, "message": message, "author": author}
        path = self.folder / "commits" / f"{sha}.json"
        if not path.exists():
            write_json(path, {**content, "date": now(), "tree": tree})
        return sha

    def history(self, revision: str) -> Iterator[dict]:
        """Commits from the newest to the first."""
        sha: str | None = self.resolve(revision)
        while sha:
            commit = self.commit(sha)
            yield commit
            sha = commit["parent"]

    def last_commits(self, revision: str, paths: list[str]) -> dict[str, dict]:
        """For each path (a file, or a folder) the commit that last changed it."""
        found: dict[str, dict] = {}
        newer: dict | None = None
        for commit in [*self.history(revision), {"tree": {}}]:
            for path in paths:
                if newer and path not in found and _under(newer["tree"], path) != _under(commit["tree"], path):
                    found[path] = newer
            newer = commit
        return found

    # Large objects ---------------------------------------------------------------------------------------------------

    def has_lfs(self, sha256: str) -> bool:
        """Whether the object was uploaded to this repo; what other repos have is not told."""
        return (self.folder / "lfs" / sha256).exists()

    def add_lfs(self, sha256: str) -> None:
        (self.folder / "lfs").mkdir(exist_ok=True)
        (self.folder / "lfs" / sha256).touch()


def _under(tree: dict[str, dict], path: str) -> Any:
    if path in tree:
        return tree[path]["oid"]
    return folder_id(tree, path)


def folder_id(tree: dict[str, dict], folder: str) -> str:
    """A hash over everything below a folder, 40 hex digits."""
    inside = [(path, entry["oid"]) for path, entry in sorted(tree.items()) if path.startswith(f"{folder}/")]
    return hashlib.sha1(json.dumps(inside).encode()).hexdigest()
