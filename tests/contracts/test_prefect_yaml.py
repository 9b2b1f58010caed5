"""prefect.yaml, automations.yaml, prefect.toml and the Kubernetes template against the code and one another."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import json
import tomllib
import uuid
from typing import Any

import kubernetes_asyncio.client as kubernetes
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from flows.deploy import read_automation, read_pools
from spo_core.config import load_params
from spo_core.errors import ConfigError
from tests.conftest import ROOT

PREFECT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {f"{d['entrypoint'].split('.')[1]}/{d['name']}": d for d in PREFECT["deployments"]}
AUTOMATIONS = {a["name"]: a for a in yaml.safe_load((ROOT / "automations.yaml").read_text())["automations"]}
POOLS = {pool.name: pool for pool in read_pools(ROOT)}
FREE = ("name", "parallelism", "completions")  # of pods: what Prefect puts there though Kubernetes knows it not


def entry(deployment: dict) -> Any:
    module, name = deployment["entrypoint"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployments_start_flows_with_what_they_take(name):
    deployment = DEPLOYMENTS[name]
    flow, given = entry(deployment), deployment.get("parameters", {})
    assert flow.name == name.split("/")[0]
    taken = set(inspect.signature(flow.fn).parameters)
    assert {"overrides", "name"} | set(given) <= taken and taken & {"preset", "presets"}
    flow.validate_parameters({k: p.default for k, p in inspect.signature(flow.fn).parameters.items()} | given)
    load_params(ROOT, given.get("preset"))
    assert deployment["description"] and "spo" in deployment["tags"]
    assert deployment["work_pool"]["name"] in POOLS
    limited = deployment.get("concurrency_limit", {}).get("limit") == 1
    assert limited == (deployment["work_pool"]["name"] != "spo-kubernetes")


def test_there_is_a_deployment_for_every_flow_and_every_family_of_published_presets():
    assert set(DEPLOYMENTS) >= {f"{n}/{n}" for n in ("prepare", "warmup", "train", "evaluate", "experiment", "nightly")}
    trained = [
        d["parameters"]["preset"] for n, d in DEPLOYMENTS.items() if n.startswith("train/") and "parameters" in d
    ]
    for preset in (ROOT / "params" / "presets").glob("*1*b-*.yaml"):
        model, _, algorithm = preset.stem.partition("-")
        family = "-".join(algorithm.split("-")[:2]) if algorithm.startswith("spo-") else "grpo"  # a baseline
        assert any(known.startswith(f"{model}-{family}") for known in trained), preset.stem


def test_only_nights_are_scheduled_and_in_a_named_timezone():
    scheduled = {name: d["schedules"] for name, d in DEPLOYMENTS.items() if "schedules" in d}
    assert set(scheduled) == {"nightly/nightly"} and all("timezone" in s for s in scheduled["nightly/nightly"])


def test_a_run_is_dead_after_three_heartbeats_and_not_before():
    frequency = tomllib.loads((ROOT / "prefect.toml").read_text())["flows"]["heartbeat_frequency"]
    assert AUTOMATIONS["spo-dead-runs"]["trigger"]["within"] >= 3 * frequency


def test_no_run_that_ended_is_taken_for_a_dead_one():
    """A state's name is that of its event; flows end in some of their own."""
    expected = {e.rsplit(".", 1)[1] for e in AUTOMATIONS["spo-dead-runs"]["trigger"]["expect"]}
    watched = AUTOMATIONS["spo-dead-runs"]["trigger"]["match_related"]["prefect.resource.name"]
    named, flows = {"Completed", "Failed", "Cancelled", "Crashed"}, set()
    for path in (ROOT / "flows").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id == "ended":
                    named.add(ast.literal_eval(node.args[0]))
                if node.func.id == "flow":
                    flows |= {k.value.value for k in node.keywords if k.arg == "name"}
    assert named <= expected and set(watched) == flows


def test_automations_are_prefects():
    for content in AUTOMATIONS.values():
        actions = [dict(action) for action in content["actions"]]
        for action in actions:
            if action.pop("block", None):
                action["block_document_id"] = str(uuid.uuid4())
        content = content | {"actions": actions}
        assert read_automation(content).name == content["name"]
        trigger = {k.replace("match_related", "match_releted"): v for k, v in content["trigger"].items()}
        if trigger != content["trigger"]:
            with pytest.raises(ConfigError, match=r"unknown key trigger\.match_releted"):
                read_automation(content | {"trigger": trigger})


