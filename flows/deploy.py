"""``make deploy``: creates work pools, limits, automations and deployments on the server that PREFECT_API_URL names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from flows import cli
from flows.server_check import check_server
from spo_core.config import load_params
from spo_core.config.document import read_document
from spo_core.errors import ConfigError, SPOError
from tasks.versioning import DVC_LIMIT

OURS = "spo"  # tag of every deployment; names of pools and automations begin with it


@dataclass(frozen=True, slots=True)
class Pool:
    """A work pool as prefect.yaml describes it."""

    name: str
    type: str
    description: str
    template: dict[str, Any]
    """Base job template; empty for the default of the worker's type."""


def command() -> None:
    """Create on Prefect's server what prefect.yaml and automations.yaml say, or bring it up to date."""
    root = Path.cwd()
    if PREFECT_API_URL.value() is None:
        raise ConfigError("PREFECT_API_URL is not set; start a server (make ui) and export what it prints for it")
    check_server()
    pools = read_pools(root)
    deployments = read_yaml(root / "prefect.yaml", "deployments")
    automations = read_yaml(root / "automations.yaml", "automations")
    with get_client(sync_client=True) as client:
        for pool in pools:
            create_pool(client, pool)
        for limit in (load_params(root).run.gpu_limit, DVC_LIMIT):
            create_limit(client, limit)
        for automation in automations:
            create_automation(client, automation)
        deploy_all(root)
        for deployment in deployments:
            print(f"deployment {deployment['entrypoint'].split('.')[-1]}/{deployment['name']}: as prefect.yaml has it")
        tell_leftovers(client, pools, deployments, automations)


def read_yaml(path: Path, key: str) -> Any:
    """The content of a YAML file under ``key``. Raises ConfigError where the file or the key is missing or damaged."""
    content = read_document(path).content
    if not isinstance(content, dict) or key not in content:
        raise ConfigError(f"{path}: has no key {key}")
    return content[key]


def read_pools(root: Path) -> list[Pool]:
    """The work pools of prefect.yaml. Raises ConfigError where one of them or its template cannot be read."""
    pools = []
    for name, pool in read_yaml(root / "prefect.yaml", "definitions")["pools"].items():
        if not {"type", "description"} <= pool.keys():
            raise ConfigError(f"prefect.yaml: work pool {name} needs a type and a description")
        template = {}
        if "template" in pool:
            path = root / pool["template"]
            try:
                template = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{path}: the template of work pool {name} cannot be read: {error}") from None
        pools.append(Pool(name, pool["type"], pool["description"], template))
    return pools


def create_pool(client: SyncPrefectClient, pool: Pool) -> None:
    """Create a work pool, or update its description and template. Raises ConfigError where its type is another."""
    try:
        found = client.read_work_pool(pool.name)
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(
                name=pool.name, type=pool.type, description=pool.description, base_job_template=pool.template
            )
        )
        print(f"work pool {pool.name}: created, {pool.type}")
        return
    if found.type != pool.type:
        raise ConfigError(
            f"work pool {pool.name} is of type {found.type} on the server, {pool.type} in prefect.yaml; "
            f"prefect work-pool delete {pool.name}, then deploy again"
        )
    template = pool.template or found.base_job_template
    if (found.description, found.base_job_template) == (pool.description, template):
        print(f"work pool {pool.name}: there, {pool.type}")
        return
    client.update_work_pool(pool.name, WorkPoolUpdate(description=pool.description, base_job_template=template))
    print(f"work pool {pool.name}: brought up to date")


def create_limit(client: SyncPrefectClient, name: str | None) -> None:
    """Create a global concurrency limit of one slot; one that exists keeps its slots. ``name`` None: do nothing."""
    if name is None:
        return
    try:
        found = client.read_global_concurrency_limit_by_name(name)
        print(f"limit {name}: there, {found.limit} at a time")
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        print(f"limit {name}: created, 1 at a time")


