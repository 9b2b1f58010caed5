"""Every path that the pipeline reads and publishes; a test holds them to those of ``dvc.yaml``."""

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
        """Folder that the run publishes to."""
        return self.root if self.run_name is None else self.root / "outputs" / "runs" / self.run_name

    @property
    def work(self) -> Path:
        """Working state; outside every DVC output, so that no stage deletes it."""
        return Path(os.environ.get("SPO_WORK_DIR") or self.root / "work")

    def data(self, problem_set: str) -> Path:
        return self.output / "data" / problem_set

    def checkpoint(self, name: str) -> Path:
        """Folder of a policy: ``warmup``, ``final``, or ``best`` by validation accuracy."""
        return self.output / "checkpoints" / name

    def milestone(self, run: str, iteration: int) -> Path:
        """Folder of a milestone's policy; ``run`` is the name of the working directory. It lies outside every stage's
        outputs, so that DVC can version it while the stage runs."""
        return self.root / "outputs" / "milestones" / run / f"{iteration:06d}"

    def metrics(self, name: str) -> Path:
        return self.output / "metrics" / f"{name}.json"

    def evaluation(self, checkpoint: str, cell: str) -> Path:
        """Path of a cell's score; the Parquet file beside it has every completion."""
        return self.output / "metrics" / "evaluate" / checkpoint / f"{cell}.json"

    def foreign_evaluation(self, label: str, suite: str, cell: str) -> Path:
        """Path of a cell's score for a policy that is no checkpoint of this run, or in another suite than the run's."""
        return self.root / "outputs" / "evaluations" / label / suite / f"{cell}.json"

    def nightly(self, date: str) -> Path:
        return self.root / "reports" / "nightly" / f"{date}.json"

    def analysis(self, name: str) -> Path:
        """Folder of an analysis: its JSON and its page."""
        return self.root / "reports" / "analysis" / name

    def plots(self, name: str) -> Path:
        return self.output / "plots" / f"{name}.csv"

    @property
    def training(self) -> Path:
        """Folder of what a finished training leaves to read: manifest, metrics, and the last iteration's trees."""
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
