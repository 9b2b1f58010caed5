"""The update of one iteration, and what a finished run publishes."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.observe.bars import bar
from spo_core.runs.directory import step_seconds
from spo_core.system.files import atomic_directory, publish, write_csv, write_json
from spo_core.train.opening import session
from spo_core.train.session import Session
from spo_core.train.steps import find_best, train_step
from tasks.records import Iteration, RunSpec

log = logging.getLogger(__name__)


@task(name="train", cache_policy=NO_CACHE, persist_result=False)
def update_policy(iteration: Iteration) -> dict:
    """Train on the iteration's trees and credits, and complete the iteration; returns its metrics."""
    with bar("update", None, unit="step", inner=True) as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        return train_step(session(iteration.run_directory), iteration.number, show)


def say_why_finished(current: Session) -> None:
    """Warn where a run ends before ``run.iterations``, naming the limit that it has reached."""
    if current.iteration < current.params.run.iterations:
        log.warning(
            "the run ends after iteration %d by %s; raise it to go on from here",
            current.iteration,
            current.why_finished,
        )


def publish_training(current: Session, spec: RunSpec) -> dict:
    """Publish checkpoints/final and best, metrics/train, plots/train.csv, and metrics/train.json, which it returns."""
    paths, rows, best = spec.paths, current.run.read_metrics(), find_best(current)
    publish(current.run.checkpoint(current.iteration) / "policy", paths.checkpoint("final"))
    publish(current.run.best(best.iteration) / "policy", paths.checkpoint("best"))
    with atomic_directory(paths.training) as folder:
        for source in current.run.records(current.iteration):
            publish(source, folder / source.name)
    seconds = sum(map(step_seconds, rows))
    final = {
        "iterations": current.iteration,
        "generated_tokens": current.generated_tokens,
        "reward_first": rows[0]["rollout/reward"],
        "reward_last": rows[-1]["rollout/reward"],
        "best_iteration": best.iteration,
        "best_validation_accuracy": best.accuracy,
        "skipped_iterations": sum(row["train/skipped"] for row in rows),
        "seconds": round(seconds, 2),
    }
    write_json(paths.metrics("train"), final)
    write_csv(paths.plots("train"), [{c.split("/")[-1]: row[c] for c in PLOTTED} for row in rows])
    return final


PLOTTED = ("iteration", "generated_tokens", "rollout/reward", "rollout/completion_tokens", "credit/mask_share")
