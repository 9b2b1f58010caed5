"""Opens the cluster that ``run.task_runner`` names, once for a flow, and maps tasks over it."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from prefect import Task
from prefect.task_runners import TaskRunner

from spo_core.config import DaskRunner, RayRunner, TaskRunnerParams
from spo_core.errors import ConfigError, EngineError, type_and_line

LOOPBACK = "127.0.0.1"
RAY_MEMORY = 128 * 2**20  # bytes of Ray's object store, which holds a few small records
FIRST_WORKER = 60.0  # seconds in which a Dask cluster at a given address must have a worker


@dataclass(frozen=True, slots=True)
class Cluster:
    """A started Prefect task runner; ``runner`` None runs tasks in this process.

    ``lost``: exceptions that the runner raises where workers died too often.
    """

    name: str
    runner: TaskRunner | None = None
    lost: tuple[type[Exception], ...] = ()

    def map(self, task: Task, calls: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        """Yield the results of a task's calls in order; calls run one after the other, or all at once on the cluster.
        Raises what a task raised, and EngineError where workers died."""
        if self.runner is None:
            for call in calls:
                yield task(**call)
            return
        try:
            futures = [self.runner.submit(task, dict(call)) for call in calls]
            for future in futures:
                yield future.result()
        except self.lost as error:
            raise EngineError(
                f"run.task_runner {self.name}: task {task.name!r}: its workers died ({type_and_line(error)}); "
                "see the cluster's logs, and run the same command again to go on"
            ) from None


@contextmanager
def cluster(params: TaskRunnerParams) -> Iterator[Cluster]:
    """Connect to a cluster, or start one on this machine that no other can reach, while the context lasts.

    Raises ConfigError where the extra is missing, nothing answers at the address, or no worker could ever take a task.
    """
    if isinstance(params, DaskRunner):
        _need("prefect_dask", params)
        with _dask(params) as opened:
            yield opened
    elif isinstance(params, RayRunner):
        _need("prefect_ray", params)
        with _ray(params) as opened:
            yield opened
    else:
        yield Cluster("local")


def _need(module: str, params: TaskRunnerParams) -> None:
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"run.task_runner {params.type} needs the extra: pip install -e '.[cluster]'")


@contextmanager
def _dask(params: DaskRunner) -> Iterator[Cluster]:
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker
    from prefect_dask import DaskTaskRunner

    settings: dict[str, Any] = {"address": params.address}
    if params.address is None:
        own = {"n_workers": params.workers, "threads_per_worker": 1, "host": LOOPBACK, "dashboard_address": None}
        settings = {"cluster_kwargs": own | {"memory_limit": None, "security": True}}  # TLS: known to this flow alone
    runner = DaskTaskRunner(**settings)
    with ExitStack() as stack:
        try:
            stack.enter_context(runner)
            client = runner.client
        except (OSError, TimeoutError) as error:
            raise ConfigError(f"run.task_runner.address {params.address}: {type_and_line(error)}") from None
        if params.address is not None:
            try:
                client.wait_for_workers(1, timeout=FIRST_WORKER)
            except TimeoutError:
                raise ConfigError(
                    f"run.task_runner.address {params.address}: no worker within {FIRST_WORKER:g} s; start some"
                ) from None
            from spo_core.train.shards import close_worker_later  # with torch, which most flows do without

            # the workers outlive this flow; the engines that they keep for it must not, once their shard is done
            stack.callback(_quietly, lambda: client.run(close_worker_later, wait=False))
        yield Cluster("dask", runner, (KilledWorker, FutureCancelledError, CommClosedError))


@cache
def _ray_token() -> str:
    """The token of this process's clusters: one, as Ray remembers the first, and each stage starts a cluster."""
    return secrets.token_hex(32)


@contextmanager
def _ray(params: RayRunner) -> Iterator[Cluster]:
    own: dict[str, str] = {}
    if params.address is None:
        own = {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the only setting that makes Ray listen on loopback alone
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": _ray_token(),
        }
    with _environment(own | {"RAY_USAGE_STATS_ENABLED": "0"}), ExitStack() as stack:
        import ray
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options

        settings: dict[str, Any] = {"address": params.address}
        if params.address is None:
            local = {"address": "local", "num_cpus": params.workers, "include_dashboard": False}
            settings = {"init_kwargs": local | {"object_store_memory": RAY_MEMORY}}
        elif params.address == "auto":
            settings = {"init_kwargs": {"address": "auto"}}
        options: dict[str, Any] = {"num_cpus": 1}
        if params.gpus:
            options |= {"num_gpus": params.gpus}  # Ray ends such a worker after its shard, which frees the GPU
        runner = RayTaskRunner(**settings)
        try:
            stack.enter_context(runner)
        except (OSError, TimeoutError, RuntimeError) as error:
            raise ConfigError(f"run.task_runner.address {params.address}: {type_and_line(error)}") from None
        if not has_room(ray.nodes(), params.gpus):
            raise ConfigError(
                f"run.task_runner: no node of Ray's cluster has a CPU and {params.gpus:g} GPUs; add one, or lower gpus"
            )
        stack.enter_context(remote_options(**options))
        yield Cluster("ray", runner, (ray.exceptions.RayError,))


def has_room(nodes: Sequence[Mapping[str, Any]], gpus: float) -> bool:
    """Whether one of ``ray.nodes()`` could ever run a shard's task; Ray itself would wait for one that can."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return any(found.get("CPU", 0) >= 1 and found.get("GPU", 0) >= gpus for found in resources)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables in this context; processes started in it keep them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _quietly(call: Callable[[], object]) -> None:
    with suppress(Exception):  # the workers may be gone, and the flow has its result
        call()
