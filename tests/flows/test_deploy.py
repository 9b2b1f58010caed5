"""``make deploy`` against a real server: everything is there once, however often it is called."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.flows.conftest import run_module

pytestmark = pytest.mark.slow


def ask(environment: dict, path: str, body: dict | None = None) -> list | dict:
    """What the server answers; one whose database is locked is asked again, as Prefect's own client does."""
    request = urllib.request.Request(
        f"{environment['PREFECT_API_URL']}/{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for delay in (1, 2, 4, 8):
        try:
            with direct.open(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        time.sleep(delay)
    raise AssertionError(f"{path}: the server was busy all along")


def make_block(environment: dict, url: str) -> None:
    """The notification block that automations.yaml names: a webhook."""
    code = (
        "import sys; from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook\n"
        "json_data = {'subject': '{{subject}}', 'body': '{{body}}'}\n"
        "Webhook(name='test', url=sys.argv[1], json_data=json_data).save('spo-notify', overwrite=True)"
    )
    subprocess.run([sys.executable, "-c", code, url], env=environment, check=True)


def there(environment: dict) -> dict[str, list]:
    """What the server has, without identifiers of runs and times."""
    listed = {
        kind: ask(environment, f"{kind}/filter", {})
        for kind in ("work_pools", "v2/concurrency_limits", "automations", "deployments")
    }
    schedules = [
        (d["name"], s["slug"], s["schedule"]["cron"], s["schedule"]["timezone"])
        for d in listed["deployments"]
        for s in d["schedules"]
    ]
    named = {kind: sorted((row["id"], row["name"]) for row in rows) for kind, rows in listed.items()}
    return named | {"schedules": schedules}


def names(found: dict[str, list], kind: str) -> set[str]:
    return {name for _, name in found[kind]}


def test_everything_is_there_once(new_project, environment):
    project = new_project()
    first = run_module(project, environment, "flows.deploy")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "automation spo-evaluation-fell: left out; create a notification block named spo-notify" in first.stdout
    found = there(environment)
    assert names(found, "deployments") == {"evaluate", "nightly"} and names(found, "automations") == set()
    assert {"gpu", "dvc"} <= names(found, "v2/concurrency_limits") and "spo" in names(found, "work_pools")
    assert found["schedules"] == [("nightly", "nightly", "0 3 * * *", "Etc/UTC")]
    (deployment,) = (d for d in ask(environment, "deployments/filter", {}) if d["name"] == "nightly")
    assert deployment["job_variables"]["working_dir"] == str(project)
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"

    make_block(environment, "http://127.0.0.1:9/")
    for _ in range(2):
        again = run_module(project, environment, "flows.deploy")
        assert again.returncode == 0, again.stdout + again.stderr
        after = there(environment)
        assert {k: v for k, v in after.items() if k != "automations"} == {
            k: v for k, v in found.items() if k != "automations"
        }
        assert sorted(name for _, name in after["automations"]) == ["spo-evaluation-fell", "spo-nightly-failed"]
    status = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True, check=True)
    assert status.stdout == ""


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (None, "PREFECT_API_URL is not set; start a server"),
        ("http://127.0.0.1:9/api", "no Prefect server answers at http://127.0.0.1:9/api"),
    ],
)
def test_refused_without_a_server(new_project, environment, url, says):
    variables = {k: v for k, v in environment.items() if k != "PREFECT_API_URL"} | (
        {"PREFECT_API_URL": url} if url else {}
    )
    result = run_module(new_project(), variables, "flows.deploy")
    assert result.returncode == 2 and result.stderr.startswith(f"error: {says}"), result.stderr
    assert result.stderr.count("\n") == 1
