"""The automation for dead runs, on a real server: who sends no heartbeat is Crashed, who sends one is not."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from spo_core.system.processes import child
from tests.conftest import ROOT
from tests.flows.test_deploy import ask

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
WITHIN = 45  # seconds instead of nine minutes; Prefect allows no heartbeats more often than every 30
LIMIT = 300  # seconds, on a busy machine
CREATE = f"""
from pathlib import Path
from prefect.client.orchestration import get_client
from flows.deploy import create_automation, read_yaml
(content,) = [a for a in read_yaml(Path("automations.yaml"), "automations") if a["name"] == "spo-dead-runs"]
content["trigger"]["within"] = {WITHIN}
with get_client(sync_client=True) as client:
    create_automation(client, content)
"""
RUN = """
import time
from prefect import flow
@flow(name="train")
def train():
    time.sleep(3600)
train()
"""


@pytest.fixture(scope="module")
def environment(own_server) -> dict[str, str]:
    return own_server


@pytest.fixture
def runs(environment, tmp_path) -> Iterator[list[tuple[subprocess.Popen, str]]]:
    """Two flow runs under way, each with its process and its id; neither has a worker that would tell of its end."""
    subprocess.run([sys.executable, "-c", CREATE], cwd=ROOT, env=environment, check=True)
    beating = environment | {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    with ExitStack() as stack:
        found: list[tuple[subprocess.Popen, str]] = []
        for number in range(2):
            log = tmp_path / f"{number}.log"
            process = stack.enter_context(child([sys.executable, "-c", RUN], cwd=ROOT, env=beating, log=log))
            known = {identifier for _, identifier in found}
            (new,) = wait_until(lambda known=known: heartbeats(environment).keys() - known, log)
            found.append((process, new))
        yield found


def heartbeats(environment: dict) -> dict[str, int]:
    """How many the server has had, by flow run."""
    span = {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}
    asked = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "occurred": span}, "limit": 50}
    counted: dict[str, int] = {}
    for event in ask(environment, "events/filter", asked)["events"]:
        identifier = event["resource"]["prefect.resource.id"].removeprefix("prefect.flow-run.")
        counted[identifier] = counted.get(identifier, 0) + 1
    return counted


def wait_until(found, log: Path):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(1)
    raise AssertionError(log.read_text(errors="replace")[-6000:])


def state(environment: dict, identifier: str) -> dict:
    return ask(environment, f"flow_runs/{identifier}")["state"]


def test_a_run_that_was_killed_is_crashed_and_one_that_lives_is_not(environment, runs, tmp_path):
    (dead, dead_id), (alive, alive_id) = runs
    dead.kill()
    dead.wait()
    assert state(environment, dead_id)["type"] == "RUNNING"  # nobody told the server
    wait_until(lambda: state(environment, dead_id)["type"] == "CRASHED", tmp_path / "0.log")
    assert "start it again" in state(environment, dead_id)["message"]
    wait_until(lambda: heartbeats(environment)[alive_id] >= 3, tmp_path / "1.log")  # a minute: longer than WITHIN
    assert alive.poll() is None and state(environment, alive_id)["type"] == "RUNNING"
