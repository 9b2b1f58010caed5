"""vLLM as a group of servers: data-parallel replicas behind the one engine that the sampler knows."""

from __future__ import annotations

import asyncio
import queue
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from spo_core.config import VllmEngineParams
from spo_core.rollout.engine import Completion, Request
from spo_core.rollout.vllm.engine import give_memory_back
from spo_core.rollout.vllm.replicas import Replicas
from spo_core.rollout.vllm.server import VllmServer, slots
from spo_core.rollout.vllm.settings import VllmSettings
from spo_core.system.files import atomic_directory

STEP_SECONDS = 0.5  # a step in which nothing finishes lasts so long
CLOSE_SECONDS = 1.0


class VllmGroup:
    """Implements ``rollout.engine.Engine``. ``save`` writes the trainer's present policy into a folder.

    The event loop of ``Replicas`` has a thread of its own, and finished requests come back through a queue. ``folder``
    holds a log for each server and, for as long as they serve it, the present policy. Raises EngineError, and leaves no
    process behind, where a server does not start.
    """

    gives_entropies = False

    def __init__(
        self, settings: VllmSettings, params: VllmEngineParams, save: Callable[[Path], None], folder: Path
    ) -> None:
        self.settings, self.folder = settings, folder.resolve()
        self.version: int | None = None
        self.restarts = 0
        self._params, self._save = params, save
        self._open: dict[int, Request] = {}
        self._done: queue.SimpleQueue[Completion | Exception] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._closed = False
        count = params.servers or 1
        allow_files(count * slots(settings))
        servers = [VllmServer(i, settings, params, self.folder / f"server-{i}.log") for i in range(count)]
        self._replicas = Replicas(servers, self._done.put)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vLLM servers", daemon=True)
        self._thread.start()
        try:
            self._remove_weights(keep=None)  # left by a run that was killed
            self._run(self._replicas.start())
        except BaseException:
            self.close()
            raise

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def submit(self, requests: Iterable[Request]) -> None:
        for request in self.settings.accepted(requests, self.version):
            self._open[request.request_id] = request
            self._loop.call_soon_threadsafe(self._replicas.begin, request)

    def step(self) -> list[Completion]:
        """Return what finished, after waiting at most a moment for the first, so that an interrupt is noticed."""
        done: list[Completion] = []
        while self.busy and (result := self._next(0.0 if done else STEP_SECONDS)) is not None:
            del self._open[result.request_id]
            done.append(result)
        self.restarts = self._replicas.restarts
        return done

    def release(self, request_id: int) -> None:
        """Do nothing: vLLM's cache drops what was not used for longest."""

    def policy_changed(self, version: int) -> None:
        if self.busy:
            raise RuntimeError("the policy changed while requests were being decoded")
        if self._closed:
            raise RuntimeError("the engine is closed")
        self.version = None
        weights = self.folder / f"policy-{version}"
        with atomic_directory(weights) as temporary:
            self._save(temporary)
        give_memory_back()
        self._run(self._replicas.load(version, weights))
        self._remove_weights(keep=weights)
        self.version, self.restarts = version, self._replicas.restarts

    def sleep(self) -> None:
        if self.busy:
            raise RuntimeError("the engine was sent to sleep while requests were being decoded")
        self.version = None
        if self._params.sleep and not self._closed:
            self._run(self._replicas.sleep())

    def close(self) -> None:
        if self._closed:
            return
        self._closed, self.version = True, None
        self._open.clear()
        end = time.monotonic() + 2 * CLOSE_SECONDS
        try:
            ending = asyncio.run_coroutine_threadsafe(self._replicas.end(), self._loop)
            with suppress(Exception):
                ending.result(CLOSE_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_SECONDS / 2)
        finally:
            for server in self._replicas.servers:
                server.kill()
            for server in self._replicas.servers:
                server.wait(end - time.monotonic())
            self._remove_weights(keep=None)
        if not self._thread.is_alive():
            self._loop.close()

    def _next(self, seconds: float) -> Completion | None:
        if self._failure is not None:
            raise self._failure
        try:
            result = self._done.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(result, Exception):
            self._failure = result
            raise result
        return result

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine in the event loop until it ends."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            future.result()
        except BaseException:
            future.cancel()
            raise

    def _remove_weights(self, keep: Path | None) -> None:
        for folder in [*self.folder.glob("policy-[0-9]*"), *self.folder.glob(".policy-[0-9]*")]:
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)


def allow_files(connections: int) -> None:
    """Raise this process's limit of open files to what so many connections and the rest need, as far as it may."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + 1024
        if resource.RLIM_INFINITY != soft < wanted:
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