def rendered(variables: dict) -> dict:
    """The job that a worker of the pool would submit for a run of the deployment."""
    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(POOLS["spo-kubernetes"].template, variables)
    )
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="a-run"))
    return configuration.job_manifest


@pytest.fixture(scope="module")
def job() -> dict:
    with temporary_settings({PREFECT_API_URL: "http://spo.invalid/api"}):
        return rendered({"gpu_count": 4, "shared_memory": "64Gi", "env": {"WANDB_MODE": "offline"}})


def test_a_pod_has_gpus_shared_memory_volume_and_secret(job):
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["ttlSecondsAfterFinished"] == 86400
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"] == {side: {"nvidia.com/gpu": 4} for side in ("limits", "requests")}
    volumes = {v["name"]: {k: x for k, x in v.items() if k != "name"} for v in pod["volumes"]}
    mounted = {m["mountPath"]: volumes[m["name"]] for m in container["volumeMounts"]}
    assert mounted == {
        "/dev/shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
        "/spo": {"persistentVolumeClaim": {"claimName": "spo"}},
    }
    assert container["envFrom"] == [{"secretRef": {"name": "spo-secrets", "optional": True}}]
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_a_pod_works_in_the_project_that_lies_on_the_volume(job):
    """prefect.toml is read in the current folder alone, and hard links need one file system."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    environment = {e["name"]: e["value"] for e in container["env"]}
    (step,) = DEPLOYMENTS["experiment/kubernetes"]["pull"]
    (folder,) = (arguments["directory"] for arguments in step.values())
    assert folder == container["workingDir"]
    assert environment["SPO_WORK_DIR"].startswith("/spo/") and environment["WANDB_MODE"] == "offline"
    # evicted: started again elsewhere, and by Prefect alone
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"


@pytest.mark.parametrize("which", ["template", "setup"])
def test_kubernetes_knows_every_field(job, which):
    """What its client reads and writes again is what was given: a field that it does not know would be lost."""
    if which == "template":
        documents = [(json.loads(json.dumps(job)), "V1Job")]
        for field in FREE:
            documents[0][0]["spec"]["template"]["spec"].pop(field, None)
    else:
        claim, setup = yaml.safe_load_all((ROOT / "kubernetes" / "setup.yaml").read_text())
        documents = [(claim, "V1PersistentVolumeClaim"), (setup, "V1Job")]
        mounted = job["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
        assert claim["metadata"]["name"] == mounted
        image = setup["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image == job["spec"]["template"]["spec"]["containers"][0]["image"]

    async def again(document: dict, kind: str) -> dict:
        async with kubernetes.ApiClient() as client:
            return client.sanitize_for_serialization(client._ApiClient__deserialize(document, kind))

    for document, kind in documents:
        assert without_empty(asyncio.run(again(document, kind))) == without_empty(document)


def without_empty(content: Any) -> Any:
    """A quantity may be a number, which the client writes as text."""
    if isinstance(content, dict):
        return {k: without_empty(v) for k, v in content.items() if v not in ({}, [], None)}
    return [without_empty(v) for v in content] if isinstance(content, list) else str(content)


def test_the_template_is_prefects_own_with_ours_added():
    """So that a newer prefect-kubernetes with another template is noticed."""

    def changes(own: Any, theirs: Any, at: str = "") -> list[str]:
        if isinstance(theirs, dict) and isinstance(own, dict):
            return [x for k, v in theirs.items() for x in changes(own.get(k), v, f"{at}.{k}")]
        if isinstance(theirs, list) and isinstance(own, list) and len(own) == len(theirs):
            return [x for i, v in enumerate(theirs) for x in changes(own[i], v, f"{at}[{i}]")]
        return [] if own == theirs else [at]

    changed = changes(POOLS["spo-kubernetes"].template, KubernetesWorker.get_default_base_job_template())
    assert changed == [
        ".variables.description",
        ".variables.properties.image.default",
        ".variables.properties.image.description",
        ".variables.properties.finished_job_ttl.default",
    ]
