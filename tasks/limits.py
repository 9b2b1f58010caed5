"""Prefect's global concurrency limits, by which flows take turns on the GPU and in the DVC repository."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from spo_core.errors import SPOError

log = logging.getLogger(__name__)
LEASE = 300  # seconds after which the server takes a slot back from a process that died
GIVE_WAY = 45  # seconds: a process that waits for a slot asks again within 40


class LimitBusy(SPOError):
    """A slot that did not become free in time."""


@contextmanager
def concurrency_slot(limit: str | None, timeout: float | None = None) -> Iterator[None]:
    """Hold one slot of a global concurrency limit in this context; waits for ever where ``timeout`` is None.

    Raises LimitBusy after ``timeout`` seconds. Nothing is held where no server is named (PREFECT_API_URL) or it has no
    such limit. A slot that is lost or cannot be given back, because the server went away, is only logged.
    """
    known = _limit(limit)
    if limit is None or known is None:
        yield
        return
    if known.active_slots >= known.limit:
        log.warning("waiting for a slot of Prefect's concurrency limit %s: %d of %d are taken", limit, *_taken(known))
    slot = concurrency(
        limit, timeout_seconds=timeout, lease_duration=LEASE, strict=False, raise_on_lease_renewal_failure=False
    )
    try:
        slot.__enter__()
    except TimeoutError:
        raise LimitBusy(f"Prefect's concurrency limit {limit}: no slot became free in {timeout:.0f} s") from None
    log.info("holding a slot of Prefect's concurrency limit %s", limit)
    try:
        yield
    finally:
        try:
            slot.__exit__(None, None, None)
        except Exception as error:  # whatever the client raises
            log.warning("a slot of %s was not given back (%s); the server takes it after %d s", limit, error, LEASE)


def give_way(limit: str | None) -> None:
    """Wait until another flow has taken the free slot, up to GIVE_WAY seconds, if any flow runs beside this one.

    Called between two holds of one flow, which would otherwise take the slot again before a waiting flow asks.
    """
    until = time.monotonic() + GIVE_WAY
    while (known := _limit(limit)) and known.active_slots < known.limit and _others_run() and time.monotonic() < until:
        time.sleep(1)


def _others_run() -> bool:
    """Whether more than one flow run is under way on this server."""
    running = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))
    with get_client(sync_client=True) as client:
        return len(client.read_flow_runs(flow_run_filter=running, limit=2)) > 1


def _limit(name: str | None) -> GlobalConcurrencyLimitResponse | None:
    """The limit as the server has it; None where it has none, or an inactive one."""
    if name is None or PREFECT_API_URL.value() is None:
        return None
    with get_client(sync_client=True) as client:
        try:
            found = client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return None
    return found if found.active else None


def _taken(known: GlobalConcurrencyLimitResponse) -> tuple[int, int]:
    return known.active_slots, known.limit
