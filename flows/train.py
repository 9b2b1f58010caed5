"""Trains the policy: rollout, advantage, train, until done. The iteration loop stands here and nowhere else."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows import cli
from spo_core.errors import ConfigError
from spo_core.estimate.dry_run import print_dry_run
from spo_core.observe.trackers import check_trackers
from spo_core.observe.view_link import invitation, run_address
from spo_core.system.plugins import open_project
from spo_core.train.doors import sources
from spo_core.train.example import print_example
from spo_core.train.identity import check_training
from spo_core.train.opening import open_session
from tasks.advantages import assign_advantages
from tasks.cluster import cluster
from tasks.limits import concurrency_slot
from tasks.provenance import publish_provenance
from tasks.records import Iteration, RunSpec
from tasks.rollouts import collect_rollouts, keep_rollouts, recorded_rollouts, shard_mapper
from tasks.tracking import training_trackers
from tasks.training import publish_training, say_why_finished, update_policy
from tasks.versioning import record_outputs, version_milestones


@flow(name="train")
def train(
    preset: str | None = None,
    overrides: tuple[str, ...] = (),
    name: str | None = None,
    replay: str | None = None,
    rollouts_only: bool = False,
) -> dict:
    """Train and publish the policy, or with ``rollouts_only`` record its trees; returns the run's final numbers."""
    spec = RunSpec.here(preset, overrides, name, replay, rollouts_only)
    params = spec.params
    with (
        concurrency_slot(params.run.gpu_limit),
        cluster(params.run.task_runner) as workers,
        open_session(
            params, spec.inputs, replay=replay, rollouts_only=rollouts_only, map_shards=shard_mapper(workers)
        ) as session,
        training_trackers(spec, session) as log_metrics,
    ):
        version_milestones(spec, session.run, params.run.milestone_every)  # those of a flow that was killed
        while not session.finished:
            iteration = Iteration(str(session.run.path), session.iteration + 1)
            collect_rollouts(iteration)
            assign_advantages(iteration)
            metrics = keep_rollouts(iteration) if rollouts_only else update_policy(iteration)
            log_metrics(metrics)
            if session.at_milestone:
                version_milestones(spec, session.run, params.run.milestone_every)
        if rollouts_only:
            return recorded_rollouts(session)
        version_milestones(spec, session.run, params.run.milestone_every)
        say_why_finished(session)
        final = publish_training(session, spec)
        publish_provenance(session, spec)
    record_outputs(spec, "train")
    return final


def command(
    preset: cli.Preset = None,
    set_: cli.Overrides = None,
    name: cli.Name = None,
    replay: cli.Replay = None,
    rollouts_only: cli.RolloutsOnly = False,
    dry_run: cli.DryRun = False,
    quiet: cli.Quiet = False,
) -> None:
    """Train the policy from checkpoints/warmup; continues where an interrupted run stopped."""
    if dry_run:
        if replay is not None or rollouts_only:
            raise ConfigError("--dry-run tells of ordinary runs; leave out --replay and --rollouts-only")
        spec = RunSpec.here(preset, set_ or (), name)
        params = spec.params
        open_project(Path.cwd())
        sources(params)  # raises where a function of the project's own does not fit
        check_trackers(params)
        print_dry_run(params)
        print_example(params, spec.inputs)
        return
    spec = RunSpec.here(preset, set_ or (), name, replay, rollouts_only)
    check_training(spec.params, spec.inputs, replay=replay, rollouts_only=rollouts_only)
    check_trackers(spec.params)
    with cli.served():
        result = train(preset, spec.overrides, name, replay, rollouts_only)
    if rollouts_only:
        print(f"rollouts of {result['iterations']} iterations: {result['folder']}; train on them with --replay")
        return
    print(invitation(spec.paths, run_address(spec.run_name), spec.run_name or "main"))


if __name__ == "__main__":
    cli.main(command)
