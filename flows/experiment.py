"""The whole pipeline in one flow: prepare, warm up, evaluate, train, evaluate, report."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows import cli
from flows.evaluate import evaluate
from flows.prepare import prepare
from flows.report import report
from flows.train import train
from flows.warmup import warmup
from spo_core.evaluate.cell import check_environment, check_suite
from spo_core.observe.summary import print_summary
from spo_core.problems.prepare import check_source
from spo_core.train.identity import check_training
from tasks.records import RunSpec


@flow(name="experiment")
def experiment(preset: str | None = None, overrides: tuple[str, ...] = (), name: str | None = None) -> dict:
    """Run all stages of one run; returns its summary."""
    name = RunSpec.here(preset, overrides, name).run_name  # one name: evaluations ignore some overrides in theirs
    run: dict[str, Any] = {"preset": preset, "overrides": overrides, "name": name}
    prepare(**run)
    warmup(**run)
    evaluate("warmup", **run)
    train(**run)
    evaluate("final", **run)
    return report(**run)


def command(
    preset: cli.Preset = None, set_: cli.Overrides = None, name: cli.Name = None, quiet: cli.Quiet = False
) -> None:
    """Run every stage in order; each reuses or continues what an earlier run of the same params left."""
    spec = RunSpec.here(preset, set_ or (), name)
    check_environment(spec.paths)
    check_source(spec.params)
    check_suite(spec.params, own=True)
    if spec.params.run.name and (spec.paths.checkpoint("warmup") / "config.json").is_file():
        check_training(spec.params, spec.paths)
    with cli.served():
        experiment(preset, spec.overrides, name)
    print_summary(spec.paths)


if __name__ == "__main__":
    cli.main(command)
