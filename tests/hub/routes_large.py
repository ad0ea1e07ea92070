"""Large objects: announced on the hub's origin, moved on the storage origin, in one piece or in parts."""

from __future__ import annotations

import hashlib
import math
import shutil
from typing import Any

from tests.hub.context import Hub
from tests.hub.errors import HubError, entry_not_found
from tests.hub.wire import Reply, Request, Routes

routes = Routes()  # of the hub's origin
storage_routes = Routes()


@routes.add("POST", "/datasets/{namespace}/{git}/info/lfs/objects/batch", "lfs-batch", type="dataset")
@routes.add("POST", "/spaces/{namespace}/{git}/info/lfs/objects/batch", "lfs-batch", type="space")
@routes.add("POST", "/{namespace}/{git}/info/lfs/objects/batch", "lfs-batch", type="model")
def batch(hub: Hub, request: Request) -> Reply:
    """Where to put each object that the repo does not have yet."""
    _name(request)
    repo, asked = hub.repo(request, "write"), request.json()
    multipart = "multipart" in asked.get("transfers", [])
    objects = []
    for wanted in asked.get("objects", []):
        oid, size = wanted["oid"], wanted["size"]
        entry: dict[str, Any] = {"oid": oid, "size": size}
        if not repo.has_lfs(oid):
            target = f"{repo.type}/{repo.repo_id}/{oid}/{size}"
            verify = f"{request.origin}/{repo.page}.git/info/lfs/objects/verify"
            entry["actions"] = {"upload": _upload(hub, request, target, size, multipart), "verify": {"href": verify}}
        objects.append(entry)
    return Reply.json({"transfer": "multipart" if multipart else "basic", "objects": objects})


@routes.add("POST", "/datasets/{namespace}/{git}/info/lfs/objects/verify", "lfs-verify", type="dataset")
@routes.add("POST", "/spaces/{namespace}/{git}/info/lfs/objects/verify", "lfs-verify", type="space")
@routes.add("POST", "/{namespace}/{git}/info/lfs/objects/verify", "lfs-verify", type="model")
def verify(hub: Hub, request: Request) -> Reply:
    _name(request)
    repo, asked = hub.repo(request, "write"), request.json()
    if not repo.has_lfs(asked.get("oid", "")) or hub.store.path(asked["oid"]).stat().st_size != asked.get("size"):
        raise HubError(404, f"The object {asked.get('oid')} is not here")
    return Reply.json({})


@routes.add("POST", "/api/complete_multipart/{type_}/{namespace}/{name}/{oid}/{size}", "lfs-complete")
def complete(hub: Hub, request: Request) -> Reply:
    """Put the parts of an object together."""
    args, parts = request.args, request.json().get("parts", [])
    target = f"{args['type_']}/{args['namespace']}/{args['name']}/{args['oid']}/{args['size']}"
    hub.store.tokens.check(f"complete/{target}", request.text("signature", ""))
    repo = hub.store.get(args["type_"], f"{args['namespace']}/{args['name']}", anonymous=False)
    if not repo.has_lfs(args["oid"]):  # else the reply to the first call was lost
        whole = hub.store.scratch()
        with whole.open("wb") as stream:
            for part in sorted(parts, key=lambda part: part["partNumber"]):
                path = hub.store.part_path(_upload_id(target), part["partNumber"])
                content = path.read_bytes() if path.exists() else None
                if content is None or _etag(content) != part["etag"]:
                    raise HubError(400, f"Part {part['partNumber']} of {args['oid']} is not here")
                stream.write(content)
        hub.store.keep_upload(whole, args["oid"], int(args["size"]))
        repo.add_lfs(args["oid"])
        hub.book.upload(repo, "lfs", args["oid"])
        shutil.rmtree(hub.store.part_path(_upload_id(target), 0).parent, ignore_errors=True)
    return Reply.json({"success": True})


@storage_routes.add("PUT", "/upload/{type_}/{namespace}/{name}/{oid}/{size}", "lfs-upload")
def upload(hub: Hub, request: Request) -> Reply:
    """An object in one piece."""
    _signed(hub, request)
    args = request.args
    repo = hub.store.get(args["type_"], f"{args['namespace']}/{args['name']}", anonymous=False)
    received = hub.store.scratch()
    hub.book.add("uploaded_bytes", request.save_body(received))
    hub.store.keep_upload(received, args["oid"], int(args["size"]))
    repo.add_lfs(args["oid"])
    hub.book.upload(repo, "lfs", args["oid"])
    return Reply(headers={"ETag": f'"{args["oid"]}"'})


@storage_routes.add("PUT", "/part/{type_}/{namespace}/{name}/{oid}/{size}/{number}", "lfs-part")
def upload_part(hub: Hub, request: Request) -> Reply:
    """One part of an object."""
    _signed(hub, request)
    target, _, number = request.path.strip("/").removeprefix("part/").rpartition("/")
    content = request.body()
    hub.book.add("uploaded_bytes", len(content))
    path = hub.store.part_path(_upload_id(target), int(number))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Reply(headers={"ETag": _etag(content)})


@storage_routes.add("GET", "/object/{type_}/{namespace}/{name}/{oid}", "download")
def download(hub: Hub, request: Request) -> Reply:
    _signed(hub, request)
    path = hub.store.path(request.args["oid"])
    if not path.exists():
        raise entry_not_found()
    return Reply(path=path, headers={"ETag": f'"{request.args["oid"]}"'})


def _upload(hub: Hub, request: Request, target: str, size: int, multipart: bool) -> dict[str, Any]:
    if not multipart or size <= hub.part_size:
        return {"href": hub.signed(f"upload/{target}")}
    header = {"chunk_size": str(hub.part_size)}
    for number in range(1, math.ceil(size / hub.part_size) + 1):
        header[str(number)] = hub.signed(f"part/{target}/{number}")
    signature = hub.store.tokens.sign(f"complete/{target}")
    return {"href": f"{request.origin}/api/complete_multipart/{target}?signature={signature}", "header": header}


def _signed(hub: Hub, request: Request) -> None:
    """Raise unless the address was signed; a token has no business here, and is refused as the real storage does."""
    if request.headers.get("Authorization"):
        hub.book.add("leaks")
        raise HubError(400, "Only one way of authorization is allowed: the signature")
    hub.store.tokens.check(request.path.strip("/"), request.text("signature", ""))


def _name(request: Request) -> None:
    args = request.args
    if not args["git"].endswith(".git"):
        raise HubError(404, f"There is nothing at {request.path}")
    args["repo"] = f"{args['namespace']}/{args['git'].removesuffix('.git')}"


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _upload_id(target: str) -> str:
    return hashlib.sha1(target.encode()).hexdigest()
