"""The doctor: what a run would fail on is found, whatever it is, and nothing else; a real table of this machine."""

from __future__ import annotations

from importlib.metadata import requires

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


def test_disk_links_and_refusals_are_judged(tmp_path):
    assert doctor.disk(tmp_path / "not" / "yet", least=1).verdict == "ok"
    assert doctor.disk(tmp_path, least=2**70).verdict == "fails"
    assert doctor.links(tmp_path / "cache", tmp_path / "work").found.endswith(": hard links")
    assert not list(tmp_path.iterdir())

    def refuse() -> None:
        raise SPOError("no")

    assert doctor.refusal("x", "fine", refuse) == doctor.Finding("x", "no", "fails")
    assert doctor.refusal("x", "fine", lambda: None) == doctor.Finding("x", "fine")


@pytest.mark.parametrize(("verdict", "status"), [("ok", 0), ("note", 0), ("fails", 1)])
def test_the_command_prints_its_table_and_ends_with_1_for_what_would_fail(monkeypatch, verdict, status):
    monkeypatch.setattr(doctor, "services", lambda root: [doctor.Finding("a service", "as it is", verdict)])
    monkeypatch.setattr(doctor, "disk", lambda folder: doctor.Finding("free disk", "enough"))
    done = CliRunner().invoke(app(), [])
    assert done.exit_code == status, done.output
    for said in ("versions", "devices", "free disk", "links", "a service"):
        assert said in done.output
