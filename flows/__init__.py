"""When things run. Prefect reads its logging settings as it is imported, so a quiet console is asked for here."""

import os

os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
