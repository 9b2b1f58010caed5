"""Servers that will not do: whatever stands at PREFECT_API_URL, one line says what is wrong and what to do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect import __version__
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.analyse import with_preset
from flows.cli import with_options
from flows.server_check import check_server, server_fault
from spo_core.errors import SPOError
from spo_core.system import startup
from tests.conftest import ROOT


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """URL of a server that gives this answer to every request; status 0: it hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not status:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://name:secret@127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        server.server_close()


def refusal(url: str) -> str | None:
    with temporary_settings({PREFECT_API_URL: url}):
        try:
            check_server()
        except SPOError as error:
            assert len(str(error).splitlines()) == 1 and "secret" not in str(error)
            return str(error)
    return None


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b'"2.20.1"', r"is of version 2.20.1, this project's client"),
        (401, b"{}", "PREFECT_API_AUTH_STRING or PREFECT_API_KEY"),
        (404, b"{}", "no Prefect API; the address of one ends in /api (status 404)"),
        (200, b"<html>", "no Prefect API; the address of one ends in /api"),
        (0, b"", "no Prefect server answers at http://127.0.0.1:"),
    ],
)
def test_what_is_no_server_for_this_client_is_refused_in_a_line(status, body, says):
    with answering(status, body) as url:
        assert says in (refusal(url) or "")


def test_a_server_of_this_version_will_do_and_an_older_one_is_told_of(capsys):
    with answering(200, f'"{__version__}"'.encode()) as url:
        assert refusal(url) is None
    assert capsys.readouterr().err == ""
    with answering(200, b'"3.0.0"') as url:
        assert refusal(url) is None
    assert "is older (3.0.0)" in capsys.readouterr().err


@given(st.integers(200, 599).filter(lambda status: status not in (204, 304)), st.binary(max_size=20))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_answer_that_is_no_version_is_refused_in_a_line(status, body):
    with answering(status, body) as url:
        assert refusal(url) is not None


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/api", "banana", "ftp://x/api", "http://127.0.0.1:99999/api", "http://127.0.0.1:x/api", "/"],
)
def test_an_address_where_nothing_answers_is_refused_with_what_to_do(url):
    assert "unset PREFECT_API_URL" in (refusal(url) or "")


def test_an_error_of_the_server_within_others_is_a_line_and_one_of_another_host_is_none():
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        for url, ours in (("http://127.0.0.1:9/api/flow_runs/", True), ("http://127.0.0.1:10/api/x", False)):
            try:
                try:
                    httpx.get(url)
                except httpx.ConnectError as error:
                    raise RuntimeError("Failed to reach API") from error
            except RuntimeError as error:
                assert (server_fault(error) is not None) == ours
    assert server_fault(ValueError("x")) is None


@pytest.mark.parametrize("seconds", [0.05, 0.6])
def test_an_interrupt_while_modules_are_imported_ends_with_a_line(seconds):
    """Wherever imports stand: the interrupt comes so long after the first line of a command."""
    code = f"""import os, signal, threading
from spo_core.system.startup import begin_quietly
begin_quietly()
threading.Timer({seconds}, os.kill, (os.getpid(), signal.SIGINT)).start()
import time, numpy, yaml
while True: time.sleep(0.01)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in a background job
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_interrupt_that_is_ignored_stays_so():
    """As of a command that a script starts with ``&``."""
    before = signal.getsignal(signal.SIGINT), sys.excepthook
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for step in (startup.begin_quietly, startup.begin):
            step()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
        assert sys.excepthook is sys.__excepthook__
    finally:
        signal.signal(signal.SIGINT, before[0])
        sys.excepthook = before[1]


def test_a_command_that_has_begun_gets_its_interrupts_back():
    before = signal.getsignal(signal.SIGINT), sys.excepthook
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        startup.begin_quietly()
        startup.begin()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    finally:
        signal.signal(signal.SIGINT, before[0])
        sys.excepthook = before[1]


def test_wrong_settings_of_prefect_are_a_line():
    done = subprocess.run(
        [sys.executable, "-m", "flows.prepare"],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": "http://[::1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: Prefect's settings")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--preset", "grpo", "--set", "policy.seed=1"], " --preset grpo --set policy.seed=1"),
        (["--set=run.name=a b", "--name", "n", "--dry-run"], " '--set=run.name=a b' --name n"),
        (["--dry-run"], " (or dvc repro prepare)"),
    ],
)
def test_an_advised_command_is_about_the_run_that_was_asked_for(monkeypatch, given, kept):
    monkeypatch.setattr(sys, "argv", ["flows.warmup", *given])
    said = with_options("x: no such dataset; prepare it with python -m flows.prepare (or dvc repro prepare)")
    assert said == f"x: no such dataset; prepare it with python -m flows.prepare{kept}"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], " (or dvc repro prepare)"),
        (["default", "grpo"], " (or dvc repro prepare)"),
        (["grpo", "--name", "report", "--set", "run.seed=1", "--tokens=9"], " --preset grpo"),
        (
            ["--set=run.seed=1", "-q", "--model", "best", "--model", "final", "rloo", "default"],
            " --preset rloo",
        ),
        (["--grid", "{grid}"], " --preset rloo"),
        (["--grid={grid}", "grpo"], " --preset grpo"),
        (["gpro", "--name", "report"], " (or dvc repro prepare)"),
    ],
)
def test_what_an_analysis_advises_is_about_the_first_candidates_run(monkeypatch, tmp_path, given, kept):
    """There ``--name`` names a report, overrides are the candidates' own, and presets have no option."""
    grid = tmp_path / "grid.yaml"
    grid.write_text("first: {preset: rloo}\nsecond: {preset: vineppo}\n")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["flows.analyse", *(word.format(grid=grid) for word in given)])
    said = with_preset("x: no such dataset; prepare it with python -m flows.prepare (or dvc repro prepare)")
    assert said == f"x: no such dataset; prepare it with python -m flows.prepare{kept}"
