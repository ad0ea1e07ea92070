"""What the Hub refuses, as clients know it: a status, an error code in a header, and one line."""

from __future__ import annotations

TYPES = ("model", "dataset", "space")


class HubError(Exception):
    """A refusal.

    Args:
        status: of the HTTP reply.
        message: one line, in the body and in ``X-Error-Message``.
        code: ``X-Error-Code`` that clients turn into an exception of their own.
        headers: further headers of the reply.
        body: further fields of the JSON body.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict | None = None, body: dict | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.body = headers or {}, body or {}


def repo_not_found(anonymous: bool) -> HubError:
    """A repo that is not there, or that is none of the caller's business: both look the same from outside."""
    return HubError(401 if anonymous else 404, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(message: str = "Entry not found", commit: str | None = None) -> HubError:
    """A path that a commit does not have; clients remember that by the commit they are told."""
    return HubError(404, message, "EntryNotFound", {"X-Repo-Commit": commit} if commit else None)


def gated(anonymous: bool, repo_id: str) -> HubError:
    return HubError(401 if anonymous else 403, f"Access to {repo_id} is restricted: ask for it first", "GatedRepo")
