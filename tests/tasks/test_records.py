"""Which run an evaluation is of, and whether its scores stand among the run's metrics."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spo_core.errors import ConfigError
from tasks.records import RunSpec
from tests.conftest import ROOT

SAMPLES = ("evaluate.samples=2", "verify.grader=minerva")


def spec(*overrides: str, **more) -> RunSpec:
    return RunSpec(str(ROOT), overrides=overrides, evaluates=True, **more)


def test_overrides_of_evaluation_make_no_other_run():
    assert spec(*SAMPLES).run_name is None and spec(*SAMPLES, preset="grpo").run_name == "grpo"
    assert spec("run.seed=1", *SAMPLES).run_name == spec("run.seed=1").run_name is not None
    assert RunSpec(str(ROOT), overrides=SAMPLES).run_name is not None, "of a training they do"


@pytest.mark.parametrize("checkpoint", ["warmup", "final", "best"])
def test_a_run_s_checkpoints_asked_as_the_run_asks_them_are_its_own(checkpoint):
    assert spec().owns(checkpoint) and spec(preset="grpo").owns(checkpoint) and spec("run.seed=1").owns(checkpoint)
    assert spec(*SAMPLES, name="with-two-samples").owns(checkpoint), "a run of that name was started so"


def test_all_else_is_not():
    assert not spec().owns("checkpoints/final")
    assert not spec(suite="embedded").owns("final")
    assert not spec(SAMPLES[0]).owns("final")


@given(st.text(max_size=12) | st.sampled_from(["..", "../..", "/tmp/x", ".", "", "a/b", "-x", "a\n", "a" * 101]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_name_is_a_folder_below_the_runs_or_is_refused(monkeypatch, name):
    monkeypatch.chdir(ROOT)
    try:
        found = RunSpec.here(name=name)
    except ConfigError as error:
        assert "--name" in str(error)
        assert not (name.isascii() and name.isalnum() and len(name) <= 100), "a plain name is refused"
        return
    runs = (ROOT / "outputs" / "runs").resolve()
    assert found.paths.output.resolve().parent == runs and found.paths.output.name == name
