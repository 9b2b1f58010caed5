"""``make deploy``: work pools, limits, automations and deployments on the server that PREFECT_API_URL names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from pydantic import ValidationError

from flows import cli
from spo_core.config import load_params
from spo_core.errors import ConfigError, SPOError

DVC_LIMIT = "dvc"  # who writes to the DVC repository


def command() -> None:
    """Create on Prefect's server what prefect.yaml and automations.yaml say; what is there is brought up to date."""
    root = Path.cwd()
    check_server()
    with get_client(sync_client=True) as client:
        for pool in work_pools(root):
            create_pool(client, pool)
        for limit in (load_params(root).run.gpu_limit, DVC_LIMIT):
            create_limit(client, limit)
        for automation in read_yaml(root / "automations.yaml", "automations"):
            create_automation(client, automation)
    deploy_all(root)


def check_server() -> None:
    """Raise SPOError where PREFECT_API_URL is not set, or nothing answers there."""
    url = PREFECT_API_URL.value()
    if url is None:
        raise ConfigError("PREFECT_API_URL is not set; start a server (make ui) and export what it prints for it")
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise SPOError(f"no Prefect server answers at {url} ({problem}); start one with make ui, or export another")


def read_yaml(path: Path, key: str) -> list[dict[str, Any]]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))[key]


def work_pools(root: Path) -> list[str]:
    """Names, each once."""
    return list(dict.fromkeys(d["work_pool"]["name"] for d in read_yaml(root / "prefect.yaml", "deployments")))


def create_pool(client: SyncPrefectClient, name: str) -> None:
    """One for processes, unless there is a pool of that name."""
    try:
        client.read_work_pool(name)
        print(f"work pool {name}: there")
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        print(f"work pool {name}: created; make worker runs what is due")


def create_limit(client: SyncPrefectClient, name: str | None) -> None:
    """Of one slot; a limit that is there keeps its number of slots."""
    if name is None:
        return
    try:
        found = client.read_global_concurrency_limit_by_name(name)
        print(f"limit {name}: there, {found.limit} at a time")
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        print(f"limit {name}: created, 1 at a time")


def create_automation(client: SyncPrefectClient, content: dict[str, Any]) -> None:
    """Create or update an automation by its name; left out where a block that it names is not there."""
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
    try:
        automation = AutomationCore.model_validate({**content, "actions": actions})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"automations.yaml, {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    known = client.read_automations_by_name(name)
    if known:
        client.update_automation(known[0].id, automation)
    else:
        client.create_automation(automation)
    print(f"automation {name}: {'brought up to date' if known else 'created'}")


def block_id(client: SyncPrefectClient, name: str) -> str | None:
    """Of the notification block of that name, whatever its type."""
    for document in client.read_block_documents(include_secrets=False):
        notifies = document.block_schema is not None and "notify" in document.block_schema.capabilities
        if document.name == name and notifies:
            return str(document.id)
    return None


def deploy_all(root: Path) -> None:
    """``prefect deploy --all`` with this folder as the deployments' own; raises SPOError with its last words."""
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
    for deployment in read_yaml(root / "prefect.yaml", "deployments"):
        print(f"deployment {deployment['entrypoint'].split('.')[-1]}/{deployment['name']}: as prefect.yaml has it")


if __name__ == "__main__":
    cli.main(command)
