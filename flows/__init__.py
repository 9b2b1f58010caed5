"""When things run. Settings that Prefect reads as it is imported stand here."""

import logging
import os
import sys
import tempfile

from spo_core.system.processes import die_with_parent

# what a run logs is kept by the server; the terminal has progress bars, and one message where something fails
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

# what is worth a line there, and not warnings alone; prefect.toml hands these loggers to the server
for name in ("spo_core", "tasks"):
    logging.getLogger(name).setLevel(logging.INFO)

# Prefect makes its home as it is imported; a dry run writes nothing
if "--dry-run" in sys.argv:
    os.environ["PREFECT_HOME"] = tempfile.gettempdir()

# a killed make or ``dvc repro`` leaves no process behind that would hold the run's lock
if "MAKELEVEL" in os.environ or "DVC_STAGE" in os.environ:
    die_with_parent()
