"""Train the policy: rollout, advantage, train, until done. The one place where the iteration loop stands."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows import cli
from spo_core.config import load_params
from spo_core.errors import ConfigError
from spo_core.observe.dry_run import print_dry_run
from spo_core.observe.progress import bar
from spo_core.observe.tracking import Tracker
from spo_core.session import open_session
from spo_core.training_run import check_training
from tasks.advantages import assign_advantages
from tasks.limits import gpu_slot
from tasks.records import Iteration, RunSpec
from tasks.rollouts import collect_rollouts, keep_rollouts, recorded_rollouts
from tasks.training import publish_training, update_policy
from tasks.versioning import record_outputs


@flow(name="train")
def train(
    preset: str | None = None,
    overrides: tuple[str, ...] = (),
    name: str | None = None,
    replay: str | None = None,
    rollouts_only: bool = False,
) -> dict:
    spec = RunSpec.here(preset, overrides, name, replay, rollouts_only)
    params, paths = spec.params, spec.paths
    with (
        gpu_slot(params.run.gpu_limit),
        open_session(params, spec.inputs, replay=replay, rollouts_only=rollouts_only) as session,
        Tracker(params, session.run.path, paths.root, spec.run_name or "main") as tracker,
        bar("train", params.run.iterations, unit="it") as progress,
    ):
        progress.update(session.iteration)
        while not session.finished:
            iteration = Iteration(str(session.run.path), session.iteration + 1)
            collect_rollouts(iteration)
            assign_advantages(iteration)
            metrics = keep_rollouts(iteration) if rollouts_only else update_policy(iteration)
            tracker.log(metrics, step=iteration.number)
            progress.set_postfix(shown(metrics), refresh=False)
            progress.update(1)
        if rollouts_only:
            return recorded_rollouts(session)
        final = publish_training(session, spec)
    record_outputs(spec, "train")
    return final


def shown(metrics: dict) -> dict[str, str]:
    """Beside the progress: the reward, and the share of answers that could not be compared if there is one."""
    failed = metrics.get("rollout/failed_share", 0.0)
    return {"reward": f"{metrics['rollout/reward']:.3f}"} | ({"failed": f"{failed:.1%}"} if failed else {})


def command(
    preset: cli.Preset = None,
    set_: cli.Overrides = None,
    name: cli.Name = None,
    replay: cli.Replay = None,
    rollouts_only: cli.RolloutsOnly = False,
    dry_run: cli.DryRun = False,
) -> None:
    """Train the policy from checkpoints/warmup; continues where an interrupted run stopped."""
    if dry_run:
        if replay is not None or rollouts_only:
            raise ConfigError("--dry-run tells of ordinary runs; leave out --replay and --rollouts-only")
        print_dry_run(load_params(Path.cwd(), preset, tuple(set_ or ())))
        return
    spec = RunSpec.here(preset, set_ or (), name, replay, rollouts_only)
    check_training(spec.params, spec.inputs, replay=replay, rollouts_only=rollouts_only)
    with cli.served():
        result = train(preset, spec.overrides, name, replay, rollouts_only)
    if rollouts_only:
        print(f"rollouts of {result['iterations']} iterations: {result['folder']}; train on them with --replay")


if __name__ == "__main__":
    cli.main(command)
