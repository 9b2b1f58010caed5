"""dvc.yaml against the code: every path a flow publishes is an output, every namespace it reads is a dependency."""

import ast
import subprocess
import sys

import pytest
import yaml
from scmrepo.git import Git

from flows.evaluate import STAGES as STAGED
from spo_core.config import NAMESPACES, load_params
from spo_core.evaluate.suite import cells
from spo_core.paths import Paths
from tests.conftest import ROOT
from tests.contracts.test_rooms import imports

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PATHS = Paths(ROOT)
FLOWS = {"prepare": "prepare", "warmup": "warmup", "train": "train", "evaluate": "evaluate", "report": "report"}


def stage(name: str) -> dict:
    return STAGES[name]


def filled(text: str, checkpoint: str = "final") -> str:
    """As DVC does for one instance of a stage."""
    values = {"item.checkpoint": checkpoint, "item.problem_set": "arithmetic", "item.context": "long"}
    for name, value in (values | {"data.problem_set": "arithmetic"}).items():
        text = text.replace(f"${{{name}}}", value)
    return text


def outputs(name: str, checkpoint: str = "final") -> set[str]:
    entries = [*stage(name).get("outs", []), *stage(name).get("metrics", []), *stage(name).get("plots", [])]
    names = [next(iter(e)) if isinstance(e, dict) else e for e in entries]
    return {filled(n, checkpoint) for n in names}


def relative(*paths) -> set[str]:
    return {p.relative_to(ROOT).as_posix() for p in paths}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("prepare", relative(PATHS.data("arithmetic"), PATHS.metrics("prepare"))),
        ("warmup", relative(PATHS.checkpoint("warmup"), PATHS.metrics("warmup"), PATHS.plots("warmup"))),
        (
            "train",
            relative(
                *(PATHS.checkpoint(name) for name in ("final", "best")),
                PATHS.training,
                PATHS.metrics("train"),
                PATHS.plots("train"),
            ),
        ),
        (
            "evaluate",
            relative(*(PATHS.evaluation("final", "arithmetic-long").with_suffix(s) for s in (".json", ".parquet"))),
        ),
        ("report", relative(PATHS.report, PATHS.metrics("summary"))),
    ],
)
def test_outputs_are_the_paths_the_code_publishes(name, published):
    assert outputs(name) == published


def test_commands_repeat_no_param():
    for name in FLOWS:
        arguments = stage(name)["cmd"].removeprefix(f"python -m flows.{name}").split()
        one = ["--model", "${item.checkpoint}", "--cell", "${item.problem_set}-${item.context}"]
        assert arguments == (one if name == "evaluate" else [])


def test_the_instances_of_evaluate_are_the_cells_of_the_suite():
    """Each cell is a stage of its own, under the name that the flow commits."""
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    names = {f"evaluate@{checkpoint}-{cell.name}" for checkpoint in STAGED for cell in cells(load_params(ROOT))}
    assert {name for name in listed if name.startswith("evaluate@")} == names


