"""Users, and repos as wholes: made, moved, described, listed, branched, tagged."""

from __future__ import annotations

from tests.hub import describe
from tests.hub.auth import check_content, check_namespace, check_read, check_write
from tests.hub.context import Hub
from tests.hub.errors import HubError, revision_not_found
from tests.hub.repo import Repo
from tests.hub.wire import Reply, Request, Routes

routes = Routes()


@routes.add("GET", "/api/whoami-v2", "whoami")
def whoami(hub: Hub, request: Request) -> Reply:
    token = hub.user(request)
    access = {"displayName": "loopback", "role": token.role, "createdAt": "2026-01-01T00:00:00.000Z"}
    user = {"type": "user", "id": token.user, "name": token.user, "fullname": token.user, "isPro": False}
    orgs = [{"type": "org", "id": name, "name": name, "fullname": name} for name in token.orgs]
    return Reply.json({**user, "orgs": orgs, "auth": {"type": "access_token", "accessToken": access}})


@routes.add("GET", "/api/users/{user}/overview", "list")
@routes.add("GET", "/api/organizations/{user}/overview", "list")
def overview(hub: Hub, request: Request) -> Reply:
    name = request.args["user"]
    if name not in hub.store.tokens.users():
        raise HubError(404, f"There is no user {name}")
    counts = {"model": 0, "dataset": 0, "space": 0}
    for repo in hub.store.repos():
        counts[repo.type] += repo.namespace == name and not repo.private
    numbers = {"numModels": counts["model"], "numDatasets": counts["dataset"], "numSpaces": counts["space"]}
    return Reply.json({"user": name, "name": name, "fullname": name, "avatarUrl": "", "isPro": False, **numbers})


@routes.add("GET", "/api/settings/repositories", "list")
def own_repos(hub: Hub, request: Request) -> Reply:
    token = hub.user(request)
    found = [repo for repo in hub.store.repos() if repo.namespace == token.user]
    return hub.page(request, [describe.storage(hub.store, repo) for repo in found])


@routes.add("POST", "/api/repos/create", "create")
def create(hub: Hub, request: Request) -> Reply:
    token, asked = hub.token(request), request.json()
    namespace = asked.get("organization") or (token.user if token else "")
    check_namespace(token, namespace)
    repo_type, repo_id = asked.get("type") or "model", f"{namespace}/{asked.get('name')}"
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    page = repo_id if repo_type == "model" else f"{repo_type}s/{repo_id}"
    try:
        hub.store.create(repo_type, repo_id, private, token.user, asked.get("sdk"))
    except HubError as error:
        error.body["url"] = f"{request.origin}/{page}"
        raise
    return Reply.json({"url": f"{request.origin}/{page}", "name": repo_id, "id": repo_id})


@routes.add("DELETE", "/api/repos/delete", "delete")
def delete(hub: Hub, request: Request) -> Reply:
    token, asked = hub.user(request), request.json()
    repo_id = f"{asked.get('organization') or token.user}/{asked.get('name')}"
    repo = hub.store.get(asked.get("type") or "model", repo_id, anonymous=False)
    check_write(token, repo)
    hub.store.delete(repo)
    return Reply(b"OK")


@routes.add("POST", "/api/repos/move", "move")
def move(hub: Hub, request: Request) -> Reply:
    token, asked = hub.user(request), request.json()
    repo = hub.store.get(asked.get("type") or "model", asked.get("fromRepo", ""), anonymous=False)
    check_write(token, repo)
    check_namespace(token, asked.get("toRepo", "").split("/")[0])
    hub.store.move(repo, asked["toRepo"])
    return Reply(b"OK")


@routes.add("PUT", "/api/{type}/{repo}/settings", "settings")
def settings(hub: Hub, request: Request) -> Reply:
    repo, asked = hub.repo(request, "write"), request.json()
    with hub.store.lock:
        if "visibility" in asked or "private" in asked:
            repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo.gated = asked.get("gated", repo.gated)
        repo.save()
    return Reply.json({"private": repo.private, "gated": repo.gated})


@routes.add("POST", "/api/{type}/{repo}/user-access-request/grant", "settings")
def grant(hub: Hub, request: Request) -> Reply:
    repo, user = hub.repo(request, "write"), request.json().get("user")
    with hub.store.lock:
        if user in repo.granted:
            raise HubError(400, f"{user} has access already")
        repo.granted.append(user)
        repo.save()
    return Reply.json({})


@routes.add("GET", "/api/{type}/{repo}/auth-check", "auth-check")
def auth_check(hub: Hub, request: Request) -> Reply:
    check_content(hub.token(request), hub.repo(request))
    return Reply(b"OK")


@routes.add("GET", "/api/{type}/{repo}/auth-check/write", "auth-check")
def auth_check_write(hub: Hub, request: Request) -> Reply:
    hub.repo(request, "write")
    return Reply(b"OK")


