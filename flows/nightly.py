"""Evaluates the newest checkpoint of training, unless a report has it, and reports where its accuracy fell."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import cli
from spo_core.evaluate.cell import Evaluated, check_evaluation
from spo_core.evaluate.nightly.newest import newest_model
from spo_core.evaluate.nightly.nightly_report import already_evaluated, free_name, make_report, write_report
from spo_core.evaluate.suite import cells
from tasks.evaluation import measure
from tasks.limits import LimitBusy, give_way
from tasks.nightly import publish_night, this_night
from tasks.records import RunSpec


@flow(name="nightly")
def nightly(
    preset: str | None = None, overrides: tuple[str, ...] = (), name: str | None = None, suite: str | None = None
) -> State:
    """Evaluate the newest checkpoint and publish a report. The state is Completed whatever came of the night: its name
    says Completed, NothingNew, Dropped (too late) or Busy."""
    spec, night = RunSpec.here(preset, overrides, name, suite=suite, evaluates=True), this_night()
    params, paths, limits = spec.params, spec.paths, spec.params.evaluate.nightly
    if night.hours_late > limits.max_late_hours:
        return ended(
            "Dropped",
            f"it starts {night.hours_late:.1f} hours late; evaluate.nightly.max_late_hours allows "
            f"{limits.max_late_hours:g}",
        )
    check_evaluation(params, paths, own=False)
    with newest_model(paths, params) as newest:
        if newest is None:
            return ended("NothingNew", f"no training run in {paths.work} has a complete checkpoint with these prompts")
        found, model = newest
        reports = paths.nightly(night.date).parent
        if (known := already_evaluated(reports, model.digest, params)) is not None:
            return ended("NothingNew", f"the newest checkpoint, {found.name}, was evaluated in report {known}")
        evaluated: dict[str, Evaluated] = {}
        for cell in cells(params):
            if evaluated:
                give_way(params.run.gpu_limit)
            try:
                evaluated[cell.name] = measure(spec, model, cell, limits.wait_seconds)
            except LimitBusy as busy:
                return ended("Busy", f"{busy}; {len(evaluated)} of {len(cells(params))} cells are done and are kept")
        report = make_report(
            paths,
            params,
            found,
            model,
            evaluated,
            date=night.date,
            started=night.started,
            finished=datetime.now(night.started.tzinfo),
        )
        target = paths.nightly(free_name(paths, night.date))
        publish_night(spec, report, found.run, target)
        write_report(target, report, evaluated)  # last: a policy with a report is not evaluated again
    worse = f"; fell: {', '.join(report.fell)}" if report.fell else ""
    return ended("Completed", f"{found.name}: {target}{worse}")


def ended(name: str, message: str) -> State:
    """The state of a night that did not fail."""
    return Completed(name=name, message=message, data=message)


def command(
    preset: cli.Preset = None,
    set_: cli.Overrides = None,
    name: cli.Name = None,
    suite: Annotated[str | None, typer.Option(help="One of params/suites instead of the run's own.")] = None,
) -> None:
    """Evaluate the newest complete checkpoint of all training runs in work/, if no report has it yet."""
    spec = RunSpec.here(preset, set_ or (), name, suite=suite, evaluates=True)
    check_evaluation(spec.params, spec.paths, own=False)
    with cli.served():
        state: State = nightly(preset, spec.overrides, name, suite, return_state=True)
    if state.is_completed():
        print(f"{state.name}: {state.message}")
    else:
        state.result()


if __name__ == "__main__":
    cli.main(command)
