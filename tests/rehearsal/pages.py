"""The repo pages as files to look at: a README as one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import html
import mimetypes
import re
from collections.abc import Mapping

_FRONT = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_PICTURE = re.compile(r'(<img\b[^>]*?\bsrc=")([^"]+)(")')
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; } table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: .3rem .7rem; }
pre { overflow-x: auto; padding: .8rem; } pre, code { background: color-mix(in srgb, currentColor 8%, transparent); }
pre code { background: none; }
blockquote { margin-left: 0; padding-left: 1rem; border-left: 4px solid gray; }
"""


def page(title: str, files: Mapping[str, bytes]) -> tuple[str, list[str]]:
    """A repo's page.

    Args:
        title: of the page.
        files: of the repo by path; ``README.md`` among them.

    Returns:
        (HTML, the pictures that the README shows and the repo does not hold).
    """
    from markdown_it import MarkdownIt

    text = files["README.md"].decode("utf-8")
    front = _FRONT.match(text)
    body = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    rendered = body.render(text[front.end() :] if front else text)
    missing: list[str] = []

    def inside(found: re.Match[str]) -> str:
        path = html.unescape(found[2]).removeprefix("./")
        if path.startswith("data:"):
            return found[0]
        if path not in files:
            missing.append(path)
            return found[0]
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return f"{found[1]}data:{kind};base64,{base64.b64encode(files[path]).decode()}{found[3]}"

    rendered = _PICTURE.sub(inside, rendered)
    metadata = f"<details><summary>Metadata</summary><pre>{html.escape(front[1])}</pre></details>" if front else ""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    whole = f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>'
    return f"{whole}<p><code>{html.escape(title)}</code></p>{metadata}{rendered}</body></html>\n", missing
