"""The hub as a context manager."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tests.hub import routes_collections, routes_control, routes_files, routes_large, routes_repos
from tests.hub.context import Hub
from tests.hub.faults import Fault
from tests.hub.repo import Repo
from tests.hub.store import Store
from tests.hub.wire import HubServer, Routes

# The most particular paths first: a model's id may look like the beginning of any other path.
_ROUTES = Routes().join(
    routes_control.routes, routes_collections.routes, routes_large.routes, routes_repos.routes, routes_files.routes
)


class LoopbackHub:
    """A Hub on loopback while the block lasts.

    Two origins serve it, as two hosts do for the real one: ``endpoint`` on 127.0.0.1, and the storage of large objects,
    which is called localhost.

    Args:
        folder: holds its state; a later hub on the same folder goes on with it.
        user: owner of the two first tokens, and so a namespace.
        orgs: further namespaces of that user.
        port: of the endpoint; 0 takes a free one.
        page_size: entries of a listing before it goes on at another address.
        lfs_above: bytes from which a file is a large object whatever its name.
        part_size: bytes from which a large object is uploaded in parts, and size of a part.
        resolve_cache: regular files are redirected within the hub first, as on the real one.

    Attributes:
        endpoint: goes into ``HF_ENDPOINT``.
        user: as given; ``token`` and ``read_token`` are this user's.
        token: may read and write.
        read_token: may read.
    """

    def __init__(
        self,
        folder: str | Path,
        user: str = "tester",
        orgs: tuple[str, ...] = (),
        port: int = 0,
        page_size: int = 1000,
        lfs_above: int = 10_000_000,
        part_size: int = 64_000_000,
        resolve_cache: bool = False,
    ):
        self._hub = Hub(Store(folder), page_size, lfs_above, part_size, resolve_cache)
        self.user = user
        self.token = self._hub.store.tokens.add(user, "write", orgs)
        self.read_token = self._hub.store.tokens.add(user, "read", orgs)
        self._servers = [HubServer(port, _ROUTES, self._hub), HubServer(0, routes_large.storage_routes, self._hub)]
        self.endpoint = self._hub.endpoint = f"http://127.0.0.1:{self._servers[0].server_port}"
        self._hub.storage = f"http://localhost:{self._servers[1].server_port}"

    def __enter__(self) -> LoopbackHub:
        self.start()
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        self.stop()
        if self._hub.crashes and kind is None:
            raise RuntimeError("the hub itself went wrong:\n" + "\n".join(self._hub.crashes))

    def start(self) -> None:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        for server in self._servers:
            server.stop()

    def environment(self, home: str | Path, token: str | None = "") -> dict[str, str]:
        """Variables for a client's process; they have to be set before ``huggingface_hub`` is imported.

        ``load_dataset`` asks a dataset viewer at the endpoint's host name with ``datasets-server.`` before it, which no
        address on loopback can have. So the hub is also the client's proxy for plain http to anywhere but loopback: it
        answers that there is no such viewer, and counts the request as ``viewer`` (any other as ``stray``).

        Args:
            home: becomes ``HF_HOME``: a fresh one has empty caches.
            token: the hub's write token by default; None for an anonymous client.
        """
        token = self.token if token == "" else token
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # `hf` asks PyPI
            "HF_HUB_OFFLINE": "0",  # a test's own environment may have it on
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else `datasets` tells a storage host what was loaded
            **dict.fromkeys(("http_proxy", "HTTP_PROXY"), self.endpoint),
            **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost,::1"),
            "HF_TOKEN": token or "",
            **({} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}),
        }

    # What is in it ---------------------------------------------------------------------------------------------------

    def repos(self) -> list[str]:
        """Ids of all repos, each with its type before it: ``model:NS/NAME``."""
        return sorted(f"{repo.type}:{repo.repo_id}" for repo in self._hub.store.repos())

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Every file of a repo at a revision, whoever may read it."""
        repo = self._repo(repo_id, repo_type)
        tree = repo.tree(revision)
        return {path: self._hub.store.content_path(entry).read_bytes() for path, entry in tree.items()}

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[dict[str, Any]]:
        """Commits from the newest to the first: ``id``, ``parent``, ``title``, ``message``, ``author``, ``date``,
        ``tree``."""
        return list(self._repo(repo_id, repo_type).history(revision))

    def refs(self, repo_id: str, repo_type: str = "model") -> dict[str, dict[str, str]]:
        """``{"branches": {name: commit}, "tags": {name: commit}}``."""
        repo = self._repo(repo_id, repo_type)
        return {
            "branches": dict(repo.branches),
            "tags": {name: tag["commit"] for name, tag in repo.tags.items()},
        }

    def settings(self, repo_id: str, repo_type: str = "model") -> dict[str, Any]:
        """``private`` and ``gated`` of a repo."""
        repo = self._repo(repo_id, repo_type)
        return {"private": repo.private, "gated": repo.gated}

    def collections(self) -> list[dict[str, Any]]:
        """All collections as they are kept."""
        return list(self._hub.store.load("collections.json", {}).values())

    # Control: the same as the endpoint /_control ---------------------------------------------------------------------

    def plan(self, *rules: Fault, seed: int = 0) -> None:
        """Faults in the place of the former ones; without any, all goes well."""
        self._hub.faults.plan(list(rules), seed)

    def counts(self) -> dict[str, Any]:
        """What was asked and sent since the start or ``clear_counts``; see :class:`tests.hub.faults.Book`."""
        return self._hub.book.show()

    def clear_counts(self) -> None:
        self._hub.book.clear()

    def log(self) -> list[dict[str, Any]]:
        """Requests in the order in which they came: ``kind``, ``method``, ``path``, ``fault``."""
        return self._hub.book.log()

    def add_token(self, user: str, role: str = "write", orgs: tuple[str, ...] = ()) -> str:
        """A token of any user, ``read`` or ``write``."""
        return self._hub.store.tokens.add(user, role, orgs)

    def revoke(self, token: str) -> None:
        """Take a token back while clients use it."""
        self._hub.store.tokens.revoke(token)

    def _repo(self, repo_id: str, repo_type: str) -> Repo:
        repo = self._hub.store.find(repo_type, repo_id)
        if repo is None:
            raise KeyError(f"no {repo_type} {repo_id}: there are {self.repos()}")
        return repo
