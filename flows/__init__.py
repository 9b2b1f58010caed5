"""Prefect flows: when things run. This file makes the settings that Prefect reads when it is imported."""

import logging
import os
import sys
import tempfile

from spo_core.system.processes import die_with_parent
from spo_core.system.startup import begin_quietly

if sys.argv[:1] == ["-m"]:  # python -m flows.<name> is about to import it, which takes seconds
    begin_quietly()

# Prefect's server keeps a run's log; the terminal shows progress bars, and one message where something fails
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")  # events that a server which went away does not get

# the server's log gets INFO of these loggers, not warnings alone; prefect.toml hands them to the server
for name in ("spo_core", "tasks"):
    logging.getLogger(name).setLevel(logging.INFO)

# importing Prefect makes its home folder, and a dry run must not write into the project
if "--dry-run" in sys.argv:
    os.environ["PREFECT_HOME"] = tempfile.gettempdir()

# end with make or ``dvc repro``: a process left behind would hold the run's lock
if "MAKELEVEL" in os.environ or "DVC_STAGE" in os.environ:
    die_with_parent()
