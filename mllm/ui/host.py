"""Page on a server: its addresses, its look, and its reports."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, Response

from mllm.errors import UserError
from mllm.ui.events import Events
from mllm.ui.guard import PageGuard
from mllm.ui.layout import Layout
from mllm.ui.reports import report_of

PAGE = "/ui"
REPORT = "/ui-report"
STYLE, SCRIPT = (Path(__file__).with_name(name) for name in ("page.css", "page.js"))


def add_page(app: FastAPI, events: Events, token: str | None = None) -> None:
    """Add the page to a server, with its reports.

    Args:
        app: The server.
        events: The events of the page.
        token: Secret without which nobody reads the page; None: everybody who reaches the server reads it.
    """

    @app.get("/", include_in_schema=False)
    def root() -> Response:
        return RedirectResponse(PAGE)

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)  # browsers ask for it

    @app.get(REPORT, include_in_schema=False)
    def report(run: str = "") -> Response:
        try:
            return FileResponse(report_of(run), media_type="text/html")
        except UserError as error:
            return PlainTextResponse(str(error), status_code=404)

    # The fonts are those of the system: the default theme loads one from the internet.
    theme = gr.themes.Base(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    gr.mount_gradio_app(
        app,
        Layout(events).blocks,
        PAGE,
        theme=theme,
        css=STYLE.read_text(encoding="utf-8"),
        head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=events.limits.upload,
        show_error=False,
    )
    app.add_middleware(PageGuard, token=token, paths=(PAGE, REPORT))
