"""``make demo``: runs ``dvc repro`` with one Prefect server and one lighteval for all its stages, then prints the
summary."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flows import cli
from flows.local_server import local_server
from spo_core.errors import SPOError
from spo_core.evaluate.cell import check_environment
from spo_core.evaluate.lighteval.process import lighteval_shared
from spo_core.observe.summary import print_summary
from spo_core.system.processes import die_with_parent
from tasks.records import RunSpec

DVC = (sys.executable, "-m", "dvc")


def command() -> None:
    """Bring every stage of dvc.yaml up to date and show the result; stages that have not changed are not run again."""
    spec = RunSpec.here()
    check_environment(spec.paths)
    if spec.params.run.name and (spec.paths.checkpoint("warmup") / "config.json").is_file():
        from spo_core.train.identity import check_training  # with torch

        check_training(spec.params, spec.paths)  # dvc removes a stage's outputs before the stage can refuse
    root = Path(spec.root)
    if subprocess.run([*DVC, "status", "--quiet"], cwd=root, check=False).returncode == 0:
        print("Nothing changed since the last run.")
    else:
        with lighteval_shared(spec.paths.evaluation_python), local_server(root) as environment:
            status = subprocess.run(
                [*DVC, "repro"], cwd=root, env=environment, check=False, preexec_fn=die_with_parent
            ).returncode
        if status:
            raise SPOError("a stage failed (see above); the same command continues from its last checkpoint")
    print_summary(spec.paths)


if __name__ == "__main__":
    cli.main(command)
