"""Prepare the splits of a problem set."""

from __future__ import annotations

from prefect import flow

from flows import cli
from spo_core.prepare import check_source
from tasks.datasets import prepare_dataset
from tasks.records import RunSpec
from tasks.versioning import record_outputs


@flow(name="prepare")
def prepare(preset: str | None = None, overrides: tuple[str, ...] = (), name: str | None = None) -> dict:
    spec = RunSpec.here(preset, overrides, name)
    counts = prepare_dataset(spec)
    record_outputs(spec, "prepare")
    return counts


def command(preset: cli.Preset = None, set_: cli.Overrides = None, name: cli.Name = None) -> None:
    """Prepare the train, validation and test questions of the problem set."""
    spec = RunSpec.here(preset, set_ or (), name)
    check_source(spec.params)
    prepare(preset, tuple(set_ or ()), name)


if __name__ == "__main__":
    cli.main(command)
