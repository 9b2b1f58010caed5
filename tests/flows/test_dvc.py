"""Milestones in DVC while a run is under way, and everything DVC promises about a trained project in a clean clone."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.provenance import asked
from spo_core.evaluate.models import refer
from spo_core.runs.directory import RunDirectory
from spo_core.runs.lineage import trace
from spo_core.system.files import folder_digest, write_json
from tasks import versioning
from tasks.limits import concurrency_slot
from tasks.records import RunSpec
from tests.conftest import ROOT
from tests.flows.conftest import run_module
from tests.flows.test_deploy import ask

pytestmark = pytest.mark.slow
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@localhost")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *IDENTITY, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def dvc(folder: Path, environment: dict, *arguments: str) -> str:
    """Output of a DVC command that must succeed."""
    result = run_module(folder, environment, "dvc", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def disk_used(folder: Path) -> int:
    """Bytes of all files, each inode once."""
    sizes = {(s.st_dev, s.st_ino): s.st_blocks * 512 for s in (p.lstat() for p in folder.rglob("*") if p.is_file())}
    return sum(sizes.values())


# --- milestones of a run that nobody trained


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDirectory:
    """A run directory with milestone 2, in a DVC repository with the project's own settings; DVC is not waited for."""
    monkeypatch.setattr(versioning, "add_milestones", versioning.add_milestones.fn)
    monkeypatch.setattr("spo_core.system.dvc.DELAYS", (0.1,))
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    for name in (".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, project / name)
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "empty")
    run = RunDirectory(project / "work" / "train-x")
    save(run, 2)
    write_json(run.path / "manifest.json", {"identity": {}, "provenance": {}})
    return run


def save(run: RunDirectory, number: int) -> None:
    def write(folder: Path) -> None:
        for name in ("policy/model", "trainer/optimizer"):
            (folder / name).parent.mkdir()
            (folder / f"{name}.safetensors").write_bytes(os.urandom(4_000_000))
        (folder / "policy" / "config.json").write_text("{}")

    run.save_checkpoint(number, write, 1, 2)


def version(run: RunDirectory) -> None:
    versioning.version_milestones(RunSpec(str(run.path.parents[1])), run, 2)


def pointer(run: RunDirectory, number: int) -> Path:
    return run.path.parents[1] / "outputs" / "milestones" / run.path.name / f"{number:06d}.dvc"


def test_a_milestone_enters_the_cache_without_a_second_copy(run):
    project = run.path.parents[1]
    before = disk_used(project)
    version(run)
    weights = [
        run.checkpoint(2) / "policy" / "model.safetensors",
        pointer(run, 2).with_suffix("") / "model.safetensors",
        *(p for p in (project / ".dvc" / "cache").rglob("*") if p.is_file() and p.stat().st_size == 4_000_000),
    ]
    assert len(weights) == 3 and len({p.stat().st_ino for p in weights}) == 1
    assert disk_used(project) - before < 1_000_000
    assert git(project, "status", "--porcelain", "--untracked-files=all").split() == [
        "??",
        "outputs/milestones/train-x/000002.dvc",
        "??",
        "outputs/milestones/train-x/000002.json",
    ]


def test_what_is_versioned_is_left_alone_and_what_replaces_it_is_versioned_anew(run, monkeypatch):
    save(run, 4)
    version(run)
    first = {n: pointer(run, n).read_text() for n in (2, 4)}
    with monkeypatch.context() as patched:
        patched.setattr("spo_core.system.dvc.run_dvc", lambda *a, **k: pytest.fail("DVC was called again"))
        version(run)
    (run.checkpoint(4) / "policy" / "model.safetensors").unlink()
    save(run, 4)  # as of another timeline
    version(run)
    assert pointer(run, 2).read_text() == first[2] and pointer(run, 4).read_text() != first[4]
    pointer(run, 2).unlink()  # as in a branch that does not have it
    version(run)
    assert pointer(run, 2).read_text() == first[2]


