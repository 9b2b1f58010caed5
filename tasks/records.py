"""Records that flows and tasks hand on: paths, names and a few numbers. Never tensors, never rollouts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from spo_core.config import Params, digest, load_params
from spo_core.errors import ConfigError
from spo_core.evaluate.models import CHECKPOINTS
from spo_core.paths import Paths
from spo_core.problems import problem_set

FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
EVALUATION = ("evaluate.", "verify.")  # namespaces that evaluation reads; training reads verify too


@dataclass(frozen=True)
class RunSpec:
    """All that a flow is told: which params, which outputs. Without overrides it is the main run, which DVC records.

    ``replay`` is a directory of recorded rollouts to train on; ``rollouts_only`` samples and trains nothing; ``suite``
    replaces that of the params. Where ``evaluates`` is set, overrides of evaluation do not name another run.
    """

    root: str
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    name: str | None = None
    replay: str | None = None
    rollouts_only: bool = False
    suite: str | None = None
    evaluates: bool = False

    @classmethod
    def here(
        cls,
        preset: str | None = None,
        overrides: Sequence[str] = (),
        name: str | None = None,
        replay: str | None = None,
        rollouts_only: bool = False,
        suite: str | None = None,
        evaluates: bool = False,
    ) -> RunSpec:
        """The spec of a run of the project in the current folder. Raises ConfigError where its params are refused, and
        for a ``name`` that is none of a folder."""
        if name is not None and not FOLDER.fullmatch(name):
            raise ConfigError(
                f"--name {name!r} names a folder: letters, digits, dot, dash and underscore only, 100 at most, "
                "the first a letter or digit"
            )
        spec = cls(str(Path.cwd()), preset, tuple(overrides), name, replay, rollouts_only, suite, evaluates)
        problem_set(spec.params.data)
        return spec

    @cached_property
    def params(self) -> Params:
        """Resolved params, read once; later changes of the files do not count."""
        return load_params(Path(self.root), self.preset, self.overrides, self.suite)

    @property
    def run_name(self) -> str | None:
        """Name below outputs/runs, None for the main run; replays end in ``replay``, so that they replace no run."""
        decide = tuple(o for o in self.overrides if not (self.evaluates and o.startswith(EVALUATION)))
        changed = digest(decide)[:8] if decide else ""
        chosen = (self.name,) if self.name else (self.preset, changed)
        debugging = "replay" if self.replay is not None else "rollouts" if self.rollouts_only else ""
        return "-".join(part for part in (*chosen, debugging) if part) or None

    def owns(self, model: str) -> bool:
        """Whether ``model`` is one of the run's checkpoints, evaluated with the run's own params: such scores stand
        among the run's metrics, others below outputs/evaluations."""
        other = self.suite is not None or (self.name is None and any(o.startswith(EVALUATION) for o in self.overrides))
        return model in CHECKPOINTS and not other

    @property
    def paths(self) -> Paths:
        """Paths to which the run publishes."""
        return Paths(Path(self.root), self.run_name)

    @property
    def inputs(self) -> Paths:
        """Paths of the run's dataset and first policy: its own, else its preset's, else the main run's; the first that
        exist and whose params are the same. So a run that changes only how it learns uses those of another.

        Whether params were edited after these were made is not checked here: DVC does, and the run's manifest has
        their digests."""
        own = replace(self, replay=None, rollouts_only=False)
        for spec in (own, RunSpec(self.root, self.preset), RunSpec(self.root)):
            prepared = (spec.paths.checkpoint("warmup") / "config.json").is_file()
            if prepared and (spec is own or self._prepared_as(spec)):
                return spec.paths
        return own.paths

    def _prepared_as(self, other: RunSpec) -> bool:
        """Whether the params that decide dataset and first policy are the same."""
        a, b = self.params, other.params
        unused = {"max_question_tokens"}
        return a.policy.first == b.policy.first and a.data.model_dump(exclude=unused) == b.data.model_dump(
            exclude=unused
        )


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration of an open training session, named by the session's run directory."""

    run_directory: str
    number: int
