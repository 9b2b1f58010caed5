"""Every path the pipeline reads and publishes; ``dvc.yaml`` names the same ones (tests hold the two together)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """``root`` holds params/ and dvc.yaml. The main run publishes there, a run with overrides below outputs/runs/."""

    root: Path
    run_name: str | None = None

    @property
    def output(self) -> Path:
        return self.root if self.run_name is None else self.root / "outputs" / "runs" / self.run_name

    @property
    def work(self) -> Path:
        """Working state; outside every DVC output, so that no stage deletes it."""
        return Path(os.environ.get("SPO_WORK_DIR") or self.root / "work")

    def data(self, problem_set: str) -> Path:
        return self.output / "data" / problem_set

    def checkpoint(self, name: str) -> Path:
        """``warmup``, ``final``, or ``best`` by validation accuracy."""
        return self.output / "checkpoints" / name

    def milestone(self, run: str, iteration: int) -> Path:
        """Policy of a milestone, by the name of its run's working directory; outside every stage's outputs, so that DVC
        can version it while the stage runs."""
        return self.root / "outputs" / "milestones" / run / f"{iteration:06d}"

    def metrics(self, name: str) -> Path:
        return self.output / "metrics" / f"{name}.json"

    def evaluation(self, checkpoint: str, cell: str) -> Path:
        """Score of a cell; the Parquet file beside it has every completion."""
        return self.output / "metrics" / "evaluate" / checkpoint / f"{cell}.json"

    def foreign_evaluation(self, label: str, suite: str, cell: str) -> Path:
        """Path of a cell evaluated for a policy that is no checkpoint of this run, or in a suite that is not the run's
        own."""
        return self.root / "outputs" / "evaluations" / label / suite / f"{cell}.json"

    def nightly(self, date: str) -> Path:
        return self.root / "reports" / "nightly" / f"{date}.json"

    def plots(self, name: str) -> Path:
        return self.output / "plots" / f"{name}.csv"

    @property
    def training(self) -> Path:
        """What a finished training run leaves to read: manifest, metrics of every iteration, the last one's trees."""
        return self.output / "metrics" / "train"

    @property
    def report(self) -> Path:
        return self.output / "report"

    @property
    def evaluation_python(self) -> Path:
        """Interpreter of lighteval's environment."""
        return Path(os.environ.get("SPO_EVAL_PYTHON") or self.root / ".venv-evaluate" / "bin" / "python")

    @property
    def evaluation_constraints(self) -> Path:
        """Exact versions of lighteval's environment."""
        return self.root / "constraints" / "evaluate.txt"