@pytest.mark.parametrize("trouble", ["lock", "broken"])
def test_what_dvc_refuses_stops_no_training_and_is_tried_again(run, trouble, caplog):
    caplog.set_level(logging.WARNING)
    config = run.path.parents[1] / ".dvc" / "config"
    if trouble == "lock":
        with Repo(str(run.path.parents[1])).lock:
            version(run)
    else:
        whole = config.read_text()
        config.write_text("[cache\n")
        version(run)
        config.write_text(whole)
    assert "milestones 2 are not versioned yet" in caplog.text and not pointer(run, 2).exists()
    save(run, 4)
    version(run)
    assert pointer(run, 2).exists() and pointer(run, 4).exists() and run.is_versioned(2)


def test_without_a_repository_nothing_is_done(run):
    project = run.path.parents[1]
    shutil.rmtree(project / ".dvc")
    version(run)
    assert not (project / "outputs").exists() and not run.is_versioned(2)


def test_the_server_s_limit_is_held_and_a_taken_one_stops_no_training(run, environment, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(versioning, "PATIENCE", 1.0)
    monkeypatch.setattr(versioning, "DVC_LIMIT", "dvc-of-this-test")  # the server is that of others too
    ask(environment, "v2/concurrency_limits/", {"name": versioning.DVC_LIMIT, "limit": 1})
    with temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}):
        with concurrency_slot(versioning.DVC_LIMIT):
            version(run)
        assert "no slot became free" in caplog.text and not pointer(run, 2).exists()
        version(run)
    assert pointer(run, 2).exists()


# --- a trained project


@pytest.fixture(scope="module")
def trained(new_project, environment) -> Path:
    """The small project, trained by ``dvc repro train`` for two iterations, both milestones; not yet committed."""
    project = new_project()
    change(project, "run.iterations", 2)
    change(project, "run.milestone_every", 1)
    change(project, "policy.warmup.steps", 30)
    change(project, "verify.rewards.wrong", 0.5)  # such a policy is never right, and yet it shall learn
    git(project, "commit", "-qam", "milestones")
    dvc(project, environment, "repro", "train")
    return project


def change(project: Path, key: str, value: float) -> None:
    namespace, *parents, name = key.split(".")
    path = project / "params" / f"{namespace}.yaml"
    content = part = yaml.safe_load(path.read_text())
    for parent in (namespace, *parents):
        part = part[parent]
    part[name] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture(scope="module")
def milestone(trained) -> Path:
    """Folder of the policy after iteration 1."""
    (found,) = trained.glob("outputs/milestones/train-*/000001")
    return found


@pytest.fixture(scope="module")
def clone(trained, milestone, environment, tmp_path_factory) -> Path:
    """Cloned after a commit and a push to a local remote, and pulled."""
    folder = tmp_path_factory.mktemp("from")
    git(trained, "add", "-A")
    git(trained, "commit", "-qm", "trained")
    dvc(trained, environment, "remote", "add", "--default", "store", str(folder / "store"))
    git(trained, "commit", "-qam", "a remote")
    dvc(trained, environment, "push")
    git(folder, "clone", "-q", str(trained), "clone")
    dvc(folder / "clone", environment, "pull", "--with-deps", "train", *tracked(folder / "clone"))
    return folder / "clone"


def tracked(project: Path) -> list[str]:
    return [str(p.relative_to(project)) for p in project.glob("outputs/milestones/*/*.dvc")]


def test_a_milestone_is_versioned_while_its_stage_runs(trained, milestone, environment):
    added, lock = milestone.with_name("000001.dvc"), trained / "dvc.lock"
    (folder,) = trained.glob("work/train-*/iterations/000002")
    assert added.stat().st_mtime < (folder / "COMPLETE").stat().st_mtime < lock.stat().st_mtime
    assert "milestones" not in lock.read_text()
    status = json.loads(dvc(trained, environment, "status", "--json", "train", *tracked(trained)))
    assert status == {}
    before = lock.read_text()
    assert "up to date" in dvc(trained, environment, "repro", "train") and lock.read_text() == before


