"""What every route needs: the store, the book, who asks for what, and paging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from tests.hub import auth
from tests.hub.auth import Token
from tests.hub.errors import HubError
from tests.hub.faults import Book, Faults
from tests.hub.repo import Repo
from tests.hub.store import Store
from tests.hub.wire import Reply, Request

_CHECKS = {"read": auth.check_read, "content": auth.check_content, "write": auth.check_write}


@dataclass
class Hub:
    """A hub as its routes see it.

    Attributes:
        store: everything that is kept.
        page_size: entries of a listing before it goes on at another address.
        lfs_above: bytes from which a file is a large object whatever its name.
        part_size: bytes from which a large object comes in parts, and size of a part.
        resolve_cache: regular files are read at a second address, as on the real Hub.
        storage: origin of large objects, unlike the hub's own.
        endpoint: the hub's own origin.
        crashes: tracebacks of mistakes in the hub itself.
    """

    store: Store
    page_size: int = 1000
    lfs_above: int = 10_000_000
    part_size: int = 64_000_000
    resolve_cache: bool = False
    storage: str = ""
    endpoint: str = ""
    book: Book = field(default_factory=Book)
    faults: Faults = field(default_factory=Faults)
    crashes: list[str] = field(default_factory=list)

    def token(self, request: Request) -> Token | None:
        """Whose request it is; None for anybody's."""
        return self.store.tokens.of(request.headers.get("Authorization"))

    def revoke(self, request: Request) -> None:
        """Take back the token that a request carries, if it carries one."""
        if token := self.token(request):
            self.store.tokens.revoke(token.value)

    def user(self, request: Request) -> Token:
        """The same, where nobody may stay anonymous."""
        token = self.token(request)
        if token is None:
            raise HubError(401, "Invalid username or password.")
        return token

    def repo(self, request: Request, right: str = "read") -> Repo:
        """The repo of a request.

        Args:
            request: its path names the repo.
            right: ``read`` (what it is), ``content`` (its files) or ``write``.

        Raises:
            HubError: no such repo, no such right, or it has another id by now.
        """
        token = self.token(request)
        repo_type, repo_id = request.args["type"], request.args["repo"]
        goal = self.store.moved(repo_type, repo_id)
        if goal and self.store.find(repo_type, repo_id) is None:
            auth.check_read(token, self.store.get(repo_type, goal, token is None))
            query = f"?{urlencode(request.query, doseq=True)}" if request.query else ""
            place = request.path.replace(f"/{repo_id}", f"/{goal}", 1) + query
            raise HubError(307, f"This repo is now {goal}", headers={"Location": place})
        repo = self.store.get(repo_type, repo_id, token is None)
        _CHECKS[right](token, repo)
        return repo

    def page(self, request: Request, entries: Sequence[Any]) -> Reply:
        """A part of a list, with a ``Link`` to the next one."""
        limit = request.text("limit")
        size = min(self.page_size, int(limit)) if limit and limit.isdigit() and int(limit) else self.page_size
        start = int(request.text("cursor", "0"))
        headers = {}
        if start + size < len(entries):
            query = urlencode({**request.query, "cursor": [start + size]}, doseq=True)
            place = quote(request.path, safe="/%:")
            headers["Link"] = f'<{request.origin}{place}?{query}>; rel="next"'
        return Reply.json(entries[start : start + size], headers=headers)

    def signed(self, path: str) -> str:
        """An address on the storage origin that needs no token."""
        return f"{self.storage}/{path}?signature={self.store.tokens.sign(path)}"
