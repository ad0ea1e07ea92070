"""The folder that a hub lives in: repos, contents by hash, collections and tokens."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

from tests.hub.auth import Tokens
from tests.hub.errors import TYPES, HubError, repo_not_found
from tests.hub.repo import ATTRIBUTES, INITIAL_ATTRIBUTES, Repo, git_hash, regular_entry, write_json

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|[.](?![.-])){0,94}[A-Za-z0-9]|[A-Za-z0-9]")


class Store:
    """Everything that a hub remembers.

    Args:
        folder: made when it is not there.

    Attributes:
        lock: held while references, settings or collections change.
        tokens: who may do what.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.tokens = Tokens(self.folder / "tokens.json")
        self._scratch = itertools.count()
        shutil.rmtree(self.folder / "incoming", ignore_errors=True)
        (self.folder / "incoming").mkdir()
        self._repos: dict[tuple[str, str], Repo] = {}
        for found in sorted(self.folder.glob("repos/*/*/*/repo.json")):
            repo = Repo(found.parent)
            self._repos[repo.type, repo.repo_id] = repo
        self._moved: dict[str, str] = self.load("moved.json", {})

    def load(self, name: str, default: Any) -> Any:
        """A JSON file of the folder."""
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else default

    def save(self, name: str, content: Any) -> None:
        write_json(self.folder / name, content)

    # Repos -----------------------------------------------------------------------------------------------------------

    def repos(self) -> list[Repo]:
        with self.lock:
            return list(self._repos.values())

    def find(self, repo_type: str, repo_id: str) -> Repo | None:
        return self._repos.get((repo_type, repo_id))

    def moved(self, repo_type: str, repo_id: str) -> str | None:
        """Where a repo went that once had this id."""
        return self._moved.get(f"{repo_type}:{repo_id}")

    def create(self, repo_type: str, repo_id: str, private: bool, author: str, sdk: str | None = None) -> Repo:
        """Make a repo whose ``main`` holds the rules about large files.

        Raises:
            HubError: 400 the id or type is impossible; 409 it is there.
        """
        if repo_type not in TYPES:
            raise HubError(400, f"Unknown repo type {repo_type}")
        check_id(repo_id)
        with self.lock:
            if (repo_type, repo_id) in self._repos:
                raise HubError(409, f"You already created this {repo_type} repo")
            repo = Repo.create(self._place(repo_type, repo_id), repo_type, repo_id, private, sdk)
            self.put(INITIAL_ATTRIBUTES)
            tree = {ATTRIBUTES: regular_entry(INITIAL_ATTRIBUTES)}
            repo.set_head("main", repo.add_commit(None, tree, "initial commit", "", author))
            self._repos[repo_type, repo_id] = repo
            if self._moved.pop(f"{repo_type}:{repo_id}", None):
                self.save("moved.json", self._moved)
            return repo

    def delete(self, repo: Repo) -> None:
        """Remove a repo; contents that only it had stay in the folder, out of reach."""
        with self.lock:
            del self._repos[repo.type, repo.repo_id]
            shutil.rmtree(repo.folder)

    def move(self, repo: Repo, to_id: str) -> None:
        """Give a repo another id; the old one leads to it.

        Raises:
            HubError: 400 the id is impossible; 409 it is taken.
        """
        check_id(to_id)
        with self.lock:
            if (repo.type, to_id) in self._repos:
                raise HubError(409, f"The {repo.type} {to_id} is already there")
            del self._repos[repo.type, repo.repo_id]
            self._moved = {old: to_id if new == repo.repo_id else new for old, new in self._moved.items()}
            self._moved.pop(f"{repo.type}:{to_id}", None)
            self._moved[f"{repo.type}:{repo.repo_id}"] = to_id
            place = self._place(repo.type, to_id)
            place.parent.mkdir(parents=True, exist_ok=True)
            repo.folder.rename(place)
            repo.folder, repo.repo_id = place, to_id
            repo.save()
            self._repos[repo.type, to_id] = repo
            self.save("moved.json", self._moved)

    def get(self, repo_type: str, repo_id: str, anonymous: bool) -> Repo:
        """A repo.

        Raises:
            HubError: ``RepoNotFound``.
        """
        repo = self.find(repo_type, repo_id)
        if repo is None:
            raise repo_not_found(anonymous)
        return repo

    # Contents --------------------------------------------------------------------------------------------------------

    def path(self, oid: str) -> Path:
        """Where a content lies: by its git hash or, a large object, by its sha256."""
        return self.folder / "objects" / oid[:2] / oid

    def put(self, content: bytes) -> str:
        """Keep a regular file's content.

        Returns:
            Its git hash.
        """
        oid = git_hash(content)
        self._write(self.path(oid), content)
        return oid

    def content_path(self, entry: dict) -> Path:
        return self.path(entry["lfs"]["sha256"] if "lfs" in entry else entry["oid"])

    def read(self, repo: Repo, path: str, revision: str = "main") -> bytes | None:
        """A file's content, None when it is not there."""
        entry = repo.tree(revision).get(path)
        return None if entry is None else self.content_path(entry).read_bytes()

    def part_path(self, upload: str, number: int) -> Path:
        """Where one part of a multipart upload waits for the others."""
        return self.folder / "parts" / upload / str(number)

    def keep_upload(self, received: Path, sha256: str, size: int) -> None:
        """Take a received file as a large object.

        Raises:
            HubError: 400 it is not what was announced.
        """
        digest = hashlib.sha256()
        with received.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != sha256 or received.stat().st_size != size:
            received.unlink()
            raise HubError(400, f"What was uploaded is not the object {sha256} of {size} bytes")
        target = self.path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        received.replace(target)

    def scratch(self) -> Path:
        """A new file name for something on its way in."""
        return self.folder / "incoming" / str(next(self._scratch))

    def _write(self, path: Path, content: bytes) -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = self.scratch()
            part.write_bytes(content)
            part.replace(path)

    def _place(self, repo_type: str, repo_id: str) -> Path:
        return self.folder / "repos" / f"{repo_type}s" / repo_id


def check_id(repo_id: str) -> None:
    """Raise for an id that the Hub would not take."""
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(_NAME.fullmatch(part) and "--" not in part for part in parts):
        raise HubError(400, f"{repo_id} is no repo id: take NAMESPACE/NAME of letters, digits, '-', '_' and '.'")
