"""What passes between tasks: paths, names and a few numbers. Never tensors, never rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spo_core.config import Params, digest, load_params
from spo_core.paths import Paths
from spo_core.problems import problem_set


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Which params and which outputs: all a flow is told. Without overrides it is the main run, which DVC records."""

    root: str
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    name: str | None = None

    @classmethod
    def here(cls, preset: str | None = None, overrides: Sequence[str] = (), name: str | None = None) -> RunSpec:
        """A run of the project in the current folder, as for DVC and Prefect; its params are validated at once."""
        spec = cls(str(Path.cwd()), preset, tuple(overrides), name)
        problem_set(spec.params.data.problem_set)
        return spec

    @property
    def params(self) -> Params:
        return load_params(Path(self.root), self.preset, self.overrides)

    @property
    def run_name(self) -> str | None:
        """Name below outputs/runs; None for the main run."""
        if self.name or not (self.preset or self.overrides):
            return self.name
        changed = digest(self.overrides)[:8] if self.overrides else ""
        return "-".join(part for part in (self.preset, changed) if part)

    @property
    def paths(self) -> Paths:
        return Paths(Path(self.root), self.run_name)


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration of an open training session, named by the session's run directory."""

    run_directory: str
    number: int
