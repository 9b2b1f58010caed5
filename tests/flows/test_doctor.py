"""The doctor: what a run would fail on is found, whatever it is, and nothing else; a real table of this machine."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

import flows.doctor as doctor
from spo_core.errors import SPOError

REQUIRED = [Requirement(text) for text in requires(doctor.PACKAGE) or []]


def app():
    typed = doctor.typer.Typer()
    typed.command()(doctor.command)
    return typed


def test_every_required_package_that_is_missing_or_outside_its_range_fails():
    """Each package by itself, at versions below and above all ranges."""
    texts = [str(requirement) for requirement in REQUIRED]
    assert list(doctor.wrong_versions(texts, doctor.installed_version)) == []
    for requirement in REQUIRED:
        extra = "extra" in str(requirement.marker or "")
        for there in (None, "0.0.1", "9999"):
            if there is not None and requirement.specifier.contains(there):
                continue
            faults = doctor.wrong_versions([str(requirement)], lambda _, there=there: there)
            assert [f.verdict for f in faults] == ([] if there is None and extra else ["fails"]), requirement


def test_packages_that_do_not_go_together_fail_only_where_both_are_installed():
    for one, other in doctor.TOGETHER:
        for here in ({one}, {other}, {one, other}):
            found = list(doctor.bad_pairs(lambda name, here=here: "1" if name in here else None, doctor.TOGETHER))
            assert [f.what for f in found] == ([f"{one} with {other}"] if here == {one, other} else [])


def refuse() -> None:
    raise SPOError("no")


def test_disk_and_refusals_are_judged(tmp_path):
    assert doctor.disk(tmp_path / "not" / "yet", least=1).verdict == "ok"
    assert doctor.disk(tmp_path, least=2**70).verdict == "fails"
    assert doctor.refusal("x", "fine", refuse) == doctor.Finding("x", "no", "fails")
    assert doctor.refusal("x", "fine", lambda: None) == doctor.Finding("x", "fine")


@pytest.fixture(params=["same", "other"])
def source(request, tmp_path) -> Iterator[Path]:
    """A folder on the file system of ``tmp_path``, or on another."""
    if request.param == "same":
        yield tmp_path / "source" / "not yet"
        return
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here that can be written to")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def works(kind: str, source: Path, target: Path) -> bool:
    """Whether a kind of link can be made between the folders, as coreutils find."""
    if kind == "hardlink":
        return doctor.nearest(source).stat().st_dev == target.stat().st_dev
    if kind != "reflink":
        return True
    file = doctor.nearest(source) / "file"
    file.touch()
    cloned = subprocess.run(["cp", "--reflink=always", file, target / "clone"], capture_output=True)
    for left in (file, target / "clone"):
        left.unlink(missing_ok=True)
    return cloned.returncode == 0


def test_links_are_the_first_of_the_configured_kinds_that_can_be_made(source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    able = {kind: works(kind, source, target) for kind in doctor.LINKS}
    for count in range(1, len(able) + 1):
        for kinds in itertools.permutations(able, count):
            found = doctor.links("these", source, target, kinds)
            taken = next((kind for kind in kinds if able[kind]), None)
            verdict = "fails" if taken is None else "note" if taken == "copy" else "ok"
            assert found.verdict == verdict, (kinds, found)
            assert taken is None or found.found.startswith(f"these: {doctor.LINKS[taken][0]}"), (kinds, found)
    assert doctor.links("these", source, target, ("hard link",)).verdict == "fails"
    assert not any(target.iterdir()) and not (tmp_path / "source").exists()
    rows = list(doctor.disks(target, source, tmp_path))
    assert len(rows) == len({doctor.nearest(folder).stat().st_dev for folder in (target, source)})


@pytest.mark.slow
@pytest.mark.parametrize("level", ["", pytest.param(".local", marks=pytest.mark.exhaustive)])
def test_the_cache_is_the_one_that_dvc_is_configured_to_use(level, tmp_path):
    from dvc.repo import Repo

    root = tmp_path / "project"
    root.mkdir()
    assert doctor.cache_of(root) is None
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, check=True)
    for section in ("", "[cache]\n    type = symlink\n    dir = ../../else where\n"):
        (root / ".dvc" / f"config{level}").write_text(section)
        with Repo(str(root)) as repo:
            theirs = repo.cache.local
            assert doctor.cache_of(root) == (Path(theirs.path).parents[1], tuple(theirs.cache_types))
    assert theirs.path.startswith(str(tmp_path / "else where"))
    rows = {row.what + row.found: row.verdict for row in doctor.storage(root, tmp_path / "work")}
    (row,) = (found for found in rows if str(tmp_path / "else where") in found and found.startswith("links"))
    assert row.endswith("symbolic links")


@pytest.mark.parametrize(("verdict", "status"), [("ok", 0), ("note", 0), ("fails", 1)])
def test_the_command_prints_its_table_and_ends_with_1_for_what_would_fail(monkeypatch, verdict, status):
    monkeypatch.setattr(doctor, "services", lambda root: [doctor.Finding("a service", "as it is", verdict)])
    monkeypatch.setattr(doctor, "disk", lambda folder: doctor.Finding("free disk", "enough"))
    monkeypatch.setattr(doctor, "cache_of", lambda root: None)
    done = CliRunner().invoke(app(), [])
    assert done.exit_code == status, done.output
    for said in ("versions", "devices", "free disk", "links", "a service"):
        assert said in done.output
