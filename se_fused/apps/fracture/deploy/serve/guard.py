"""Middleware that rejects requests from other web pages and adds security headers to every response."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADERS", "Guard"]

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_SAFE = ("GET", "HEAD", "OPTIONS")


def _foreign(headers: Headers) -> bool:
    """Whether a browser sent the request from another page. Clients other than browsers send neither header."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.casefold() != headers.get("host", "").casefold()


class Guard:
    """ASGI middleware: adds security headers to every response and rejects state-changing requests of other pages."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["method"] not in _SAFE and _foreign(Headers(scope=scope)):
            refused = JSONResponse({"detail": "the request comes from another web page; use this server's page"}, 403)
            await refused(scope, receive, guarded)
            return
        try:
            await self.app(scope, receive, guarded)
        except Exception:
            if not started:  # the default error response of the server would not have the headers
                await JSONResponse({"detail": "internal server error; see the output of the server"}, 500)(
                    scope, receive, guarded
                )
            raise
