"""One vLLM server: its command line, environment, process group, socket and log.

It listens on a Unix socket in a folder that its owner alone may enter. Whoever reaches a server may load weights into
it and call its workers; vLLM's key guards some paths only, and a port is open to every user of the machine."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

import spo_core
from spo_core.config import VllmEngineParams
from spo_core.errors import EngineError
from spo_core.rollout.seeds import derive_seed
from spo_core.rollout.vllm.client import Failed, VllmClient
from spo_core.rollout.vllm.settings import ENVIRONMENT, VllmSettings
from spo_core.system.processes import EXCEPTION

LAUNCHER = "spo_core.rollout.vllm.serve"
SERVER_FLAGS = {
    "tokens_only": True,  # serves /inference/v1/generate
    "enable_prompt_tokens_details": True,  # with the number of cached tokens
    "disable_log_stats": True,
    "disable_uvicorn_access_log": True,
    "uvicorn_log_level": "warning",
    "log_error_stack": False,
}
SERVER_ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",  # serves /collective_rpc, /reset_prefix_cache, /sleep and /wake_up
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
}
# Variables of the trainer's processes, or of an engine in the flow's process, which a server must not inherit.
NOT_INHERITED = {"VLLM_ENABLE_V1_MULTIPROCESSING", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
NOT_INHERITED |= {"GROUP_RANK", "CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"}
WAITING = 64  # requests that a server is given beyond those it decodes, so that it never waits for the next one
HEALTH_TRIES = 3
LAST_LINES = 10
_PREFIX = re.compile(r"^\(\w+ pid=\d+\) (?:(WARNING|ERROR|INFO|CRITICAL) \S+ \S+ \[\S+\] )?")


class VllmServer:
    """Starts and kills one server; every coroutine of it runs in the loop of the group.

    ``life`` counts its starts: of many requests that saw it die only one starts it again, under ``lock``, and no
    request is sent before the lock is free. ``slots`` are the requests it is given at a time; the others wait without a
    connection. ``asleep``: its memory was given up. ``open`` requests and ``trees`` serve to choose a server.
    """

    def __init__(self, index: int, settings: VllmSettings, params: VllmEngineParams, log: Path) -> None:
        self.index, self.settings, self.params, self.log = index, settings, params, log
        self._folder = tempfile.TemporaryDirectory(prefix="spo-", ignore_cleanup_errors=True)  # mode 0700, short path
        private = {"VLLM_RPC_BASE_PATH": self._folder.name}  # for the sockets between vLLM's own processes
        self.environment = environment(index, params, os.environ) | private
        self.client = VllmClient(settings, params.request_seconds, Path(self._folder.name, "vllm"))
        self.lock = asyncio.Lock()
        self.slots = asyncio.Semaphore(slots(settings))
        self.life = self.open = self.trees = 0
        self.asleep = False
        self._process: subprocess.Popen[bytes] | None = None
        self._group: int | None = None  # process group to kill
        self._log_start = 0
        self._draws = 0

    def __str__(self) -> str:
        return f"vLLM server {self.index}"

    async def start(self) -> None:
        """Start the server and wait until it answers and scales log-probs. Raises EngineError, with no process left, if
        not."""
        seconds = self.params.start_seconds
        end = time.monotonic() + seconds
        try:
            self._spawn()
            while not await self.client.healthy():
                if self._ended():
                    raise EngineError(f"{self} did not start. {self.last_lines()}")
                if time.monotonic() > end:
                    raise EngineError(f"{self} did not start in {seconds:g} seconds. {self.last_lines()}")
                await asyncio.sleep(0.1)
            await self.client.scale_logprobs(self.settings.temperature, seconds)
            await self._seed("start")
        except Failed as error:
            self.kill()
            raise EngineError(f"{self} did not start: {error}. {self.last_lines()}") from error
        except BaseException:
            self.kill()
            raise

    async def load(self, weights: Path) -> None:
        await self.client.load(weights, asleep=self.asleep, seconds=self.params.start_seconds)
        self.asleep = False
        await self._seed(weights.name)

    async def sleep(self) -> None:
        if not self.asleep:
            await self.client.sleep(self.params.start_seconds)
            self.asleep = True

    async def alive(self) -> bool:
        """Whether it runs and answers; one that is about to end, or busy, is given some time."""
        for _ in range(HEALTH_TRIES):
            if self._ended():
                return False
            answer = await self.client.healthy()
            if answer is not None:
                return answer
            await asyncio.sleep(0.5)
        return False

    def kill(self) -> None:
        """Kill the server's whole process group at once, without waiting."""
        if self._group is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)
            self._group = None  # its number may go to another process

    def wait(self, seconds: float) -> None:
        """Wait for the end of the killed process, so that it leaves no zombie; the server is not started again."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(seconds, 0.0))
        self._folder.cleanup()

    def last_lines(self) -> str:
        """Summarise the log since the last start, and say where the rest is."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            text = file.read().decode("utf-8", errors="replace")
        return f"Its last words (all of them in {self.log}):\n" + "\n".join(last_words(text))

    def _spawn(self) -> None:
        self.kill()
        self.life += 1
        self.asleep = False
        path = self.client.socket
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(path))
            except OSError as error:  # longer than about 100 bytes, or a file system without sockets
                raise EngineError(f"{self}: no socket at {path} ({error}); set TMPDIR to a short folder") from error
            self._process = self._run(listener)
            self._group = self._process.pid

    def _run(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        options = flags(self.settings.arguments | SERVER_FLAGS)
        command = [sys.executable, "-m", LAUNCHER, str(os.getpid()), str(listener.fileno()), *options]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:  # keep what an earlier process wrote
            output.write(f"=== vLLM server {self.index}, start {self.life}\n".encode())
            output.flush()
            self._log_start = output.tell()
            return subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.PIPE,  # never written to; the launcher notices its end
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    async def _seed(self, name: str) -> None:
        """Seed the server's noise for requests without a seed, other than that of other servers and than any before."""
        if self.settings.noise is not None:
            self._draws += 1
            seed = derive_seed(self.settings.noise, self.index, name, self._draws)
            await self.client.seed_sampling(seed, self.params.start_seconds)

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None


def slots(settings: VllmSettings) -> int:
    """Number of requests that a server is given at a time."""
    return int(settings.arguments.get("max_num_seqs", 256)) + WAITING


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Write engine arguments as vLLM's command line has them: ``enforce_eager=False`` is ``--no-enforce-eager``."""
    return [_flag(name.replace("_", "-"), value) for name, value in arguments.items() if value is not None]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def environment(index: int, params: VllmEngineParams, base: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of server ``index``: its GPUs, or its share of the cores, and a PYTHONPATH that has the
    project."""
    code = str(Path(spo_core.__file__).resolve().parents[1])
    inherited = {name: value for name, value in base.items() if name not in NOT_INHERITED}
    path = os.pathsep.join(filter(None, [code, base.get("PYTHONPATH")]))
    chosen = ENVIRONMENT | inherited | SERVER_ENVIRONMENT | {"PYTHONPATH": path}
    if torch.cuda.is_available():
        visible = base.get("CUDA_VISIBLE_DEVICES")
        names = visible_gpus(visible) if visible else list(map(str, range(torch.cuda.device_count())))
        return chosen | {"CUDA_VISIBLE_DEVICES": gpus(index, params, names)}
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // (params.servers or 1)))} | chosen


def visible_gpus(visible: str) -> list[str]:
    """List the names in a ``CUDA_VISIBLE_DEVICES``: numbers, UUIDs (GPU-...) or MIG slices (MIG-...), as CUDA does up
    to the first that is none (-1, NoDevFiles)."""
    names = (name.strip() for name in visible.split(","))
    return list(takewhile(re.compile(r"\d+|(GPU|MIG)-[\w/-]+").fullmatch, names))


def gpus(index: int, params: VllmEngineParams, names: list[str]) -> str:
    """Choose the ``CUDA_VISIBLE_DEVICES`` of server ``index`` among those that the flow sees."""
    first = params.first_gpu + index * params.tensor_parallel
    mine = names[first : first + params.tensor_parallel]
    if len(mine) < params.tensor_parallel:
        needed = params.first_gpu + (params.servers or 1) * params.tensor_parallel
        raise EngineError(f"engine vllm: the servers need {needed} GPUs, and {len(names)} are visible")
    if len(mine) > 1 and any(name.startswith("MIG-") for name in mine):
        raise EngineError(f"engine vllm: tensor_parallel {len(mine)} needs whole GPUs; a process sees one MIG slice")
    return ",".join(mine)


def last_words(text: str) -> list[str]:
    """Pick a log's first exceptions, which cause the later ones, and its last lines; without vLLM's prefixes.

    The cause may stand far above the end: vLLM's processes report it to each other, each with its own traceback.
    """
    lines, causes = [], []
    for line in filter(None, map(str.rstrip, text.splitlines())):
        prefix = _PREFIX.match(line)
        words = line[prefix.end() :] if prefix else line
        lines.append(words)
        if EXCEPTION.match(words) and words not in causes and not (prefix and prefix[1] == "WARNING"):
            causes.append(words)
    last = lines[-LAST_LINES:]
    return [cause for cause in causes[:3] if cause not in last] + last
