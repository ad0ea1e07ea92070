"""Files: listed, read, and changed by commits."""

from __future__ import annotations

import base64
import binascii
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from tests.hub import cards, describe
from tests.hub.context import Hub
from tests.hub.errors import HubError, entry_not_found
from tests.hub.repo import ATTRIBUTES, LFS_RULE, Repo, lfs_entry, regular_entry
from tests.hub.wire import Reply, Request, Routes

routes = Routes()
_EXPANDED = 50  # entries of a page when each comes with its last commit


@routes.add("GET", "/api/{type}/{repo}/tree/{revision}", "tree")
@routes.add("GET", "/api/{type}/{repo}/tree/{revision}/{path}", "tree")
def tree(hub: Hub, request: Request) -> Reply:
    repo, folder = hub.repo(request), request.args.get("path", "").strip("/")
    commit = repo.resolve(request.args["revision"])
    entries = describe.listing(repo.commit(commit)["tree"], folder, request.flag("recursive"))
    if folder and not entries:
        raise entry_not_found(f"{folder} does not exist on {request.args['revision']}", commit)
    if request.flag("expand"):
        request.query.setdefault("limit", [str(_EXPANDED)])
        _expand(repo, commit, entries)
    return hub.page(request, entries)


@routes.add("POST", "/api/{type}/{repo}/paths-info/{revision}", "paths-info")
def paths_info(hub: Hub, request: Request) -> Reply:
    repo, body = hub.repo(request), request.body()
    commit = repo.resolve(request.args["revision"])
    if "json" in request.headers.get("Content-Type", ""):
        asked = json.loads(body)
        paths, expand = asked["paths"], str(asked.get("expand", ""))
    else:
        form = parse_qs(body.decode(), keep_blank_values=True)
        paths, expand = form.get("paths", []), form.get("expand", [""])[0]
    listed = repo.commit(commit)["tree"]
    found = [describe.path_entry(listed, path.strip("/")) for path in paths]
    entries = [entry for entry in found if entry is not None]
    if expand.lower() in ("1", "true"):
        _expand(repo, commit, entries)
    return Reply.json(entries)


@routes.add("GET", "/datasets/{repo}/resolve/{revision}/{path}", "resolve", type="dataset")
@routes.add("GET", "/spaces/{repo}/resolve/{revision}/{path}", "resolve", type="space")
@routes.add("GET", "/{repo}/resolve/{revision}/{path}", "resolve", type="model")
@routes.add("GET", "/datasets/{repo}/raw/{revision}/{path}", "resolve", type="dataset")
@routes.add("GET", "/{repo}/raw/{revision}/{path}", "resolve", type="model")
@routes.add("GET", "/api/resolve-cache/{type}/{repo}/{revision}/{path}", "resolve-cache")
def resolve(hub: Hub, request: Request) -> Reply:
    """A file: itself when it is small, else an address on the storage origin."""
    repo, path = hub.repo(request, "content"), request.args["path"]
    commit = repo.resolve(request.args["revision"])
    found = repo.commit(commit)["tree"].get(path)
    if found is None:
        raise entry_not_found(commit=commit)
    etag = f'"{found["lfs"]["sha256"] if "lfs" in found else found["oid"]}"'
    headers = {"X-Repo-Commit": commit, "ETag": etag}
    linked = {"X-Linked-Size": str(found["size"]), "X-Linked-ETag": etag}
    if "lfs" in found:
        place = hub.signed(f"object/{repo.type}/{repo.repo_id}/{found['lfs']['sha256']}")
        return Reply(status=302, headers={**headers, **linked, "Location": place})
    if hub.resolve_cache and "resolve-cache" not in request.path:
        place = f"/api/resolve-cache/{repo.type}s/{repo.repo_id}/{commit}/{quote(path)}"
        return Reply(status=307, headers={**headers, **linked, "Location": place})
    return Reply(path=hub.store.content_path(found), headers={**headers, "Content-Type": "text/plain; charset=utf-8"})


@routes.add("POST", "/api/{type}/{repo}/preupload/{revision}", "preupload")
def preupload(hub: Hub, request: Request) -> Reply:
    """How each file has to come, and what the repo has in its place already."""
    repo, asked = hub.repo(request, "write"), request.json()
    listed = repo.tree(request.args["revision"])
    rules = _rules(hub, repo, listed)
    ignored = [line.strip() for line in asked.get("gitIgnore", "").splitlines()]
    files = []
    for file in asked.get("files", []):
        path, found = file["path"], listed.get(file["path"])
        sample = base64.b64decode(file.get("sample", ""))
        large = file["size"] > hub.lfs_above or b"\0" in sample or _fits(path, rules)
        entry = {
            "path": path,
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": _fits(path, [line for line in ignored if line and not line.startswith("#")]),
        }
        if found:
            entry["oid"] = found["lfs"]["sha256"] if "lfs" in found else found["oid"]
        files.append(entry)
    return Reply.json({"files": files, "commitOid": repo.resolve(request.args["revision"])})


