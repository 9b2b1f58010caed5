"""The lighteval process of one evaluation: ``python -m spo_core.evaluate.lighteval.child SCRATCH PARENT DESCRIPTOR``.

Runs in lighteval's environment, in the scratch folder, with the project on PYTHONPATH, and ends with the process
``PARENT``. It imports lighteval, which takes longest, before it reads what is asked of it. Then it forks a process that
serves lighteval's metric at the socket of that descriptor until the other end is closed: its imports are shared.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path

from spo_core.evaluate.lighteval import exchange
from spo_core.evaluate.lighteval.exchange import Request
from spo_core.system.processes import die_with

log = logging.getLogger("spo_core.evaluate")


def main(scratch: Path, parent: int, descriptor: int) -> None:
    die_with(parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    log.info("importing lighteval")
    gc.disable()  # collecting while 6000 modules load would take a tenth of the time
    from spo_core.evaluate.lighteval import extractive_match
    from spo_core.evaluate.lighteval.pipeline import evaluate

    gc.freeze()
    gc.enable()
    if os.fork() == 0:  # before torch has threads
        extractive_match.serve_metric(descriptor)
    os.close(descriptor)
    request = Request.read(scratch)
    answers, report = evaluate(request, scratch)
    exchange.write_answers(scratch, answers)
    exchange.write_report(scratch, report)
    log.info("done")
    logging.shutdown()
    os._exit(0)  # everything is written, and the interpreter's own exit would take seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
