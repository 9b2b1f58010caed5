"""The server of the pages: on loopback alone, read only."""

from __future__ import annotations

import socket
from pathlib import Path

import plotly
import pyarrow as pa
import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from spo_core.errors import ConfigError, SPOError
from spo_core.observe.formatting import visible
from spo_core.observe.view_link import DEFAULT_PORT, HOST, announced
from spo_core.paths import Paths
from spo_core.view import evaluation_pages, run_pages, tree_pages
from spo_core.view.guard import Guard
from spo_core.view.rendering import HERE, SHARED, environment, page

STATIC = {
    "style.css": (SHARED / "style.css", "text/css"),
    "view.css": (HERE / "static" / "view.css", "text/css"),
    "view.js": (HERE / "static" / "view.js", "text/javascript"),
    "tree.js": (HERE / "static" / "tree.js", "text/javascript"),
    "plotly.js": (Path(plotly.__file__).parent / "package_data" / "plotly.min.js", "text/javascript"),
}


def make_app(paths: Paths, port: int = DEFAULT_PORT) -> FastAPI:
    """The pages of a project, as an application for requests to loopback at ``port``."""
    load_ahead()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.paths = paths
    app.add_middleware(Guard, port=port)
    for router in (run_pages.router, tree_pages.router, evaluation_pages.router):
        app.include_router(router)

    @app.get("/health")
    def health() -> Response:
        """Tell other commands of this project that its pages are here."""
        return PlainTextResponse(str(paths.root))

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "no such file")
        path, kind = STATIC[name]
        kept = "max-age=86400" if name == "plotly.js" else "no-cache"
        return FileResponse(path, media_type=kind, headers={"Cache-Control": kept})

    @app.exception_handler(SPOError)
    def refusal(request: Request, error: SPOError) -> Response:
        return _refused(request, visible(str(error)), 404)

    @app.exception_handler(HTTPException)
    def missing(request: Request, error: HTTPException) -> Response:
        return _refused(request, "no such page" if error.status_code == 404 else str(error.detail), error.status_code)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        wrong = ", ".join(str(one["loc"][-1]) for one in error.errors())
        return _refused(request, f"not an address of this view: {visible(wrong)}", 422)

    return app


def load_ahead() -> None:
    """Load what the first pages would otherwise wait for: their templates, and pandas, which pyarrow imports to make
    its first array of numbers."""
    for template in sorted((HERE / "templates").glob("*.html")):
        environment().get_template(template.name)
    pa.chunked_array([[0]]).to_numpy()


def _refused(request: Request, why: str, status: int) -> Response:
    if request.url.path.endswith(".json"):
        return PlainTextResponse(why.encode("utf-8", "backslashreplace"), status_code=status)
    return page("refused.html", status, why=why)


def serve(paths: Paths, port: int | None, opened: str = "/") -> None:
    """Serve until interrupted, at ``port`` or else at DEFAULT_PORT or the next free one, and print the address.

    Raises ConfigError where the port is taken.
    """
    with _bound(port) as listening:
        actual = listening.getsockname()[1]
        config = uvicorn.Config(make_app(paths, actual), log_level="warning", server_header=False, access_log=False)
        with announced(paths, actual):
            print(f"http://{HOST}:{actual}{opened}  (Ctrl-C ends it)", flush=True)
            uvicorn.Server(config).run(sockets=[listening])


def _bound(port: int | None) -> socket.socket:
    for candidate in [port] if port else [*range(DEFAULT_PORT, DEFAULT_PORT + 20), 0]:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, candidate))
        except OSError as error:
            listening.close()
            reason = error.strerror
            continue
        return listening
    raise ConfigError(f"--port {port}: {reason}; choose another, or leave it out")
