"""``make worker``: Prefect's workers for the process pools of prefect.yaml. When told to end they wait for their runs,
which the worker of Prefect's own command would kill."""

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

LEVEL = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"  # INFO, so that a worker's terminal shows what its runs do
TICK = 0.5  # seconds between checks whether runs are under way
MANY = 10_000  # runs at once: Prefect counts a worker's runs only where it has a limit


def command(
    pools: Annotated[list[str] | None, typer.Argument(metavar="POOL...", help="Only these; all by default.")] = None,
    inside: Annotated[bool, typer.Option("--inside", hidden=True)] = False,
) -> None:
    """Run what is due in the pools. The first interrupt or SIGTERM waits for the runs under way, the second ends them,
    the third kills them."""
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
    """Run the workers in a child process and pass signals on, until told to end. Raises SPOError where one failed."""
    told: list[int] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.worker", "--inside", *pools],
        env=os.environ | {LEVEL: "INFO"},
        preexec_fn=_become_worker,
        start_new_session=True,  # or an interrupt from the keyboard would reach the runs too
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
    """Heed SIGINT, by which Prefect cancels runs: a shell that starts make with ``&`` has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    die_with_parent()


async def work(pools: list[str]) -> None:
    """Run one worker for each pool until SIGTERM or until one fails, then wait for the runs under way."""
    workers = [ProcessWorker(work_pool_name=pool, limit=MANY) for pool in pools]
    polls = [worker.get_and_submit_flow_runs for worker in workers]
    ending = asyncio.Event()

    async def poll(number: int) -> None:
        if not ending.is_set():
            await polls[number]()

    for number, worker in enumerate(workers):  # patched: Prefect would register a subclass as its process worker
        worker.get_and_submit_flow_runs = partial(poll, number)  # type: ignore[method-assign,assignment]
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    # asyncio's tasks: cancelling anyio's would also interrupt a worker's own clean-up
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
