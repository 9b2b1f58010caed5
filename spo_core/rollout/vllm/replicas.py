"""Servers and requests of a group: all that runs in the group's event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from spo_core.errors import EngineError
from spo_core.rollout.engine import Completion, Request
from spo_core.rollout.vllm.client import Failed
from spo_core.rollout.vllm.engine import ATTEMPTS
from spo_core.rollout.vllm.server import VllmServer

log = logging.getLogger(__name__)
PAUSE_SECONDS = 0.5  # before a failed request is sent again
WATCH_SECONDS = 30.0


class Replicas:
    """Runs every request as a task: it goes to its tree's server, is sent again with the same seed when it fails, waits
    while its server is started again, and ends in a call of ``done`` with its completion or the error that ends all.
    """

    def __init__(self, servers: Sequence[VllmServer], done: Callable[[Completion | Exception], None]) -> None:
        self.servers, self.done = servers, done
        self.restarts = 0
        self._deaths = 0  # of servers since the last version
        self._version: int | None = None
        self._weights: Path | None = None  # folder of the present policy
        self._homes: dict[str, VllmServer] = {}  # tree -> the server that has its prefixes in its cache
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await asyncio.gather(*(server.start() for server in self.servers))
        self._tasks |= {asyncio.create_task(self._watch(server)) for server in self.servers}

    def begin(self, request: Request) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(request, self._home(request)))
        self._tasks.add(task)  # the loop itself holds no strong reference
        task.add_done_callback(self._tasks.discard)

    async def load(self, version: int, weights: Path) -> None:
        """Have servers load the policy of this version from a Hugging Face folder; no request may be under way."""
        self._version, self._weights, self._deaths = version, weights, 0
        self._homes.clear()
        for server in self.servers:
            server.trees = 0
        await asyncio.gather(*(self._load(server, weights) for server in self.servers))

    async def sleep(self) -> None:
        await asyncio.gather(*(self._sleep(server) for server in self.servers))

    async def end(self) -> None:
        """Cancel everything under way. The processes go on; they can be killed without the loop."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.client.close()

    def _home(self, request: Request) -> VllmServer:
        """Find the server of a request's tree; for a new tree, the one with the fewest open requests."""
        server = self._homes.get(request.tree)
        if server is None:
            server = min(self.servers, key=lambda s: (s.open, s.trees, s.index))
            if request.tree:
                self._homes[request.tree] = server
                server.trees += 1
        server.open += 1
        return server

    async def _serve(self, request: Request, server: VllmServer) -> None:
        try:
            async with server.slots:
                began = time.perf_counter()
                self.done(replace(await self._answer(request, server), began=began))
        except Exception as error:  # of any kind: it ends the run, not only this task
            self.done(error)
        finally:
            server.open -= 1

    async def _answer(self, request: Request, server: VllmServer) -> Completion:
        attempts = 0
        while True:
            async with server.lock:  # a server that starts again has no weights of the policy yet
                life = server.life
            try:
                return await server.client.generate(request, self._version)
            except Failed as error:
                if await self._revived(server, life):
                    continue
                attempts += 1
                if attempts == ATTEMPTS:
                    raise EngineError(f"{server} failed {ATTEMPTS} times: {error}") from error
                log.warning("%s: %s; sending the request again", server, error)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _revived(self, server: VllmServer, life: int) -> bool:
        """Start a server that died in this life again; False where it is well. Raises EngineError where it does not
        start."""
        async with server.lock:
            if server.life != life:
                return True
            if await server.alive():
                return False
            self._deaths += 1
            if self._deaths > 1:
                server.kill()
                raise EngineError(f"{server} died after a restart. {server.last_lines()}")
            log.warning("%s died; starting it again. %s", server, server.last_lines())
            assert self._weights is not None
            await server.start()
            try:
                await server.load(self._weights)
            except Failed as error:
                raise EngineError(f"{server} died and did not start again: {error}") from error
            self.restarts += 1
            return True

    async def _load(self, server: VllmServer, weights: Path) -> None:
        life = server.life
        try:
            await server.load(weights)
        except Failed as error:
            if not await self._revived(server, life):
                raise EngineError(f"{server} did not load the policy: {error}") from error

    async def _sleep(self, server: VllmServer) -> None:
        try:
            await server.sleep()
        except Failed as error:
            if await server.alive():
                raise EngineError(f"{server} does not give up its memory: {error}") from error
            server.kill()  # its memory is free now; the next policy starts it again

    async def _watch(self, server: VllmServer) -> None:
        """Watch a server, and kill it when it answers no more, so that its requests fail at once."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            async with server.lock:
                try:
                    dead = bool(server.open) and not await server.alive()
                except EngineError as error:  # the watch goes on
                    log.warning("%s: %s", server, error)
                    dead = True
                if dead:
                    server.kill()
