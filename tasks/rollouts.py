"""Rollouts of one iteration."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.observe.bars import bar
from spo_core.train.opening import session
from spo_core.train.session import Session
from spo_core.train.shards import MapShards, QuestionShard, ShardDone, sample_shard
from spo_core.train.steps import keep_step, replay_step, rollout_step
from tasks.cluster import Cluster
from tasks.records import Iteration


@task(name="rollout", cache_policy=NO_CACHE, persist_result=False)
def collect_rollouts(iteration: Iteration) -> dict:
    """Sample and grade trees with the present policy or, in a replay, take recorded ones; writes trees.parquet."""
    current = session(iteration.run_directory)
    if current.recorded is not None:
        return replay_step(current, iteration.number)
    with bar("rollout", None, unit="tok", inner=True) as progress:

        def show(responses: int, tokens: int) -> None:
            progress.set_postfix(responses=responses)
            progress.update(tokens - progress.n)

        return rollout_step(current, iteration.number, show)


@task(name="sample shard", cache_policy=NO_CACHE, persist_result=False)
def collect_shard(shard: QuestionShard) -> ShardDone:
    """Sample and grade a shard of an iteration's questions in a worker; see ``spo_core.train.shards``."""
    return sample_shard(shard)


def shard_mapper(workers: Cluster) -> MapShards | None:
    """Function by which a session has shards sampled on a cluster; None where it samples all questions itself."""
    if workers.runner is None:
        return None
    return lambda shards: workers.map(collect_shard, [{"shard": shard} for shard in shards])


@task(name="keep", cache_policy=NO_CACHE, persist_result=False)
def keep_rollouts(iteration: Iteration) -> dict:
    """Complete an iteration that trains nothing, and return its metrics."""
    return keep_step(session(iteration.run_directory), iteration.number)


def recorded_rollouts(current: Session) -> dict:
    """Folder, iterations and generated tokens of a run that only samples."""
    return {
        "folder": str(current.run.path),
        "iterations": current.iteration,
        "generated_tokens": current.generated_tokens,
    }