def first_party(module: str, seen: set[str]) -> set[str]:
    """Files of this project that importing a module executes, transitively."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if not path.is_file():
        path = ROOT / module.replace(".", "/") / "__init__.py"
    name = path.relative_to(ROOT).as_posix() if path.is_file() else ""
    if not name or name in seen:
        return seen
    seen.add(name)
    if name in PLUMBING:
        return seen
    for found in imports(path):
        if found.split(".")[0] in ("flows", "tasks", "spo_core"):
            first_party(found, seen)
    return seen


# run by name in lighteval's environment
CHILDREN = [
    f"spo_core.evaluate.lighteval.{name}"
    for name in ("child", "extractive_match", "model", "pipeline", "served", "tasks")
]
# What may change without a result changing: plumbing, display, the command line, and files other stages answer for.
PLUMBING = {
    "flows/cli.py",
    "tasks/cluster.py",
    "tasks/limits.py",
    "tasks/links.py",
    "tasks/tracking.py",
    "tasks/provenance.py",
    "tasks/records.py",
    "tasks/versioning.py",
    *(
        f"spo_core/config/{name}.py"
        for name in (
            "namespace",
            "cluster",
            "credit",
            "custom",
            "data",
            "engine",
            "evaluate",
            "learn",
            "load",
            "offline",
            "params",
            "policy",
            "rollout",
            "run",
            "verify",
        )
    ),
    "spo_core/system/command_line.py",
    "spo_core/system/startup.py",
    "spo_core/policy/checkpoint_files.py",
    "spo_core/errors.py",
    "spo_core/system/files.py",
    "spo_core/runs/lineage.py",
    "spo_core/paths.py",
    "spo_core/runs/provenance.py",
    "spo_core/runs/directory.py",
    "spo_core/system/dvc.py",
    "spo_core/system/processes.py",
    "spo_core/system/plugins.py",
    "spo_core/system/progress.py",
    "spo_core/estimate/dry_run.py",
    "spo_core/observe/bars.py",
    "spo_core/observe/scores.py",
    *(f"spo_core/observe/trackers/{name}.py" for name in ("protocol", "tensorboard", "thread", "wandb")),
    "spo_core/observe/tree_table.py",
    "spo_core/observe/view_link.py",
}


@pytest.mark.parametrize("name", FLOWS)
def test_code_that_decides_a_stage_is_among_its_dependencies(name):
    starts = [f"flows.{name}", *(CHILDREN if name == "evaluate" else [])]
    used = {f for start in starts for f in first_party(start, set()) if not f.endswith("__init__.py")} - PLUMBING
    listed = [d for d in stage(name)["deps"]]
    missing = {f for f in used if not any(f == d or f.startswith(f"{d}/") for d in listed)}
    assert not missing, f"dvc.yaml, stage {name}: deps lack {sorted(missing)}"


@pytest.mark.parametrize("name", FLOWS)
def test_dependencies_exist_or_are_made_by_a_stage(name):
    made = set().union(*(outputs(s, i) for s in FLOWS for i in ("warmup", "final")))
    for entry in stage(name)["deps"]:
        dep = filled(entry)
        assert (ROOT / dep).exists() or any(out == dep or out.startswith(f"{dep}/") for out in made), dep


def namespaces_read(name: str) -> set[str]:
    """``params.<namespace>`` in the files that decide a stage."""
    found = set()
    for file in first_party(f"flows.{name}", set()) - PLUMBING:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                if owner == "params" and node.attr in NAMESPACES:
                    found.add(node.attr)
    return found


@pytest.mark.parametrize("name", ["prepare", "warmup", "train", "evaluate"])
def test_namespaces_read_are_declared(name):
    declared = {next(iter(p)).removeprefix("params/").removesuffix(".yaml") for p in stage(name)["params"]}
    assert namespaces_read(name) <= declared


def test_data_params_that_training_reads_are_declared():
    """``params.data`` is declared key by key, so that another split size does not train again by itself."""
    read = set()
    for file in first_party("flows.train", set()) - PLUMBING:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            owner = node.value if isinstance(node, ast.Attribute) else None
            if isinstance(owner, ast.Attribute) and owner.attr == "data" and "params" in ast.dump(owner.value):
                read.add(f"data.{node.attr}")
    declared = {k for p in stage("train")["params"] for name, keys in p.items() if "data" in name for k in keys}
    sources = {"data.source"}  # only prepare reads files from it; train's outputs hang from the prepared folder
    assert "data.max_question_tokens" in read and read - sources <= declared


@pytest.mark.parametrize("name", FLOWS)
def test_declared_params_stand_in_their_file(name):
    """DVC refuses a stage whose declared key its params file leaves to a default."""
    for declared in stage(name).get("params", []):
        for file, keys in declared.items():
            params = yaml.safe_load((ROOT / file).read_text())
            for key in keys:
                found = params
                for part in filled(key).split("."):
                    assert part in found, f"{name} declares {key}, which {file} does not set"
                    found = found[part]


def test_what_is_added_on_its_own_is_outside_every_stage_and_found_by_dvc():
    """DVC looks for .dvc files in no folder that it takes for ignored, and its matching is not git's."""
    added = [PATHS.milestone("train-x", 20), Paths(ROOT, "mine").checkpoint("final")]
    made = set().union(*(outputs(name) for name in FLOWS))
    for path in relative(*added):
        assert not any(path.startswith(f"{out}/") or out.startswith(f"{path}/") or out == path for out in made)
        folder = path.rpartition("/")[0]
        ignored = {place: Git(ROOT).is_ignored(place) for place in (f"{folder}/", f"{path}.dvc", f"{path}/")}
        assert ignored == {f"{folder}/": False, f"{path}.dvc": False, f"{path}/": True}
        answers = subprocess.run(
            ["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.split()
        assert answers == [f"{path}/"]


def test_every_output_is_ignored_by_git():
    cached = [o for s in FLOWS for i in ("warmup", "final") for o in outputs(s, i) if not o.endswith((".json", ".csv"))]
    listed = subprocess.run(
        ["git", "check-ignore", *cached], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    assert set(cached) <= set(listed.split())
