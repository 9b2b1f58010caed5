"""``make worker``: Prefect's workers for the pools of processes that prefect.yaml has; told to end, they wait for their
runs. Prefect's own command does not: its worker kills them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from prefect.workers.process import ProcessWorker

from flows import cli
from flows.deploy import check_server, read_pools
from spo_core.errors import ConfigError, SPOError
from spo_core.system.processes import die_with_parent

LEVEL = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"  # a worker's terminal says what its runs do
TICK = 0.5  # seconds between looks at the runs
MANY = 10_000  # runs at once; Prefect counts those of a worker that has a limit


def command(
    pools: Annotated[list[str] | None, typer.Argument(metavar="POOL...", help="Only these; all by default.")] = None,
    inside: Annotated[bool, typer.Option("--inside", hidden=True)] = False,
) -> None:
    """Run what is due in the pools. The first interrupt or SIGTERM lets the runs under way end, the second ends them
    too, the third kills."""
    if inside:
        asyncio.run(work(pools or []))
        return
    check_server()
    here = [pool.name for pool in read_pools(Path.cwd()) if pool.type == "process"]
    for name in pools or ():
        if name not in here:
            raise ConfigError(f"{name}: no pool of processes in prefect.yaml; there are: {', '.join(here)}")
    supervise(pools or here)


def supervise(pools: list[str]) -> None:
    """Returns when the workers were told to end and did; raises SPOError where one failed."""
    told: list[int] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.worker", "--inside", *pools],
        env=os.environ | {LEVEL: "INFO"},
        preexec_fn=_become_worker,
        start_new_session=True,  # out of reach of the keyboard, whose interrupt would end the runs too
    )

    def tell(number: int, _: object) -> None:
        told.append(number)
        if len(told) == 1:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGTERM if len(told) == 2 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, tell)
    status = process.wait()
    if not told or (len(told) == 1 and status > 0):
        raise SPOError(f"a worker failed, so all ended (exit status {status}); its last words stand above")


def _become_worker() -> None:
    """Runs are cancelled by an interrupt, which a shell has ignored where it starts make with ``&``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent()


async def work(pools: list[str]) -> None:
    """One worker for each pool, until SIGTERM comes, or one of them fails, and the runs under way have ended."""
    workers = [ProcessWorker(work_pool_name=pool, limit=MANY) for pool in pools]
    polls = [worker.get_and_submit_flow_runs for worker in workers]
    ending = asyncio.Event()

    async def poll(number: int) -> None:
        if not ending.is_set():
            await polls[number]()

    for number, worker in enumerate(workers):  # a subclass would be Prefect's process worker from then on
        worker.get_and_submit_flow_runs = partial(poll, number)  # type: ignore[method-assign,assignment]
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    # not anyio's tasks: their cancellation would break off a worker's own tidying too
    tasks = [asyncio.create_task(worker.start()) for worker in workers]
    for task in tasks:
        task.add_done_callback(lambda _: ending.set())
    await ending.wait()
    print("no more runs are started; ending when those under way have ended", flush=True)
    while any(worker.is_setup and worker.limiter.borrowed_tokens for worker in workers):
        await asyncio.sleep(TICK)
    failed = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        task.result()


if __name__ == "__main__":
    cli.main(command)
