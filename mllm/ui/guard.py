"""Guard of the page: its token, and headers that keep a browser from loading anything from elsewhere."""

from __future__ import annotations

import secrets

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "mllm_token"
OWN_ONLY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "frame-ancestors 'self'; base-uri 'self'; form-action 'self'; object-src 'none'"
)
"""Content-Security-Policy: the browser loads nothing from another host, whatever the files of Gradio name."""


class PageGuard:
    """Application around the server, for browsers, which cannot send the header of the token.

    The address with `?token=...` sets a cookie; a request with the cookie gets the header that the server expects.

    Args:
        app: The server.
        token: Secret without which nobody reads the page; None: the server needs none.
        paths: Beginnings of the addresses of the page.
    """

    def __init__(self, app: ASGIApp, token: str | None, paths: tuple[str, ...]) -> None:
        self.app, self.token, self.paths = app, token, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for the page that has no token, and pass on the others."""
        is_of_page = scope["type"] == "http" and (scope["path"] == "/" or scope["path"].startswith(self.paths))
        if not is_of_page:
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        if self.token is not None and "authorization" not in request.headers:
            if _is_equal(request.query_params.get("token"), self.token):
                answer = RedirectResponse(request.url.remove_query_params("token"))
                answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
                await answer(scope, receive, send)
                return
            if not _is_equal(request.cookies.get(COOKIE), self.token):
                text = "This page needs a token: open its address with ?token=TOKEN at the end."
                await PlainTextResponse(text, status_code=401)(scope, receive, send)
                return
            bearer = (b"authorization", f"Bearer {self.token}".encode())
            scope = {**scope, "headers": [*scope["headers"], bearer]}

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = OWN_ONLY
                headers["Referrer-Policy"] = "no-referrer"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, with_headers)


def _is_equal(value: str | None, token: str) -> bool:
    return value is not None and secrets.compare_digest(value.encode(), token.encode())
