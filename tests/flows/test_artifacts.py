"""Prefect's pages on a run are written beside training, and whatever the server does costs training nothing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import tracking
from tasks.links import artifact_key
from tasks.tracking import Pages
from tests.local_http import JSONHandler, http_server

NOW = "2026-01-01T00:00:00Z"
FLOW_RUN = UUID("11111111-2222-3333-4444-555555555555")


@contextmanager
def prefect_server(how: str) -> Iterator[list[tuple[str, str, dict]]]:
    """Takes artifacts, or fails; gives method, path and content of what it was sent."""
    seen: list[tuple[str, str, dict]] = []

    class Handler(JSONHandler):
        def answer(self) -> None:
            content = json.loads(self.read() or "{}")
            if "artifacts" in self.path:
                seen.append((self.command, self.path, content))
            if how == "hangs":
                time.sleep(60)
            made = {"id": str(uuid4()), "created": NOW, "updated": NOW} | content
            if "csrf" in self.path:  # what Prefect's client recognises as protection that is off, as by default
                made = {"detail": "CSRF protection is disabled."}
            self.say(500 if how == "errors" else 422 if "csrf" in self.path else 201, made)

        do_GET = do_POST = do_PATCH = answer

    with (
        http_server(Handler, gone=how == "refuses") as url,
        temporary_settings({PREFECT_API_URL: f"{url}/api"}),
    ):
        yield seen


def row(iteration: int) -> dict:
    return {"iteration": iteration, "rollout/reward": 0.5, "generated_tokens": 100 * iteration, "timing/rollout": 1.5}


def pages(monkeypatch, iterations: int = 8, rows: tuple = (), **more) -> Pages:
    made = Pages("My run", iterations, rows, **more)
    monkeypatch.setattr(made, "_flow_run", FLOW_RUN)
    return made


def test_two_artifacts_are_made_once_and_then_replaced(monkeypatch):
    monkeypatch.setattr(tracking, "INTERVAL", 0.2)
    with prefect_server("ok") as seen:
        with pages(monkeypatch, rows=(row(1), row(2))) as shown:
            for iteration in range(3, 9):
                shown.show(row(iteration))
                time.sleep(0.1)
        created = [content for method, _, content in seen if method == "POST"]
        assert [one["key"] for one in created] == ["progress-my-run", "iterations-my-run"]
        assert all(one["flow_run_id"] == str(FLOW_RUN) for one in created)
        replaced = [content["data"] for method, _, content in seen if method == "PATCH"]
    assert 2 <= len(replaced) <= 10  # of eight iterations, at an interval
    assert replaced[-2] == 100 and [one["iteration"] for one in json.loads(replaced[-1])] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_both_link_to_the_run_s_page_once_it_is_served_and_no_longer_than_it_is(monkeypatch):
    monkeypatch.setattr(tracking, "INTERVAL", 0.0)
    served = ""
    with prefect_server("ok") as seen, pages(monkeypatch, seen_at=lambda: served) as shown:
        for iteration, served in enumerate(("", ". [Look at it](http://127.0.0.1:8421/run/work/a)", ""), start=1):
            before = len(seen)
            shown.show(row(iteration))
            while len(seen) < before + 2:
                time.sleep(0.01)
            told = [content["description"] for _, _, content in seen[before:]]
            assert told == [f"Iterations of My run{served}", f"Iterations of My run, the last one first{served}"]


@pytest.mark.parametrize("how", ["refuses", "hangs", "errors"])
def test_a_server_that_fails_costs_no_iteration_and_one_warning(monkeypatch, caplog, how):
    monkeypatch.setattr(tracking, "INTERVAL", 0.1)
    monkeypatch.setattr(tracking, "ANSWER_LIMIT", 0.5)
    with prefect_server(how), caplog.at_level(logging.WARNING, tracking.__name__):
        with pages(monkeypatch) as shown:
            began = time.monotonic()
            for iteration in range(1, 9):
                shown.show(row(iteration))
            assert time.monotonic() - began < 0.5
            time.sleep(1.5)
            began = time.monotonic()
        assert time.monotonic() - began < 10
    told = [r for r in caplog.records if r.name == tracking.__name__]
    assert len(told) == 1 and "training goes on" in told[0].getMessage()


def test_an_end_is_not_missed_though_it_comes_as_the_thread_takes_notice_of_an_iteration(monkeypatch):
    with prefect_server("ok"):
        shown = pages(monkeypatch)
        clear = shown._changed.clear

        def ended_just_before() -> None:
            shown._changed.clear = clear
            shown._ended.set()
            shown._changed.set()
            clear()

        monkeypatch.setattr(shown._changed, "clear", ended_just_before)
        shown.__enter__()
        shown.show(row(1))
        shown._thread.join(tracking.ANSWER_LIMIT)
        assert not shown._thread.is_alive()


def test_outside_a_flow_run_nothing_is_written():
    with prefect_server("ok") as seen:
        with Pages("main", 3, ()) as shown:
            shown.show(row(1))
        assert not seen


def test_keys_are_what_prefect_takes():
    assert artifact_key("report", "My run/2.0") == "report-my-run-2-0" and artifact_key("report", "ß") == "report-run"
