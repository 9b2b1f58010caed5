"""Where the pages of ``python -m flows.view`` are, for those who link to them: the report, the terminal, Prefect."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, urlencode

from spo_core.paths import Paths
from spo_core.system.files import read_json, write_text

HOST = "127.0.0.1"
DEFAULT_PORT = 8421
COMMAND = "python -m flows.view"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback goes through no proxy


def run_address(name: str | None) -> str:
    """Path of a published run's page; None is the main run."""
    return "/run/published/main" if name is None else f"/run/outputs/{quote(name, safe='')}"


def work_address(directory: Path) -> str:
    """Path of the page of a run under way, by its working directory."""
    return f"/run/work/{quote(directory.name, safe='')}"


def cell_address(name: str | None, policy: str, cell: str) -> str:
    """Path of the page of a run's policy in an evaluated cell; the run as ``run_address`` has it."""
    run = run_address(name).removeprefix("/run")
    return f"/evaluation{run}?{urlencode({'cell': cell, 'policy': policy})}"


def analysis_address(name: str) -> str:
    return f"/analysis/{quote(name)}"


@contextmanager
def announced(paths: Paths, port: int) -> Iterator[None]:
    """Note in the project that its pages are at a port, while the context lasts."""
    file = _file(paths)
    write_text(file, json.dumps({"port": port}) + "\n")
    try:
        yield
    finally:
        with suppress(OSError, ValueError, KeyError):
            if read_json(file)["port"] == port:
                file.unlink()


def running_view(paths: Paths) -> str | None:
    """``http://127.0.0.1:<port>`` where this project's pages are served now; None where they are not."""
    with suppress(OSError, ValueError, KeyError, TypeError, HTTPException):
        origin = f"http://{HOST}:{int(read_json(_file(paths))['port'])}"
        with _DIRECT.open(f"{origin}/health", timeout=2) as answer:
            if answer.read().decode() == str(paths.root):
                return origin
    return None


def invitation(paths: Paths, address: str, argument: str = "") -> str:
    """A line for a terminal: the address where pages are served now, else the command that serves them."""
    origin = running_view(paths)
    return f"Look at it: {origin}{address}" if origin else f"Look at it: {COMMAND} {argument}".rstrip()


def _file(paths: Paths) -> Path:
    return paths.work / "view.json"