def create_automation(client: SyncPrefectClient, content: dict[str, Any]) -> None:
    """Create or update an automation by its name; does nothing where a notification block that it names is missing."""
    actions, name = [], content["name"]
    for action in content["actions"]:
        action = dict(action)
        if "block" in action:
            block = action.pop("block")
            identifier = block_id(client, block)
            if identifier is None:
                print(f"automation {name}: left out; create a notification block named {block} and deploy again")
                return
            action["block_document_id"] = identifier
        actions.append(action)
    automation = read_automation({**content, "actions": actions})
    known = client.read_automations_by_name(name)
    if not known:
        client.create_automation(automation)
        print(f"automation {name}: created")
        return
    there = AutomationCore.model_validate(known[0].model_dump(exclude={"id"}))
    if "enabled" not in content:
        automation = automation.model_copy(update={"enabled": there.enabled})
    if there == automation:  # an update would make the server forget which runs it watches
        print(f"automation {name}: there")
        return
    client.update_automation(known[0].id, automation)
    print(f"automation {name}: brought up to date")


def read_automation(content: dict[str, Any]) -> AutomationCore:
    """Validate an automation. Raises ConfigError where Prefect does, and for keys that Prefect ignores: a trigger with
    a misspelt condition would hold for everything."""
    place = f"automations.yaml, {content.get('name')}"
    try:
        automation = AutomationCore.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if (unknown := _unheeded(content, automation.model_dump())) is not None:
        raise ConfigError(f"{place}: unknown key {unknown}; remove it or correct its name")
    return automation


def _unheeded(given: Any, read: Any) -> str | None:
    """The first key of ``given``, nested keys by their path, that ``read`` does not have."""
    if isinstance(given, list) and isinstance(read, list):
        return next((key for pair in zip(given, read, strict=False) if (key := _unheeded(*pair)) is not None), None)
    if not (isinstance(given, dict) and isinstance(read, dict)):
        return None
    for key, value in given.items():
        if key not in read:
            return str(key)
        if (inner := _unheeded(value, read[key])) is not None:
            return f"{key}.{inner}"
    return None


def block_id(client: SyncPrefectClient, name: str) -> str | None:
    """The id of the notification block of that name, whatever the block's type; None where there is none."""
    for document in client.read_block_documents(include_secrets=False):
        notifies = document.block_schema is not None and "notify" in document.block_schema.capabilities
        if document.name == name and notifies:
            return str(document.id)
    return None


def deploy_all(root: Path) -> None:
    """Run ``prefect deploy --all`` in this folder. Raises SPOError with its last line where it fails."""
    result = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=root,
        env=os.environ | {"PWD": str(root), "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
        raise SPOError(f"prefect deploy failed: {lines[-1] if lines else 'no output'}")


def tell_leftovers(
    client: SyncPrefectClient, pools: list[Pool], deployments: list[dict[str, Any]], automations: list[dict[str, Any]]
) -> None:
    """Print what an earlier ``make deploy`` created and the files no longer have; nothing is deleted."""
    wanted = {pool.name for pool in pools}
    for pool in client.read_work_pools():
        if pool.name.split("-")[0] == OURS and pool.name not in wanted:
            leftover("work pool", pool.name, f"work-pool delete {pool.name}")
    wanted = {automation["name"] for automation in automations}
    for automation in client.read_automations():
        if automation.name.startswith(f"{OURS}-") and automation.name not in wanted:
            leftover("automation", automation.name, f"automation delete {automation.name}")
    kept = {(deployment["entrypoint"], deployment["name"]) for deployment in deployments}
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[OURS]))
    for deployment in client.read_deployments(deployment_filter=tagged, limit=200):
        if (deployment.entrypoint, deployment.name) not in kept:
            name = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
            leftover("deployment", name, f"deployment delete {name}")


def leftover(kind: str, name: str, how: str) -> None:
    print(f"{kind} {name}: no longer in the project's files; if nothing else uses it, prefect {how}")


if __name__ == "__main__":
    cli.main(command)
