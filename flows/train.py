"""Train the policy: rollout, advantage, train, until done. The one place where the iteration loop stands."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows import cli
from spo_core.config import load_params
from spo_core.observe.dry_run import print_dry_run
from spo_core.observe.progress import bar
from spo_core.observe.tracking import Tracker
from spo_core.session import open_session
from spo_core.training_run import check_training
from tasks.advantages import assign_advantages
from tasks.records import Iteration, RunSpec
from tasks.rollouts import collect_rollouts
from tasks.training import publish_training, update_policy
from tasks.versioning import record_outputs


@flow(name="train")
def train(preset: str | None = None, overrides: tuple[str, ...] = (), name: str | None = None) -> dict:
    spec = RunSpec.here(preset, overrides, name)
    params, paths = spec.params, spec.paths
    with (
        open_session(params, paths) as session,
        Tracker(params, session.run.path, paths.root, spec.run_name or "main") as tracker,
        bar("train", params.run.iterations, unit="it") as progress,
    ):
        progress.update(session.iteration)
        while not session.finished:
            iteration = Iteration(str(session.run.path), session.iteration + 1)
            collect_rollouts(iteration)
            assign_advantages(iteration)
            metrics = update_policy(iteration)
            tracker.log(metrics, step=iteration.number)
            progress.set_postfix(reward=f"{metrics['rollout/reward']:.3f}", refresh=False)
            progress.update(1)
        final = publish_training(session, spec)
    record_outputs(spec, "train")
    return final


def command(
    preset: cli.Preset = None, set_: cli.Overrides = None, name: cli.Name = None, dry_run: cli.DryRun = False
) -> None:
    """Train the policy from checkpoints/warmup; continues where an interrupted run stopped."""
    if dry_run:
        print_dry_run(load_params(Path.cwd(), preset, tuple(set_ or ())))
        return
    spec = RunSpec.here(preset, set_ or (), name)
    check_training(spec.params, spec.paths)
    train(preset, spec.overrides, name)


if __name__ == "__main__":
    cli.main(command)