@routes.add("POST", "/api/{type}/{repo}/commit/{revision}", "commit")
def commit(hub: Hub, request: Request) -> Reply:
    """All the changes, or none of them."""
    repo, revision, author = hub.repo(request, "write"), request.args["revision"], hub.user(request).user
    try:
        lines = [json.loads(line) for line in request.body().splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
    except (ValueError, KeyError, TypeError, StopIteration):
        raise HubError(400, "A commit is one JSON object a line, and one of them is its header") from None
    with hub.store.lock:
        head = repo.head(revision)
        if header.get("parentCommit") and not head.startswith(header["parentCommit"]):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        listed = dict(repo.commit(head)["tree"])
        for line in lines:
            _apply(hub, repo, listed, line["key"], line["value"])
        _keep_rules(hub, repo, listed)
        sha = repo.add_commit(head, listed, header.get("summary", ""), header.get("description", ""), author)
        reply = {"success": True, "commitOid": sha, "commitUrl": f"{request.origin}/{repo.page}/commit/{sha}"}
        if request.flag("create_pr"):
            number = str(max(map(int, repo.pulls), default=0) + 1)
            revision = f"refs/pr/{number}"
            reply["pullRequestUrl"] = f"{request.origin}/{repo.page}/discussions/{number}"
        repo.set_head(revision, sha)
    return Reply.json({**reply, "hookOutput": ""})


def _apply(hub: Hub, repo: Repo, listed: dict[str, dict], key: str, value: dict[str, Any]) -> None:
    """One operation of a commit, done to the tree."""
    path = str(value.get("path", "")).strip("/")
    if key == "file":
        listed[path] = regular_entry(_received(hub, repo, path, value))
    elif key == "lfsFile":
        if not repo.has_lfs(value["oid"]):
            raise HubError(400, f"{path}: the object {value['oid']} was never uploaded to this repo")
        listed[path] = lfs_entry(value["oid"], hub.store.path(value["oid"]).stat().st_size)
    elif key == "deletedFile":
        if listed.pop(path, None) is None:
            raise entry_not_found(f"A file with this name doesn't exist: {path}")
    elif key == "deletedFolder":
        inside = [other for other in listed if other.startswith(f"{path}/")]
        if not inside:
            raise entry_not_found(f"A file with this name doesn't exist: {path}/")
        for other in inside:
            del listed[other]
    elif key != "header":
        raise HubError(400, f"Unknown operation: {key}")


def _received(hub: Hub, repo: Repo, path: str, value: dict[str, Any]) -> bytes:
    """The content of a regular file in a commit, looked at and kept."""
    try:
        text = value["content"]
        content = base64.b64decode(text, validate=True) if value.get("encoding") == "base64" else text.encode()
    except (KeyError, binascii.Error):
        raise HubError(400, f"{path}: no content that can be read") from None
    if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"{path!r} is no path of a file in a repo")
    if len(content) > hub.lfs_above:
        raise HubError(400, f"{path}: files larger than {hub.lfs_above} bytes have to be uploaded as large objects")
    if path == "README.md":
        errors, _ = cards.check(content.decode("utf-8", "replace"), repo.type)
        if errors:
            body = {"errors": [{"message": error} for error in errors]}
            raise HubError(400, "Invalid metadata in README.md", body=body)
    hub.book.upload(repo, path, hub.store.put(content))
    hub.book.add("uploaded_bytes", len(content))
    return content


def _rules(hub: Hub, repo: Repo, listed: dict[str, dict]) -> list[str]:
    """Patterns of the paths that are large objects by name."""
    found = listed.get(ATTRIBUTES)
    text = hub.store.content_path(found).read_text("utf-8", "replace") if found else ""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [words[0].replace("[[:space:]]", "?") for words in lines if "filter=lfs" in words[1:]]


def _keep_rules(hub: Hub, repo: Repo, listed: dict[str, dict]) -> None:
    """Write a rule for every large object that no rule names, as the Hub does."""
    rules = _rules(hub, repo, listed)
    missing = [path for path, found in listed.items() if "lfs" in found and not _fits(path, rules)]
    if missing:
        found = listed.get(ATTRIBUTES)
        text = hub.store.content_path(found).read_bytes() if found else b""
        text += b"" if text.endswith(b"\n") or not text else b"\n"
        text += "".join(f"{path.replace(' ', '[[:space:]]')} {LFS_RULE}\n" for path in sorted(missing)).encode()
        hub.store.put(text)
        listed[ATTRIBUTES] = regular_entry(text)


def _fits(path: str, patterns: list[str]) -> bool:
    """Whether one of the patterns names the path: without a slash they speak of names, else of whole paths."""
    name = Path(path).name
    for pattern in patterns:
        if pattern.endswith("/"):
            if f"/{path}".find(f"/{pattern.strip('/')}/") >= 0:
                return True
        elif fnmatch(path if "/" in pattern.rstrip("/") else name, pattern.lstrip("/").replace("**/", "*")):
            return True
    return False


def _expand(repo: Repo, commit: str, entries: list[dict]) -> None:
    """Add to each path the commit that last changed it."""
    last = repo.last_commits(commit, [entry["path"] for entry in entries])
    for entry in entries:
        found = last[entry["path"]]
        entry["lastCommit"] = {"id": found["id"], "title": found["title"], "date": found["date"]}
