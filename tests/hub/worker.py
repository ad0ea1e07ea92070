"""Runs what :class:`tests.hub.client.Client` sends: one JSON line in, one out."""

from __future__ import annotations

import ast
import json
import os
import sys
import traceback
from typing import Any


def run(code: str, names: dict[str, Any]) -> Any:
    """Execute statements.

    Returns:
        The value of the last one where it is an expression, else None.
    """
    body = ast.parse(code).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "<client>", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "<client>", "eval"), names)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
    names: dict[str, Any] = {"__name__": "__client__"}
    for line in sys.stdin:
        try:
            reply = {"value": run(json.loads(line), names)}
        except BaseException as error:
            reply = {
                "error": type(error).__name__,
                "kinds": [kind.__name__ for kind in type(error).__mro__],
                "text": str(error),
            }
            traceback.print_exc()
        replies.write(json.dumps(reply, default=str) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
