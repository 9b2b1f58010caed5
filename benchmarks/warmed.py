"""The embedded policy after warm-up, from which the benchmarks of sampling start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flows.local_server import local_server
from spo_core.system.processes import die_with_parent
from tasks.records import RunSpec


def warmed_policy() -> Path:
    """Folder of the warmed-up policy: the main run's, or one made once for benchmarks."""
    for spec in (RunSpec.here(), RunSpec.here(name="benchmark-policy")):
        if (spec.paths.checkpoint("warmup") / "config.json").is_file():
            return spec.paths.checkpoint("warmup")
    with local_server(Path.cwd()) as environment:
        for stage in ("prepare", "warmup"):
            run = [sys.executable, "-m", f"flows.{stage}", "--name", "benchmark-policy"]
            subprocess.run(run, check=True, env=environment, preexec_fn=die_with_parent)
    return spec.paths.checkpoint("warmup")
