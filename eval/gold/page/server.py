"""Serving the page on this machine, to this machine alone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builder.errors import KitError
from eval.gold.clips import Clips
from eval.gold.session import Labelling

if TYPE_CHECKING:
    from fastapi import FastAPI

HERE = Path(__file__).parent
HOST = "127.0.0.1"
PORT = 7860
# The browser itself then refuses whatever would leave this machine; gradio's own page needs inline code.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; form-action 'self'; base-uri 'self'; "
    "frame-ancestors 'none'"
)


def need_gradio() -> None:
    """Refuse to go on without gradio; it is not imported yet, which takes seconds.

    Raises:
        KitError: if gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise KitError('the labelling page needs gradio: pip install -e ".[label]"')


def quiet_gradio() -> None:
    """Settings that gradio reads when it is imported: no telemetry, no look for a newer version."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def make_app(
    session: Labelling, clips: Clips, agreement: Callable[[], tuple], annotator: str | None, port: int
) -> FastAPI:
    """The web application: the page at ``/``, ``/clip/NUMBER`` and ``/labels.jsonl``.

    Raises:
        KitError: if gradio is not installed.
    """
    need_gradio()
    quiet_gradio()
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, PlainTextResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from eval.gold.page.app import build_page

    videos = list(dict.fromkeys(item.video_id for item in session.items))

    def clip_error(video_id: str) -> str | None:
        try:
            clips.file(video_id)
        except (KitError, OSError) as error:
            return str(error)
        return None

    app = FastAPI(openapi_url=None)

    @app.get("/clip/{number}")
    def clip(number: int):
        if not 0 <= number < len(videos):
            return PlainTextResponse("no such clip", 404)
        try:
            return FileResponse(clips.file(videos[number]), media_type="video/mp4")
        except (KitError, OSError) as error:
            return PlainTextResponse(str(error), 404)

    @app.get("/labels.jsonl")
    def labels():
        path = session.file.path
        content = path.read_bytes() if path.exists() else b""
        disposition = {"Content-Disposition": 'attachment; filename="gold.jsonl"', "Cache-Control": "no-store"}
        return PlainTextResponse(content, headers=disposition, media_type="application/x-ndjson")

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    gr.mount_gradio_app(
        app,
        build_page(session, videos, clip_error, agreement, annotator),
        path="/",
        server_name=HOST,
        server_port=port,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        theme=gr.themes.Default(primary_hue="blue", **fonts),
        css_paths=[HERE / "page.css"],
        head=f"<script>{(HERE / 'keys.js').read_text(encoding='utf-8')}</script>",
    )
    app.add_middleware(_Headers)
    # A name that somebody has bent to this address is refused: no other site can read the page through a browser.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return app


def serve(make: Callable[[int], FastAPI], port: int | None, announce: Callable[[str], None]) -> None:
    """Serve an application until Ctrl-C.

    Args:
        make: gives the application for a port.
        port: the port; None takes 7860, or any free one if that is taken.
        announce: called with the address once the page can be opened.

    Raises:
        KitError: if the port is taken.
        KeyboardInterrupt: on Ctrl-C, when everything is closed.
    """
    import uvicorn

    with _bound(port) as listener:
        number = listener.getsockname()[1]
        app = make(number)

        class Server(uvicorn.Server):
            async def startup(self, sockets=None) -> None:
                await super().startup(sockets)
                announce(f"http://{HOST}:{number}/")

        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _bound(port: int | None) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, PORT if port is None else port))
        except OSError as error:
            if port is not None:
                raise KitError(f"port {port} cannot be used ({error.strerror}); give another --port") from None
            listener.bind((HOST, 0))
        yield listener


class _Headers:
    """Adds the content policy to every answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, send_with_policy)
