"""Links on Prefect's pages: to a run's report, and to its pages in a browser where these are served."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from prefect.artifacts import create_link_artifact
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from spo_core.observe.view_link import running_view
from spo_core.paths import Paths

log = logging.getLogger(__name__)


def link_report(page: Path, name: str, more: str = "") -> None:
    """Add a link to the report to the present flow run's artifacts; an error of the server is only logged."""
    place = page.resolve()
    # browsers open no file:// link from another machine's page, so the path is shown too, to be copied
    _link(place.as_uri(), str(place), artifact_key("report", name), f"Report of {name}: `{place}`{more}")


def link_view(paths: Paths, address: str, name: str, description: str) -> None:
    """Add a link to a page of the view, where it is served now; as ``link_report``."""
    if (origin := running_view(paths)) is not None:
        _link(f"{origin}{address}", f"{origin}{address}", artifact_key("view", name), description)


def seen_at(paths: Paths, address: str) -> str:
    """The end of an artifact's description: a link to a page of the view; empty where it is not served."""
    origin = running_view(paths)
    return f". [Look at it]({origin}{address})" if origin is not None else ""


def artifact_key(kind: str, name: str) -> str:
    """A key that Prefect accepts (small letters, digits, dashes), as ``iterations-my-run``."""
    return f"{kind}-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run")


def _link(link: str, text: str, key: str, description: str) -> None:
    if FlowRunContext.get() is None:
        return
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            create_link_artifact(link, text, key=key, description=description)
    except Exception as error:  # the client raises errors of many types
        log.warning("Prefect's server does not take the link to %s: %s", text, error)
