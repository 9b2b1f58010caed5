"""What is installed, whichever way: pip, uv, make and the image for GPU workers take the same versions and extras."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from constraints.for_uv import pins, written
from tests.conftest import ROOT

PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PYPROJECT)
MAIN = (ROOT / "constraints" / "main.txt").read_text()
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def exact(text: str) -> dict[str, str]:
    """Version of each package that a constraints file names; it must give each exactly one."""
    found: dict[str, str] = {}
    for requirement in map(Requirement, pins(text)):
        (one,) = requirement.specifier
        name = canonicalize_name(requirement.name)
        assert one.operator == "==" and requirement.marker is None and name not in found, requirement
        found[name] = one.version
    return found


def test_uv_is_held_to_the_versions_that_pip_is_held_to():
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == pins(MAIN)
    assert written(PYPROJECT, MAIN) == PYPROJECT, "run python constraints/for_uv.py"


NAMES = st.from_regex(r"[a-z][a-z0-9._-]{0,30}[a-z0-9]", fullmatch=True)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(NAMES, st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3}){0,3}", fullmatch=True), min_size=1))
def test_whatever_versions_a_file_has_are_the_ones_that_uv_reads(versions):
    lines = [f"{name}=={version}" for name, version in versions.items()]
    again = written(PYPROJECT, "# why\n" + "\n".join(f"{line}  # or not" for line in lines) + "\n")
    read = tomllib.loads(again)
    assert read["tool"]["uv"].pop("constraint-dependencies") == lines
    assert {**read["tool"]["uv"], "constraint-dependencies": pins(MAIN)} == PROJECT["tool"]["uv"]
    assert read["project"] == PROJECT["project"] and max(map(len, again.splitlines())) <= 160
    assert written(again, MAIN) == PYPROJECT


def test_every_requirement_of_the_project_and_its_extras_has_one_version_within_its_range():
    versions = exact(MAIN)
    for text in [*PROJECT["project"]["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        needed = Requirement(text)
        assert needed.specifier.contains(versions[canonicalize_name(needed.name)], prereleases=True), text


def test_every_requirement_of_lighteval_s_environment_has_one_version_within_its_range():
    versions = exact((ROOT / "constraints" / "evaluate.txt").read_text())
    for needed in map(Requirement, pins((ROOT / "constraints" / "evaluate.in").read_text())):
        assert needed.specifier.contains(versions[canonicalize_name(needed.name)]), needed


def test_a_lock_file_of_uv_is_not_committed():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git here")
    ignored = subprocess.run(["git", "check-ignore", "-q", "uv.lock"], cwd=ROOT)
    assert ignored.returncode == 0


INHERITED = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "UV"}  # by what make, or uv run, starts


def recipes(folder, *arguments: str) -> str:
    """What make would run in a folder where nothing is installed, a command a line; whatever the present make, or uv,
    was told stays out."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "constraints", folder / "constraints", dirs_exist_ok=True)
    done = subprocess.run(
        ["make", "-n", *arguments, ".venv/.test", ".venv-evaluate/.complete"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in INHERITED},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.replace("\\\n", " ")


def test_make_installs_the_same_extras_and_leaves_out_the_same_packages_by_pip_and_by_uv(tmp_path):
    by_pip, by_uv = recipes(tmp_path), recipes(tmp_path, "UV=uv")
    (extras,) = re.findall(r'-e "\.\[(.*)\]"', by_pip)
    (removed,) = re.findall(r"uninstall --quiet --yes (.*)", by_pip)
    assert re.findall(r"--extra (\S+)", by_uv) == extras.split(",") and set(extras.split(",")) <= EXTRAS.keys()
    assert re.findall(r"--no-install-package (\S+)", by_uv) == removed.split()
    assert "pip uninstall" not in by_uv and "uv" not in by_pip.split()
    for said in (by_pip, by_uv):
        assert "-c constraints/evaluate.txt" in said and "-r constraints/evaluate.in" in said
    for line in by_uv.splitlines():  # uv reads pyproject.toml's versions, which are not lighteval's
        assert ("--no-config" in line) == (".venv-evaluate" in line and "touch" not in line), line


@pytest.mark.parametrize("told", [{"UV": "/elsewhere/uv"}, {"MAKEFLAGS": "-- UV=uv", "MAKELEVEL": "1"}])
def test_what_is_read_off_make_does_not_depend_on_who_runs_the_tests(tmp_path, monkeypatch, told):
    before = recipes(tmp_path)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert recipes(tmp_path) == before


def test_make_goes_on_with_uv_where_uv_made_the_environment(tmp_path):
    asked = recipes(tmp_path, "UV=uv")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\nimplementation = CPython\nuv = 0.13.9\n")
    assert recipes(tmp_path) == asked
    (tmp_path / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\nexecutable = /usr/bin/uvx\n")
    assert " -m pip install" in recipes(tmp_path)
