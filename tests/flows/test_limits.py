"""The named limit by which training and evaluations take turns, on a real server."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import limits
from tasks.limits import LimitBusy, concurrency_slot, give_way
from tests.flows.test_deploy import ask

pytestmark = pytest.mark.slow


@pytest.fixture
def server(environment) -> Iterator[dict]:
    with temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}):
        yield environment


@pytest.fixture
def limit(server, request) -> str:
    """A limit of one slot."""
    name = request.node.name
    ask(server, "v2/concurrency_limits/", {"name": name, "limit": 1})
    return name


def taken(server: dict, name: str) -> int:
    return ask(server, f"v2/concurrency_limits/{name}")["active_slots"]


def test_a_slot_is_held_and_given_back(server, limit):
    with concurrency_slot(limit):
        assert taken(server, limit) == 1
    assert taken(server, limit) == 0
    with pytest.raises(ZeroDivisionError), concurrency_slot(limit):
        raise ZeroDivisionError
    assert taken(server, limit) == 0


def test_who_comes_second_waits_and_says_so(limit, caplog):
    order = []

    def second() -> None:
        with concurrency_slot(limit):
            order.append("second")

    with concurrency_slot(limit):
        thread = threading.Thread(target=contextvars.copy_context().run, args=(second,))
        thread.start()
        time.sleep(3)
        order.append("first")
    thread.join(timeout=90)
    assert order == ["first", "second"]
    assert f"waiting for a slot of Prefect's concurrency limit {limit}: 1 of 1 are taken" in caplog.text


def test_after_the_timeout_it_gives_up(limit):
    with (
        concurrency_slot(limit),
        pytest.raises(LimitBusy, match="no slot became free in 1 s"),
        concurrency_slot(limit, 1.0),
    ):
        pytest.fail("it was taken")


def test_a_timeout_of_the_block_itself_is_not_taken_for_a_busy_limit(server, limit):
    with pytest.raises(TimeoutError, match="mine"), concurrency_slot(limit, 5.0):
        raise TimeoutError("mine")
    assert taken(server, limit) == 0


@pytest.mark.parametrize("name", [None, "no-such-limit"])
def test_without_the_limit_nothing_is_held_or_said(server, name, caplog):
    before = ask(server, "v2/concurrency_limits/filter", {})
    with concurrency_slot(name), concurrency_slot(name):
        pass
    give_way(name)
    said = [record for record in caplog.records if not record.name.startswith("prefect")]  # its threads outlive a test
    assert said == [] and ask(server, "v2/concurrency_limits/filter", {}) == before


def test_without_a_named_server_nothing_is_held(environment, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}), concurrency_slot("gpu"):
        pass


def test_a_server_that_went_away_does_not_fail_the_block(server, limit, caplog):
    with concurrency_slot(limit):
        lost = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"})
        lost.__enter__()
    lost.__exit__(None, None, None)
    assert "was not given back" in caplog.text


def test_one_who_takes_it_again_gives_way_to_others(server, limit, monkeypatch):
    """Where other flows run, for as long as they may need to ask again, or until one of them has it."""
    monkeypatch.setattr(limits, "GIVE_WAY", 3)
    for running, least, most in ((False, 0, 2), (True, 3, 8)):
        monkeypatch.setattr(limits, "_others_run", lambda running=running: running)
        started = time.monotonic()
        give_way(limit)
        assert least <= time.monotonic() - started < most
    monkeypatch.setattr(limits, "GIVE_WAY", 60)
    with concurrency_slot(limit):
        give_way(limit)
