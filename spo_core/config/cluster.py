"""``run.task_runner`` of ``params/run.yaml``: the process or cluster that runs mapped tasks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from spo_core.config.namespace import Namespace


class LocalRunner(Namespace):
    """The flow's own process; nothing is mapped over workers."""

    type: Literal["local"]

    @property
    def shards(self) -> int:
        """Number of shards that an iteration's questions are divided into."""
        return 1


class _Cluster(Namespace):
    workers: int = Field(default=2, ge=1)
    """Shards that an iteration's questions are divided into; also the processes (Dask) or CPUs (Ray) of a cluster that
    is started here."""
    address: str | None = None
    """Address of a Dask scheduler, as tcp://host:8786, or of a Ray cluster, as ray://host:10001 or auto; null starts
    one on this machine for the length of the flow."""

    @property
    def shards(self) -> int:
        """Number of shards that an iteration's questions are divided into."""
        return self.workers


class DaskRunner(_Cluster):
    """A Dask cluster, by prefect-dask; needs the extra ``cluster``."""

    type: Literal["dask"]


class RayRunner(_Cluster):
    """A Ray cluster, by prefect-ray; needs the extra ``cluster``."""

    type: Literal["ray"]
    gpus: float = Field(default=0.0, ge=0)
    """GPUs that one mapped task reserves."""


TaskRunnerParams = Annotated[LocalRunner | DaskRunner | RayRunner, Field(discriminator="type")]
