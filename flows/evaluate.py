"""Evaluate a checkpoint on the test split, at every context length of params/evaluate.yaml."""

from __future__ import annotations

from typing import Annotated

import typer
from prefect import flow

from flows import cli
from spo_core.evaluate.run import check_evaluation
from tasks.evaluation import evaluate_policy
from tasks.records import RunSpec
from tasks.versioning import record_outputs


@flow(name="evaluate")
def evaluate(
    checkpoint: str = "final", preset: str | None = None, overrides: tuple[str, ...] = (), name: str | None = None
) -> dict:
    spec = RunSpec.here(preset, overrides, name)
    scores = evaluate_policy(spec, checkpoint)
    record_outputs(spec, f"evaluate@{checkpoint}")
    return scores


def command(
    checkpoint: Annotated[str, typer.Option(help="A name below checkpoints/: warmup or final.")] = "final",
    preset: cli.Preset = None,
    set_: cli.Overrides = None,
    name: cli.Name = None,
) -> None:
    """Score a checkpoint through lighteval, with the prompt and the verifier of training."""
    spec = RunSpec.here(preset, set_ or (), name)
    check_evaluation(spec.params, spec.paths, checkpoint)
    evaluate(checkpoint, preset, spec.overrides, name)


if __name__ == "__main__":
    cli.main(command)
