"""Tokens, and what each of them may do."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hub.errors import HubError, gated, repo_not_found

if TYPE_CHECKING:
    from tests.hub.repo import Repo

ROLES = ("read", "write")


@dataclass
class Token:
    """An access token.

    Attributes:
        value: what goes into the ``Authorization`` header.
        user: whose it is; the user's name is a namespace.
        role: ``read`` or ``write``.
        orgs: further namespaces that the user belongs to.
        revoked: True once it has been taken back.
    """

    value: str
    user: str
    role: str = "write"
    orgs: list[str] = field(default_factory=list)
    revoked: bool = False

    @property
    def namespaces(self) -> list[str]:
        """Where the user is at home."""
        return [self.user, *self.orgs]


class Tokens:
    """All tokens, kept in one JSON file, and the secret that signs addresses on the storage origin."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.RLock()
        kept = json.loads(path.read_text()) if path.exists() else {"secret": secrets.token_hex(16), "tokens": []}
        self._secret: str = kept["secret"]
        self._tokens = {token["value"]: Token(**token) for token in kept["tokens"]}
        self._save()

    def add(self, user: str, role: str = "write", orgs: tuple[str, ...] = (), value: str | None = None) -> str:
        """Make a token, or take the given value as one; the same user and role get the token they already have."""
        if role not in ROLES:
            raise ValueError(f"role is {role!r}: take one of {ROLES}")
        with self._lock:
            for token in self._tokens.values():
                same = (token.user, token.role, token.orgs, token.revoked) == (user, role, list(orgs), False)
                if same and value in (None, token.value):
                    return token.value
            value = value or f"hf_{secrets.token_hex(17)}"
            self._tokens[value] = Token(value, user, role, list(orgs))
            self._save()
            return value

    def revoke(self, value: str) -> None:
        """Take a token back: from now on it is no credential."""
        with self._lock:
            self._tokens[value].revoked = True
            self._save()

    def of(self, authorization: str | None) -> Token | None:
        """The token of a request, None for an anonymous one.

        Raises:
            HubError: 401, the token is unknown or was revoked.
        """
        if not authorization:
            return None
        token = self._tokens.get(authorization.removeprefix("Bearer ").strip())
        if token is None or token.revoked:
            raise HubError(401, "Invalid credentials in Authorization header")
        return token

    def users(self) -> set[str]:
        return {name for token in self._tokens.values() for name in token.namespaces}

    def all(self) -> list[Token]:
        return list(self._tokens.values())

    def sign(self, what: str) -> str:
        """A signature for an address that works without a token."""
        return hmac.new(self._secret.encode(), what.encode(), hashlib.sha256).hexdigest()[:32]

    def check(self, what: str, signature: str) -> None:
        if not hmac.compare_digest(self.sign(what), signature):
            raise HubError(403, "The signature of this address does not match")

    def _save(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_text(
            json.dumps({"secret": self._secret, "tokens": [asdict(t) for t in self._tokens.values()]}, indent=1)
        )
        part.replace(self._path)


def check_read(token: Token | None, repo: Repo) -> None:
    """Whether the repo may be seen at all: private ones show themselves to their namespace only."""
    if repo.private and (token is None or repo.namespace not in token.namespaces):
        raise repo_not_found(token is None)


def check_content(token: Token | None, repo: Repo) -> None:
    """Whether files may be read: of a gated repo by its namespace and by those who were let in."""
    check_read(token, repo)
    home = token is not None and repo.namespace in token.namespaces
    if repo.gated and not home and (token is None or token.user not in repo.granted):
        raise gated(token is None, repo.repo_id)


def check_write(token: Token | None, repo: Repo) -> None:
    """Whether the repo may be changed."""
    check_read(token, repo)
    check_namespace(token, repo.namespace)


def check_namespace(token: Token | None, namespace: str) -> None:
    """Whether things may be made and changed in a namespace."""
    if token is None:
        raise HubError(401, "Invalid username or password.")
    if token.role != "write":
        raise HubError(403, "This token has the role read: a token with the role write is needed here")
    if namespace not in token.namespaces:
        raise HubError(403, f"You don't have the rights to change things under the namespace {namespace}")
