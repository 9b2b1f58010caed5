"""What the server refuses, and what browsers are told: only pages of this machine's own may read it."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """Refuses requests under another host's name (a site whose name was pointed at this machine) and from other sites'
    pages, and adds HEADERS to every answer. Following a link from elsewhere to a page is allowed."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.port = port
        bare = LOOPBACK if port == 80 else ()  # which clients leave out
        self.hosts = frozenset([*(f"{host}:{port}" for host in LOOPBACK), *bare])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here
        why = self.refused(scope["method"], Headers(scope=scope))
        app = self.app if why is None else PlainTextResponse(why + "\n", status_code=403)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await app(scope, receive, with_headers)

    def refused(self, method: str, headers: Headers) -> str | None:
        """Why a request is refused; None for one that is answered."""
        if method != "GET":
            return "only GET: nothing is changed here"
        if headers.getlist("host") != [headers.get("host")] or headers.get("host") not in self.hosts:
            return (
                f"this server answers to 127.0.0.1:{self.port} and localhost:{self.port} alone; forward the same port"
            )
        origin = headers.get("origin")
        if origin is not None and (urlsplit(origin).scheme != "http" or urlsplit(origin).netloc not in self.hosts):
            return "pages of other sites may not read this server"
        follows_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not follows_link:
            return "pages of other sites may not read this server"
        return None
