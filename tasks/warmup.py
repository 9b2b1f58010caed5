"""Warm-up of the policy."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.observe.bars import bar
from spo_core.system.files import write_csv, write_json
from spo_core.train.warmup import warm_up
from tasks.provenance import caller
from tasks.records import RunSpec


@task(name="warm up", cache_policy=NO_CACHE, persist_result=False)
def warm_up_policy(spec: RunSpec) -> dict:
    """Warm up and publish checkpoints/warmup, its metrics and its loss curve; returns steps and the last loss."""
    params, paths = spec.params, spec.paths
    with bar("warm-up", params.policy.warmup.steps, unit="step") as progress:

        def show(step: int, loss: float) -> None:
            progress.set_postfix(loss=f"{loss:.3f}")
            progress.update(step - progress.n)

        rows = warm_up(params, paths, show, caller(spec))
    final = {"steps": len(rows), "loss": rows[-1]["warmup/loss"]} if rows else {"steps": 0}
    write_json(paths.metrics("warmup"), final | {"seconds": round(sum(row["timing/step"] for row in rows), 2)})
    write_csv(paths.plots("warmup"), [{"step": r["iteration"], "loss": r["warmup/loss"]} for r in rows])
    return final
