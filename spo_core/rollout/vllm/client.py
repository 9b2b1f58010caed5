"""Calls of one vLLM server through its socket: token ids in and out, and the development calls that change weights."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from spo_core.errors import EngineError
from spo_core.rollout.engine import Completion, Request
from spo_core.rollout.vllm.engine import completion
from spo_core.rollout.vllm.settings import VllmSettings

HEALTH_SECONDS = 15.0
LOWEST_LOGPROB = -9999.0  # what vLLM's servers send for NaN and -inf
KEEP_ALIVE_SECONDS = 20.0  # less than the server's, so that it is never the one to hang up


class Failed(Exception):
    """A call that got no good answer and may be made again."""


class Unanswered(Failed):
    """A call that got no answer, or none in time."""


class VllmClient:
    """Calls a server. Raises Failed for no answer or a bad one, and EngineError for a refusal, which is a bug of ours.

    Every call under way has an HTTP client of its own: the time of httpx for a request grows with its connections, and
    one client for 256 of them took ten times as long for each.
    """

    def __init__(self, settings: VllmSettings, request_seconds: float, socket: Path) -> None:
        self.settings, self.request_seconds, self.socket = settings, request_seconds, socket
        self._free: list[httpx.AsyncClient] = []

    async def healthy(self) -> bool | None:
        """Ask for the server's health: None where nothing answers, which may pass; False where it says its engine is
        dead."""
        try:
            await self._call("GET", "/health", HEALTH_SECONDS)
        except Unanswered:
            return None
        except Failed:
            return False
        return True

    async def generate(self, request: Request, version: int | None) -> Completion:
        body = {
            "token_ids": request.token_ids.tolist(),
            "sampling_params": self.settings.sampling(request),
            "cache_salt": f"policy {version}",
        }
        answer = await self._call("POST", "/inference/v1/generate", self.request_seconds, body)
        try:
            return read_completion(request, answer)
        except (LookupError, TypeError, ValueError, EngineError) as error:
            raise Failed(f"a completion that cannot be used: {error!r}") from error

    async def scale_logprobs(self, temperature: float, seconds: float) -> None:
        await self._rpc("scale_logprobs", seconds, args=[repr(temperature)])

    async def seed_sampling(self, seed: int, seconds: float) -> None:
        await self._rpc("seed_sampling", seconds, args=[str(seed)])

    async def load(self, weights: Path, *, asleep: bool, seconds: float) -> None:
        """Load weights: first memory for them, then the weights, then memory for their cache."""
        if asleep:
            await self._call("POST", "/wake_up?tags=weights", seconds)
        await self._rpc("load_policy", seconds, kwargs={"weights_path": str(weights)})
        if asleep:
            await self._call("POST", "/wake_up?tags=kv_cache", seconds)
        await self._call("POST", "/reset_prefix_cache", seconds)  # for its memory; the salt alone keeps old entries out

    async def sleep(self, seconds: float) -> None:
        await self._call("POST", "/sleep?level=2", seconds)

    async def close(self) -> None:
        while self._free:
            await self._free.pop().aclose()

    async def _rpc(self, method: str, seconds: float, **arguments: Sequence[str] | dict[str, str]) -> None:
        await self._call("POST", "/collective_rpc", seconds, {"method": method, **arguments})

    async def _call(self, method: str, path: str, seconds: float, body: Any = None) -> Any:
        http = self._free.pop() if self._free else _http(self.socket)
        try:
            async with asyncio.timeout(seconds):  # in all; httpx limits each pause only
                response = await http.request(method, f"http://vllm{path}", json=body)
        except TimeoutError:
            raise Unanswered(f"{path}: no answer in {seconds:g} seconds") from None
        except httpx.HTTPError as error:
            raise Unanswered(f"{path}: {type(error).__name__} {error}".rstrip()) from error
        finally:
            self._free.append(http)
        if response.is_client_error:
            raise EngineError(f"vLLM refused {path} ({response.status_code}): {response.text[:500]}")
        if not response.is_success:
            raise Failed(f"{path} answered {response.status_code}: {response.text[:500]}")
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise Failed(f"{path} answered no JSON: {response.text[:500]}") from error


def _http(socket: Path) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=1, keepalive_expiry=KEEP_ALIVE_SECONDS)
    # no TLS, whose certificates take long to read, and no proxy
    transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=limits, verify=False, trust_env=False)
    return httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)


def read_completion(request: Request, answer: dict[str, Any]) -> Completion:
    """Read a completion from the server's JSON. Raises an error of some kind where it does not fit the request."""
    choice, usage = answer["choices"][0], answer["usage"]
    tokens, entries = choice["token_ids"], choice["logprobs"]["content"]
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"it ended with {choice['finish_reason']!r}")
    if usage["prompt_tokens"] != len(request.token_ids) or len(tokens) > request.max_tokens:
        raise ValueError(f"{len(tokens)} tokens after {usage['prompt_tokens']} are not of this request")
    if [entry["token_id"] for entry in entries] != tokens:
        raise ValueError("its log-probs are of other tokens")
    logprobs = [entry["logprob"] if entry["logprob"] > LOWEST_LOGPROB else math.nan for entry in entries]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return completion(request.request_id, tokens, logprobs, choice["finish_reason"] == "stop", cached)
