"""Rooms depend downward only; orchestration and versioning stay out of the core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", modules("spo_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_no_orchestrator(path):
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & {"prefect", "flows", "tasks"}
    assert "dvc" not in tops


def test_only_the_versioning_task_calls_dvc():
    users = {
        p.relative_to(ROOT).as_posix()
        for room in ("flows", "tasks", "spo_core")
        for p in modules(room)
        if "spo_core.system.dvc" in imports(p)
    }
    assert users == {"tasks/versioning.py"}


def test_tasks_know_no_flow():
    for path in modules("tasks"):
        assert not any(name.split(".")[0] == "flows" for name in imports(path)), path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("spo_core.config", {"torch", "transformers", "pyarrow"}),
        ("spo_core.tree", {"torch", "spo_core.credit", "spo_core.rollout", "spo_core.learn"}),
        ("spo_core.credit", {"torch", "spo_core.rollout", "spo_core.learn"}),
        ("spo_core.problems", {"torch", "transformers"}),
        ("spo_core.verify", {"torch", "transformers"}),
    ],
)
def test_light_rooms_load_nothing_heavy(module, absent):
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not absent & set(loaded.splitlines())


def test_our_packages_are_the_ones_that_are_imported():
    """Other distributions have a top-level ``tasks`` too."""
    import flows
    import spo_core
    import tasks

    for package in (flows, tasks, spo_core):
        assert Path(package.__file__).parent.parent == ROOT
