"""Rooms depend downward only, as docs/architecture.md has it; orchestration and versioning stay out of the core."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
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


CORE = ROOT / "spo_core"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
# room, what belongs there, what does not, which rooms it imports
TABLE = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([\w -]+) \|$", ARCHITECTURE, re.MULTILINE)
DRAWN = re.findall(r"^ (\d+) +([a-z ]+)$", ARCHITECTURE, re.MULTILINE)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def core_imports() -> dict[str, set[str]]:
    """Modules of the core, and those that each imports anywhere in its file."""
    files = {module_name(path): path for path in modules("spo_core")}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):  # a module of a package, or what stands in the module itself
                inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                named |= {module if module in files else str(node.module) for module in inside.values()}
        found[name] = {module for module in named if module in files and module not in (name, "spo_core")}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def room_imports() -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {room(name): set() for name in core_imports() if name != "spo_core"}
    for name, targets in core_imports().items():
        for target in targets:
            if room(target) != room(name):
                rooms[room(name)].add(room(target))
    return rooms


def test_rooms_import_what_the_table_says():
    real = {name: " ".join(sorted(targets)) or "-" for name, targets in room_imports().items()}
    assert {name: allowed for name, _, _, allowed in TABLE} == real, "mend the import, or the table"


def test_the_drawing_has_every_room_on_its_floor():
    targets = room_imports()
    floors: dict[str, int] = {}
    for name in TopologicalSorter(targets).static_order():  # raises CycleError where rooms import in a circle
        floors[name] = 1 + max((floors[target] for target in targets[name]), default=-1)
    assert {name: int(floor) for floor, names in DRAWN for name in names.split()} == floors
    assert [int(floor) for floor, _ in DRAWN] == sorted(set(floors.values()), reverse=True)
    assert len(floors) <= 20


def test_no_modules_import_in_a_circle():
    assert list(TopologicalSorter(core_imports()).static_order())


def test_every_folder_says_what_belongs_there():
    table = {name: f"{belongs}. Not here: {other}." for name, belongs, other, _ in TABLE}
    folders = [path.parent for path in CORE.rglob("*.py")]
    for folder in sorted(set(folders)):
        file = folder / "__init__.py"
        assert file.is_file(), f"{folder.relative_to(ROOT)} has no __init__.py"
        first = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
        assert re.fullmatch(r"[^.].+\. Not here: .+\.", first), f"{file.relative_to(ROOT)} says not what belongs there"
        if folder.parent == CORE:
            assert first == table[folder.name], "docs/architecture.md says it in the same words"


def test_few_files_are_loose_and_none_is_named_like_the_standard_library():
    loose = {path.name for path in CORE.glob("*.py")} - {"__init__.py"}
    assert len(loose) <= 6
    named = {part for name in core_imports() for part in name.split(".")}
    assert not named & sys.stdlib_module_names


# folder -> modules that may share their name with one of a room, because they are about the same thing
NAMESAKES = {
    "flows": "evaluate nightly prepare provenance report train view warmup",  # when it runs
    "tasks": "analysis cluster nightly provenance warmup",  # its Prefect task
    "spo_core/config": "cluster credit engine evaluate learn policy rollout verify",  # its params
}


def test_no_module_has_a_twin_of_its_name_in_another_room():
    """Rooms themselves count. Within a room a folder may do what the room does by another library: learn/deepspeed."""
    named: dict[str, set[str]] = {}
    for top in ("flows", "tasks", "spo_core"):
        for path in modules(top):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] in ("__init__", "__main__") else parts
            if len(parts) > 1:
                home = "/".join(parts[:2]) if top == "spo_core" else top
                named.setdefault(parts[-1], set()).add(home)
    twins = {name: homes for name, homes in named.items() if len(homes) > 1}
    found = {folder: " ".join(sorted(n for n, h in twins.items() if folder in h)) for folder in NAMESAKES}
    assert found == NAMESAKES
    unexplained = {name: homes - set(NAMESAKES) for name, homes in twins.items() if len(homes - set(NAMESAKES)) > 1}
    assert not unexplained, "rename all but one"
    assert not set(named) & sys.stdlib_module_names


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
