"""When things run. Settings that Prefect and OpenMP read as they are imported stand here."""

import os

# a waiting OpenMP thread that spins takes the core from whoever works: beside other processes, 4 to 9 times slower
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# what a run logs is kept by the server; the terminal has progress bars, and one message where something fails
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
