"""Checks of each request before it is read: its token, and the host that it was sent to."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/health"})
"""Paths that need no token."""
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names of this machine in requests to a server that other machines cannot reach."""


@dataclass(frozen=True)
class Guard:
    """Application around another one, which refuses requests without the token and requests of web pages.

    A web page can send requests to this machine, also under a name of its own that leads to 127.0.0.1. So a server
    without a token answers requests to the names of this machine only, and none of pages of other machines.
    """

    app: ASGIApp
    token: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self.token is None:
            is_local = _name(headers.get("host", "")) in LOCAL and _is_local_page(headers.get("origin"))
            refusal = None if is_local else (403, "the server answers requests from and to localhost only: set a token")
        else:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(token.strip().encode(), self.token.encode())
            reason = "the token is missing or wrong: send the header Authorization: Bearer TOKEN"
            refusal = None if scheme.lower() == "bearer" and is_right else (401, reason)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            status, reason = refusal
            await JSONResponse(error_body(status, reason), status)(scope, receive, send)


def _name(host: str) -> str:
    """Return the name in `NAME:PORT`, without the port."""
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def _is_local_page(origin: str | None) -> bool:
    """Return True for no page, and for one of this machine. Browsers send `null` for pages that hide their origin."""
    return origin is None or _name(origin.partition("://")[2]) in LOCAL


def error_body(status: int, message: str) -> dict[str, dict[str, object]]:
    """Return an error in OpenAI's form."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}
