"""Makes the policy that reinforcement learning starts from."""

from __future__ import annotations

from prefect import flow

from flows import cli
from spo_core.train.warmup import check_warmup
from tasks.records import RunSpec
from tasks.versioning import record_outputs
from tasks.warmup import warm_up_policy


@flow(name="warmup")
def warmup(preset: str | None = None, overrides: tuple[str, ...] = (), name: str | None = None) -> dict:
    """Warm up and publish the first policy; returns the number of steps and the last loss."""
    spec = RunSpec.here(preset, overrides, name)
    metrics = warm_up_policy(spec)
    record_outputs(spec, "warmup")
    return metrics


def command(
    preset: cli.Preset = None, set_: cli.Overrides = None, name: cli.Name = None, quiet: cli.Quiet = False
) -> None:
    """Initialise the policy and train it on the problem set's demonstrations."""
    spec = RunSpec.here(preset, set_ or (), name)
    check_warmup(spec.params, spec.paths)
    with cli.served():
        warmup(preset, spec.overrides, name)


if __name__ == "__main__":
    cli.main(command)
