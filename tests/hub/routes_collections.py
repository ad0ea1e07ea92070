"""Collections, and the check of a card's metadata."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from tests.hub import auth, cards
from tests.hub.auth import Token
from tests.hub.context import Hub
from tests.hub.errors import HubError
from tests.hub.repo import now
from tests.hub.wire import Reply, Request, Routes

routes = Routes()
_FILE = "collections.json"
_ITEMS = ("model", "dataset", "space")


@routes.add("POST", "/api/validate-yaml", "validate-yaml")
def validate_yaml(hub: Hub, request: Request) -> Reply:
    asked = request.json()
    errors, warnings = cards.check(asked.get("content", ""), asked.get("repoType", "model"))
    content = {"errors": [{"message": one} for one in errors], "warnings": [{"message": one} for one in warnings]}
    return Reply.json(content, 400 if errors else 200)


@routes.add("GET", "/api/collections", "collections")
def listed(hub: Hub, request: Request) -> Reply:
    token, owners, items = hub.token(request), request.query.get("owner"), request.query.get("item")
    found = []
    for one in hub.store.load(_FILE, {}).values():
        names = {f"{item['type']}s/{item['id']}" for item in one["items"]}
        if _visible(token, one) and (not owners or one["owner"] in owners) and (not items or names & set(items)):
            found.append({k: v for k, v in _shown(hub, token, one).items() if k != "position"})
    found.sort(key=lambda one: one["lastUpdated"], reverse=True)
    return hub.page(request, found)


@routes.add("POST", "/api/collections", "collections")
def create(hub: Hub, request: Request) -> Reply:
    token, asked = hub.user(request), request.json()
    owner, title = asked.get("namespace") or token.user, asked.get("title") or ""
    auth.check_namespace(token, owner)
    if not title or len(title) > 60:
        raise HubError(400, "A collection needs a title of at most 60 characters")
    with hub.store.lock:
        kept = hub.store.load(_FILE, {})
        number = hashlib.sha1(f"{owner}/{title}".encode()).hexdigest()[:24]
        if number in kept:
            raise HubError(409, "This collection already exists", body={"slug": kept[number]["slug"]})
        one = {"slug": _slug(owner, title, number), "title": title, "owner": owner, "items": [], "position": len(kept)}
        one |= {"private": bool(asked.get("private")), "theme": "orange", "upvotes": 0, "lastUpdated": now()}
        one["description"] = asked.get("description")
        kept[number] = one
        hub.store.save(_FILE, kept)
    return Reply.json(_shown(hub, token, one))


@routes.add("GET", "/api/collections/{owner}/{slug}", "collections")
def get(hub: Hub, request: Request) -> Reply:
    token = hub.token(request)
    _, one = _found(hub, request)
    return Reply.json(_shown(hub, token, one))


@routes.add("PATCH", "/api/collections/{owner}/{slug}", "collections")
def update(hub: Hub, request: Request) -> Reply:
    token, asked = hub.token(request), request.json()
    with hub.store.lock:
        kept, one = _found(hub, request, write=True)
        for name in ("title", "description", "position", "private", "theme"):
            one[name] = asked.get(name, one[name])
        one["slug"] = _slug(one["owner"], one["title"], _number(request))
        _keep(hub, kept, one)
    return Reply.json({"success": True, "data": _shown(hub, token, one)})


@routes.add("DELETE", "/api/collections/{owner}/{slug}", "collections")
def delete(hub: Hub, request: Request) -> Reply:
    with hub.store.lock:
        kept, _ = _found(hub, request, write=True)
        del kept[_number(request)]
        hub.store.save(_FILE, kept)
    return Reply.json({"success": True})


@routes.add("POST", "/api/collections/{owner}/{slug}/items", "collections")
def add_item(hub: Hub, request: Request) -> Reply:
    token, asked = hub.token(request), request.json()
    item = {name: asked["item"][name] for name in ("id", "type")}
    with hub.store.lock:
        kept, one = _found(hub, request, write=True)
        if item["type"] in _ITEMS:
            auth.check_read(token, hub.store.get(item["type"], item["id"], token is None))
        if any((other["id"], other["type"]) == (item["id"], item["type"]) for other in one["items"]):
            raise HubError(409, f"{item['id']} is already in the collection")
        item["_id"] = hashlib.sha1(f"{one['slug']}/{item['type']}/{item['id']}".encode()).hexdigest()[:24]
        item["note"] = {"text": asked["note"], "html": asked["note"]} if asked.get("note") else None
        one["items"].append(item)
        _keep(hub, kept, one)
    return Reply.json(_shown(hub, token, one))


@routes.add("PATCH", "/api/collections/{owner}/{slug}/items/{item}", "collections")
def update_item(hub: Hub, request: Request) -> Reply:
    asked = request.json()
    with hub.store.lock:
        kept, one = _found(hub, request, write=True)
        place = _place(one, request.args["item"])
        item = one["items"][place]
        if "note" in asked:
            item["note"] = {"text": asked["note"], "html": asked["note"]}
        one["items"].insert(asked.get("position", place), one["items"].pop(place))
        _keep(hub, kept, one)
    return Reply.json({"success": True})


@routes.add("DELETE", "/api/collections/{owner}/{slug}/items/{item}", "collections")
def delete_item(hub: Hub, request: Request) -> Reply:
    with hub.store.lock:
        kept, one = _found(hub, request, write=True)
        del one["items"][_place(one, request.args["item"])]
        _keep(hub, kept, one)
    return Reply.json({"success": True})


def _found(hub: Hub, request: Request, write: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """All collections, and the one that the path names by the number at its end."""
    token, kept = hub.token(request), hub.store.load(_FILE, {})
    one = kept.get(_number(request))
    if one is None or not _visible(token, one):
        raise HubError(404, "Collection not found")
    if write:
        auth.check_namespace(token, one["owner"])
    return kept, one


def _keep(hub: Hub, kept: dict[str, Any], one: dict[str, Any]) -> None:
    one["lastUpdated"] = now()
    hub.store.save(_FILE, kept)


def _shown(hub: Hub, token: Token | None, one: dict[str, Any]) -> dict[str, Any]:
    """A collection as the caller may see it: repos that are none of its business, or gone, are left out."""
    items = []
    for item in one["items"]:
        if item["type"] in _ITEMS:
            repo = hub.store.find(item["type"], item["id"])
            try:
                if repo is None or auth.check_read(token, repo):
                    continue
            except HubError:
                continue
        items.append({**item, "position": len(items)})
    return {**one, "items": items}


def _visible(token: Token | None, one: dict[str, Any]) -> bool:
    return not one["private"] or (token is not None and one["owner"] in token.namespaces)


def _place(one: dict[str, Any], item: str) -> int:
    for place, other in enumerate(one["items"]):
        if other["_id"] == item:
            return place
    raise HubError(404, "Item not found")


def _number(request: Request) -> str:
    return request.args["slug"].rpartition("-")[2]


def _slug(owner: str, title: str, number: str) -> str:
    return f"{owner}/{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}-{number}"
