"""The control endpoint ``/_control``, for whoever runs the hub: faults, counts, tokens. It asks for no token.

| request | what it does |
| --- | --- |
| ``PUT /_control/faults`` ``{"rules": [{"kind": "status", "on": ["commit"], …}], "seed": 0}`` | plans faults in the place of the former ones |
| ``GET /_control/faults``, ``DELETE /_control/faults`` | the rules in force; none any more |
| ``GET /_control/counts``, ``DELETE /_control/counts`` | the book; a fresh one |
| ``GET /_control/log`` | every request since then |
| ``GET /_control/tokens``, ``POST /_control/tokens`` ``{"user", "role", "orgs"}`` | all tokens; another one |
| ``POST /_control/revoke`` ``{"token"}`` | takes a token back |
"""  # noqa: E501 (the rows of a table)

from __future__ import annotations

from dataclasses import asdict

from tests.hub.context import Hub
from tests.hub.errors import HubError
from tests.hub.faults import Fault
from tests.hub.wire import Reply, Request, Routes

routes = Routes()


@routes.add("GET PUT DELETE", "/_control/faults", "control")
def faults(hub: Hub, request: Request) -> Reply:
    if request.method != "GET":
        asked = request.json()
        try:
            hub.faults.plan([Fault(**rule) for rule in asked.get("rules", [])], asked.get("seed", 0))
        except (TypeError, ValueError) as error:
            raise HubError(400, f"No rule of a fault: {error}") from None
    return Reply.json(hub.faults.show())


@routes.add("GET DELETE", "/_control/counts", "control")
def counts(hub: Hub, request: Request) -> Reply:
    if request.method == "DELETE":
        hub.book.clear()
    return Reply.json(hub.book.show())


@routes.add("GET", "/_control/log", "control")
def log(hub: Hub, request: Request) -> Reply:
    return Reply.json(hub.book.log())


@routes.add("GET POST", "/_control/tokens", "control")
def tokens(hub: Hub, request: Request) -> Reply:
    if request.method == "GET":
        return Reply.json([asdict(token) for token in hub.store.tokens.all()])
    asked = request.json()
    try:
        value = hub.store.tokens.add(asked["user"], asked.get("role", "write"), tuple(asked.get("orgs", ())))
    except (KeyError, ValueError) as error:
        raise HubError(400, f"No token: {error}") from None
    return Reply.json({"token": value})


@routes.add("POST", "/_control/revoke", "control")
def revoke(hub: Hub, request: Request) -> Reply:
    try:
        hub.store.tokens.revoke(request.json()["token"])
    except KeyError:
        raise HubError(404, "There is no such token") from None
    return Reply.json({})
