"""``make deploy`` against a real server: everything is there once, however often it is called."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import run_module

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(own_server) -> dict[str, str]:
    return own_server


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


def deploy(project: Path, environment: dict) -> str:
    result = run_module(project, environment, "flows.deploy")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_everything_is_there_once(new_project, environment):
    project = new_project()
    described = yaml.safe_load((project / "prefect.yaml").read_text())
    said = deploy(project, environment)
    assert "automation spo-evaluation-fell: left out; create a notification block named spo-notify" in said
    assert "work pool spo-kubernetes: created, kubernetes" in said and "no longer" not in said
    found = there(environment)
    assert names(found, "deployments") == {d["name"] for d in described["deployments"]}
    assert len(found["deployments"]) == len(described["deployments"])
    assert names(found, "automations") == {"spo-dead-runs"}  # it tells nobody, so it needs no block
    assert {"gpu", "dvc"} <= names(found, "v2/concurrency_limits")
    assert set(described["definitions"]["pools"]) <= names(found, "work_pools")
    assert found["schedules"] == [("nightly", "nightly", "0 3 * * *", "Etc/UTC")]
    rows = {(d["entrypoint"], d["name"]): d for d in ask(environment, "deployments/filter", {})}
    nightly = rows["flows.nightly.nightly", "nightly"]
    assert nightly["job_variables"]["working_dir"] == str(project)
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    train = rows["flows.train.train", "rho1b-spo-tree"]
    assert train["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert (train["work_pool_name"], train["parameters"]) == ("spo-gpu", {"preset": "rho1b-spo-tree-666"})
    pod = rows["flows.experiment.experiment", "kubernetes"]
    assert next(iter(pod["pull_steps"][0].values()))["directory"] == "/spo/project"

    make_block(environment, "http://127.0.0.1:9/")
    said = deploy(project, environment)
    assert "work pool spo-cpu: there, process" in said and "work pool spo-kubernetes: there, kubernetes" in said
    after = there(environment)
    assert {k: v for k, v in after.items() if k != "automations"} == {
        k: v for k, v in found.items() if k != "automations"
    }
    assert names(after, "automations") == {"spo-dead-runs", "spo-evaluation-fell", "spo-nightly-failed"}
    status = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True, check=True)
    assert status.stdout == ""

    # what changed is brought up to date; what the files no longer have is told, and stays
    template = project / "kubernetes" / "gpu-job.json"
    template.write_text(template.read_text().replace('"16Gi"', '"32Gi"'))
    fewer = [d for d in described["deployments"] if d["name"] != "rho1b-spo-chain"]
    (project / "prefect.yaml").write_text(yaml.safe_dump(described | {"deployments": fewer}))
    ask(environment, "work_pools/", {"name": "spo", "type": "process"})
    said = deploy(project, environment)
    assert "work pool spo-kubernetes: brought up to date" in said and "work pool spo-cpu: there" in said
    told = [line for line in said.splitlines() if "no longer" in line]
    assert len(told) == 2
    assert told[0].startswith("work pool spo: ") and told[0].endswith("prefect work-pool delete spo")
    assert told[1].startswith("deployment train/rho1b-spo-chain: ")
    assert there(environment)["deployments"] == found["deployments"]
    assert there(environment)["automations"] == after["automations"]
    (pool,) = (p for p in ask(environment, "work_pools/filter", {}) if p["name"] == "spo-kubernetes")
    assert pool["base_job_template"] == json.loads(template.read_text())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        pytest.param(None, "PREFECT_API_URL is not set; start a server", marks=pytest.mark.exhaustive),
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
