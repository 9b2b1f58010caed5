"""Says in one line what is wrong with the Prefect server that PREFECT_API_URL names, before a flow starts and after."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import httpx
from packaging.version import InvalidVersion, Version
from prefect import __version__
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from spo_core.errors import ConfigError, SPOError, first_line, type_and_line

PATIENCE = 20.0  # seconds for an answer
ADVICE = "start one with make ui and export the address it prints, or unset PREFECT_API_URL"


def check_server() -> None:
    """Raise SPOError where PREFECT_API_URL names no Prefect server that this version can talk to.

    An older server of the same major version is told of on standard error.
    """
    here = Version(__version__)
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            client = get_client(sync_client=True, httpx_settings={"timeout": PATIENCE})
            answer = client.request("GET", "/admin/version").json()
        there = Version(answer)
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            why = "it wants credentials: PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
            raise ConfigError(f"the Prefect server at {_address()} answers with status {status}; {why}") from None
        raise ConfigError(f"{_no_api()} (status {status})") from None
    except (ValueError, TypeError, InvalidVersion):  # no JSON, or not a version's
        raise ConfigError(_no_api()) from None
    except Exception as error:  # of httpx, for what is no address of httpcore and the system too
        raise SPOError(f"no Prefect server answers at {_address()} ({type_and_line(error)}); {ADVICE}") from None
    if there.major != here.major:
        raise ConfigError(
            f"the Prefect server at {_address()} is of version {there}, this project's client {here}: major versions "
            f"must be the same; {ADVICE}"
        )
    if there < here:
        print(
            f"WARNING the Prefect server at {_address()} is older ({there}) than the client ({here})", file=sys.stderr
        )


def server_fault(error: BaseException) -> SPOError | None:
    """The refusal for an error that a server which went away, or refused, caused in the midst of a flow; None for any
    other."""
    for cause in _causes(error):
        request = getattr(cause, "_request", None)
        theirs = request is not None and str(request.url).startswith(str(PREFECT_API_URL.value()).rstrip("/"))
        if isinstance(cause, httpx.HTTPError) and theirs:
            return SPOError(
                f"the Prefect server at {_address()} does not do its work any more ({first_line(cause)}); see that it "
                "runs, and start the same command again: it goes on from what is finished"
            )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _address() -> str:
    """PREFECT_API_URL without a user's name and password."""
    scheme, separator, rest = str(PREFECT_API_URL.value()).rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _no_api() -> str:
    return f"what answers at {_address()} is no Prefect API; the address of one ends in /api"