@routes.add("GET", "/api/{type}", "list")
def list_repos(hub: Hub, request: Request) -> Reply:
    token = hub.token(request)
    found = [repo for repo in hub.store.repos() if repo.type == request.args["type"] and _visible(token, repo)]
    author, wanted = request.text("author"), set(request.query.get("filter", []))
    words = [word.lower() for word in request.query.get("search", [])]
    found = [repo for repo in found if author in (None, repo.namespace)]
    found = [repo for repo in found if all(word in repo.repo_id.lower() for word in words)]
    entries = [describe.info(hub.store, repo, "main", blobs=False) for repo in found]
    entries = [entry for entry in entries if wanted <= set(entry["tags"])]
    entries.sort(key=lambda entry: entry["lastModified"], reverse=True)
    if not request.flag("full"):
        entries = [describe.chosen(entry, describe.LISTED | set(request.query.get("expand", []))) for entry in entries]
    return hub.page(request, entries)


@routes.add("GET", "/api/{type}/{repo}", "info")
@routes.add("GET", "/api/{type}/{repo}/revision/{revision}", "info")
def info(hub: Hub, request: Request) -> Reply:
    repo = hub.repo(request)
    entry = describe.info(hub.store, repo, request.args.get("revision", "main"), request.flag("blobs"))
    if wanted := request.query.get("expand"):
        entry = describe.chosen(entry, {"_id", "id", *wanted})
    return Reply.json(entry)


@routes.add("GET", "/api/{type}/{repo}/refs", "refs")
def refs(hub: Hub, request: Request) -> Reply:
    repo = hub.repo(request)
    content = {
        "branches": [_ref(name, f"refs/heads/{name}", commit) for name, commit in dict(repo.branches).items()],
        "converts": [],
        "tags": [_ref(name, f"refs/tags/{name}", tag["commit"]) for name, tag in dict(repo.tags).items()],
    }
    if request.flag("include_prs"):
        content["pullRequests"] = [_ref(name, f"refs/pr/{name}", commit) for name, commit in dict(repo.pulls).items()]
    return Reply.json(content)


@routes.add("GET", "/api/{type}/{repo}/commits/{revision}", "commits")
def commits(hub: Hub, request: Request) -> Reply:
    entries = [
        {
            "id": commit["id"],
            "title": commit["title"],
            "message": commit["message"],
            "date": commit["date"],
            "authors": [{"user": commit["author"]}],
        }
        for commit in hub.repo(request).history(request.args["revision"])
    ]
    if "formatted" in request.query.get("expand[]", []):
        for entry in entries:
            entry["formatted"] = {"title": entry["title"], "message": entry["message"]}
    return hub.page(request, entries)


@routes.add("POST", "/api/{type}/{repo}/branch/{name}", "branch")
def create_branch(hub: Hub, request: Request) -> Reply:
    repo, asked, name = hub.repo(request, "write"), request.json(), request.args["name"]
    if name.startswith("refs/"):
        raise HubError(400, f"Invalid reference for a branch: {name}")
    with hub.store.lock:
        if name in repo.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{name}")
        repo.set_head(name, repo.resolve(asked.get("startingPoint") or "main"))
    return Reply.json({})


@routes.add("DELETE", "/api/{type}/{repo}/branch/{name}", "branch")
def delete_branch(hub: Hub, request: Request) -> Reply:
    repo, name = hub.repo(request, "write"), request.args["name"]
    with hub.store.lock:
        if name == "main":
            raise HubError(403, "The branch main cannot be deleted")
        if repo.branches.pop(name, None) is None:
            raise HubError(404, f"Reference does not exist: refs/heads/{name}")
        repo.save()
    return Reply.json({})


@routes.add("POST", "/api/{type}/{repo}/tag/{revision}", "tag")
def create_tag(hub: Hub, request: Request) -> Reply:
    repo, asked = hub.repo(request, "write"), request.json()
    name = asked.get("tag")
    if not name:
        raise HubError(400, "A tag needs a name")
    with hub.store.lock:
        commit = repo.resolve(request.args["revision"])
        if name in repo.tags:
            raise HubError(409, f"Tag reference exists already: {name}")
        repo.tags[name] = {"commit": commit, "message": asked.get("message", "")}
        repo.save()
    return Reply.json({})


@routes.add("DELETE", "/api/{type}/{repo}/tag/{name}", "tag")
def delete_tag(hub: Hub, request: Request) -> Reply:
    repo, name = hub.repo(request, "write"), request.args["name"]
    with hub.store.lock:
        if repo.tags.pop(name, None) is None:
            raise revision_not_found(name)
        repo.save()
    return Reply.json({})


@routes.add("POST", "/api/{type}/{repo}/super-squash/{name}", "squash")
def squash(hub: Hub, request: Request) -> Reply:
    repo, name, title = hub.repo(request, "write"), request.args["name"], request.json().get("message", "squash")
    with hub.store.lock:
        commit = repo.add_commit(None, repo.commit(repo.head(name))["tree"], title, "", hub.user(request).user)
        repo.set_head(name, commit)
    return Reply.json({"commitId": commit})


@routes.add("GET", "/api/{type}/{repo}/discussions", "discussions")
def discussions(hub: Hub, request: Request) -> Reply:
    hub.repo(request)
    return Reply.json({"discussions": [], "count": 0, "start": 0, "numClosedDiscussions": 0})


def _visible(token, repo: Repo) -> bool:
    try:
        check_read(token, repo)
    except HubError:
        return False
    return True


def _ref(name: str, ref: str, commit: str) -> dict:
    return {"name": name, "ref": ref, "targetCommit": commit}
