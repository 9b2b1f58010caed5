"""What passes between tasks: paths, names and a few numbers. Never tensors, never rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spo_core.config import Params, digest, load_params
from spo_core.paths import Paths
from spo_core.problems import problem_set


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Which params and which outputs: all a flow is told. Without overrides it is the main run, which DVC records.

    ``replay`` is a directory of recorded rollouts to train on; ``rollouts_only`` samples and trains nothing; ``suite``
    replaces that of the params.
    """

    root: str
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    name: str | None = None
    replay: str | None = None
    rollouts_only: bool = False
    suite: str | None = None

    @classmethod
    def here(
        cls,
        preset: str | None = None,
        overrides: Sequence[str] = (),
        name: str | None = None,
        replay: str | None = None,
        rollouts_only: bool = False,
        suite: str | None = None,
    ) -> RunSpec:
        """A run of the project in the current folder, as for DVC and Prefect; its params are validated at once."""
        spec = cls(str(Path.cwd()), preset, tuple(overrides), name, replay, rollouts_only, suite)
        problem_set(spec.params.data)
        return spec

    @property
    def params(self) -> Params:
        return load_params(Path(self.root), self.preset, self.overrides, self.suite)

    @property
    def run_name(self) -> str | None:
        """Name below outputs/runs; None for the main run. Replays have ``replay`` behind, so as to replace no run."""
        changed = digest(self.overrides)[:8] if self.overrides else ""
        chosen = (self.name,) if self.name else (self.preset, changed)
        debugging = "replay" if self.replay is not None else "rollouts" if self.rollouts_only else ""
        return "-".join(part for part in (*chosen, debugging) if part) or None

    @property
    def paths(self) -> Paths:
        """Where it publishes."""
        return Paths(Path(self.root), self.run_name)

    @property
    def inputs(self) -> Paths:
        """Where its dataset and first policy lie: an ordinary run has its own.

        For a replay and for rollouts alone nothing is prepared. They read those of the run they are named after, else
        of its preset, else of the main run: the first that is there and was made with the same params.
        """
        own = replace(self, replay=None, rollouts_only=False)
        if own != self:
            for spec in (own, RunSpec(self.root, self.preset), RunSpec(self.root)):
                if (spec.paths.checkpoint("warmup") / "config.json").is_file() and own._prepared_as(spec):
                    return spec.paths
        return own.paths

    def _prepared_as(self, other: RunSpec) -> bool:
        """Whether the params that decide dataset and first policy are the same."""
        a, b = self.params, other.params
        unused = {"max_question_tokens"}
        return a.policy == b.policy and a.data.model_dump(exclude=unused) == b.data.model_dump(exclude=unused)


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration of an open training session, named by the session's run directory."""

    run_directory: str
    number: int
