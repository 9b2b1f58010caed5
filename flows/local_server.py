"""Starts a Prefect server for one command, so that each stage need not start its own (20 s apiece)."""

from __future__ import annotations

import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spo_core.errors import SPOError
from spo_core.system.processes import child, die_with, last_words

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback goes through no proxy
START_LIMIT = 180  # seconds; the first start creates the database


@contextmanager
def local_server(root: Path) -> Iterator[dict[str, str]]:
    """Run a server on loopback while the context lasts; yields the environment with which commands use it.

    Where PREFECT_API_URL is set, that server is used and none is started. Raises SPOError where it does not start.
    """
    if "PREFECT_API_URL" in os.environ:
        yield dict(os.environ)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = root / "work" / "prefect-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flows.local_server", str(os.getpid()), str(port)]
    with child(command, cwd=root, env=os.environ, log=log) as process:
        url = f"http://127.0.0.1:{port}/api"
        started = time.monotonic()
        while not _healthy(url):
            status = process.poll()
            if status is not None or time.monotonic() - started > START_LIMIT:
                why = last_words(log, status) if status is not None else f"no answer after {START_LIMIT} s"
                raise SPOError(f"Prefect's server did not start: {why}; see {log}")
            time.sleep(0.2)
        yield {**os.environ, "PREFECT_API_URL": url}


def _healthy(url: str) -> bool:
    try:
        with _DIRECT.open(f"{url}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def main(parent: int, port: int) -> None:
    """Replace this process by the server, which ends with process ``parent``."""
    die_with(parent)
    factory = "prefect.server.api.server:create_app"
    arguments = ["--factory", factory, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    os.execv(sys.executable, [sys.executable, "-m", "uvicorn", *arguments])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
