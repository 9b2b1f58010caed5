"""Summarises a finished run: metrics/summary.json and report/index.html."""

from __future__ import annotations

from prefect import flow

from flows import cli
from spo_core.observe.summary import check_report
from tasks.records import RunSpec
from tasks.reporting import build_report
from tasks.versioning import record_outputs


@flow(name="report")
def report(preset: str | None = None, overrides: tuple[str, ...] = (), name: str | None = None) -> dict:
    """Write the summary and the report of a run; returns the summary."""
    spec = RunSpec.here(preset, overrides, name)
    summary = build_report(spec)
    record_outputs(spec, "report")
    return summary


def command(preset: cli.Preset = None, set_: cli.Overrides = None, name: cli.Name = None) -> None:
    """Write the summary and the report of a run that was trained and evaluated."""
    spec = RunSpec.here(preset, set_ or (), name)
    check_report(spec.params, spec.paths)
    with cli.served():
        report(preset, spec.overrides, name)


if __name__ == "__main__":
    cli.main(command)