def test_every_published_policy_is_one_file_with_its_checkpoint(trained, milestone):
    cache = {p.stat().st_ino for p in (trained / ".dvc" / "cache").rglob("*") if p.is_file()}
    (run,) = trained.glob("work/train-*")
    for published, number in ((trained / "checkpoints" / "final", 2), (milestone, 1)):
        saved = run / "checkpoints" / f"{number:06d}" / "policy" / "model.safetensors"
        weights = published / "model.safetensors"
        assert weights.stat().st_ino == saved.stat().st_ino and weights.stat().st_ino in cache
    assert weights.read_bytes() != (trained / "checkpoints" / "final" / "model.safetensors").read_bytes()


def test_the_next_start_versions_what_a_killed_flow_left(trained, milestone, environment):
    """The flow on its own, of a finished run: it records what ``dvc repro`` did, to the byte."""
    added, lock = milestone.with_name("000001.dvc"), trained / "dvc.lock"
    before = added.read_bytes(), lock.read_bytes()
    added.unlink()
    result = run_module(trained, environment, "flows.train")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (added.read_bytes(), lock.read_bytes()) == before


def test_a_clean_clone_has_everything_and_nothing_to_do(trained, milestone, clone, environment):
    assert not (clone / "work").exists()
    assert folder_digest(clone / milestone.relative_to(trained)) == folder_digest(milestone)
    assert folder_digest(clone / "checkpoints") == folder_digest(trained / "checkpoints")
    assert json.loads(dvc(clone, environment, "status", "--json", "train", *tracked(clone))) == {}
    assert "Running stage" not in dvc(clone, environment, "repro", "train")
    assert git(clone, "status", "--porcelain") == "" and not (clone / "work").exists()


def test_a_milestone_is_evaluated_by_its_revision(trained, milestone, clone, monkeypatch):
    """What ``python -m flows.evaluate --model HEAD:outputs/milestones/...`` finds, and what made it; here where nothing
    of it is checked out."""
    monkeypatch.chdir(clone)
    shutil.rmtree(clone / "outputs")
    spec = RunSpec(str(clone))
    name = f"HEAD:{milestone.relative_to(trained).as_posix()}"
    found = versioning.find_model.fn(spec, refer(name, spec.paths))
    assert found.digest == folder_digest(milestone) and "000001" in found.label
    chain = trace(asked(name, spec), clone, clone / "work")
    assert (chain["run"]["directory"], chain["policy"]["iteration"]) == (milestone.parent.name, 1)
    git(clone, "checkout", "--", "outputs")


@pytest.mark.exhaustive
def test_an_experiment_in_a_clean_clone_is_told_apart_from_what_it_began_with(trained, clone, environment):
    dvc(clone, environment, "exp", "run", "-n", "twice", "-S", "params/learn.yaml:learn.epochs=2", "train")
    changed = json.loads(dvc(clone, environment, "metrics", "diff", "--json", "--", "HEAD"))
    here, before = (json.loads((p / "metrics" / "train.json").read_text()) for p in (clone, trained))
    assert here != before
    diff = changed["metrics/train.json"]
    assert {k: (v["old"], v["new"]) for k, v in diff.items()} == {
        k: (before[k], here[k]) for k in before if before[k] != here[k]
    }
    plots = json.loads(dvc(clone, environment, "plots", "diff", "--json", "HEAD"))["data"]["plots/train.csv"]
    drawn = [value for plot in plots for value in plot["content"]["data"]["values"]]
    for revision, project in (("workspace", clone), ("HEAD", trained)):
        with (project / "plots" / "train.csv").open() as file:
            rewards = [float(row["reward"]) for row in csv.DictReader(file)]
        assert [float(v["reward"]) for v in drawn if v["rev"] == revision] == rewards
    shown = csv.DictReader(dvc(clone, environment, "exp", "show", "--csv").splitlines())
    rows = {row["Experiment"] or row["typ"] + row["rev"]: row for row in shown}
    (baseline,) = (name for name in rows if name.startswith("baseline") and "workspace" not in name)
    assert rows["twice"]["learn.epochs"] == "2" and rows[baseline]["learn.epochs"] == "1"
    for name, metrics in (("twice", here), (baseline, before)):
        assert float(rows[name]["reward_last"]) == metrics["reward_last"]
