"""vLLM in the flow's process: it is given the trainer's tensors as they are, without a copy on disk."""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spo_core.errors import EngineError
from spo_core.rollout.engine import Completion, Request
from spo_core.rollout.seeds import derive_seed
from spo_core.rollout.vllm.settings import ENVIRONMENT, VllmSettings

log = logging.getLogger(__name__)
Weights = Callable[[], Iterable[tuple[str, Tensor]]]
ATTEMPTS = 3  # most attempts at a request


class VllmEngine:
    """Implements ``rollout.engine.Engine``. ``weights`` gives the trainer's tensors as a checkpoint has them, on any
    device and of any dtype: vLLM copies each into its own.

    One process may hold one such engine. Requests and weights change places with the trainer's turn by turn, so the
    same requests in the same order give the same bits.
    """

    gives_entropies = False

    def __init__(self, settings: VllmSettings, weights: Weights) -> None:
        self.settings, self.weights = settings, weights
        self.version: int | None = None
        self.restarts = 0
        self._open: dict[str, Request] = {}
        self._attempts: Counter[str] = Counter()
        self._deaths = 0  # of the engine since the last version
        self._loads = 0
        self._asleep = False
        self._vllm: Any = None
        self.start()

    def start(self) -> None:
        """Start vLLM, again after ``close``; it serves nothing before ``policy_changed``."""
        self._vllm = _start(self.settings)
        self._asleep = False

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def submit(self, requests: Iterable[Request]) -> None:
        for request in self.settings.accepted(requests, self.version):
            self._open[str(request.request_id)] = request
            self._add(request)

    def step(self) -> list[Completion]:
        outputs, failure = attempt(self._vllm.step)
        if failure is not None:
            self._restart(failure)
            return []
        return [done for output in outputs if output.finished and (done := self._finished(output))]

    def release(self, request_id: int) -> None:
        """Do nothing: vLLM's cache drops what was not used for longest."""

    def policy_changed(self, version: int) -> None:
        if self.busy:
            raise RuntimeError("the policy changed while requests were being decoded")
        self._deaths = 0
        self.version = version
        _, failure = attempt(self._load)
        if failure is not None:
            self._restart(failure)

    def sleep(self) -> None:
        if self.busy:
            raise RuntimeError("the engine was sent to sleep while requests were being decoded")
        self.version = None
        if not self._asleep and self.settings.sleeps:
            self._vllm.sleep(level=2)  # frees weights and cache; new ones come before anything is served
            self._asleep = True

    def close(self) -> None:
        self._open.clear()
        self.version = None
        self._stop()

    def _load(self) -> None:
        """Load new weights: first memory for them, then the weights, then memory for their cache."""
        if self._asleep:
            give_memory_back()
            self._vllm.wake_up(["weights"])
        self._vllm.collective_rpc("load_policy", kwargs={"weights_iterator": self.weights()})
        self._loads += 1
        if self.settings.noise is not None:  # new noise, even after the engine was started again
            seed = derive_seed(self.settings.noise, f"policy-{self.version}", self._loads)
            self._vllm.collective_rpc("seed_sampling", args=(seed,))
        if self._asleep:
            self._vllm.wake_up(["kv_cache"])
            self._asleep = False
        self._vllm.reset_prefix_cache()  # for its memory; the salt alone keeps old entries out

    def _add(self, request: Request) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._vllm.add_request(
            str(request.request_id),
            {"prompt_token_ids": request.token_ids.tolist(), "cache_salt": f"policy {self.version}"},
            SamplingParams(
                **self.settings.sampling(request), output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True
            ),
        )

    def _finished(self, output: Any) -> Completion | None:
        """Read a completion; None where the request failed and was sent again with the same seed."""
        request = self._open[output.request_id]
        sample = output.outputs[0]
        if sample.finish_reason not in ("stop", "length"):
            self._attempts[output.request_id] += 1
            if self._attempts[output.request_id] == ATTEMPTS:
                raise EngineError(f"vLLM ended a request {ATTEMPTS} times with {sample.finish_reason!r}")
            self._add(request)
            return None
        if output.prompt_token_ids != request.token_ids.tolist():
            raise EngineError(f"vLLM answered request {request.request_id} for other token ids than it was given")
        del self._open[output.request_id]
        self._attempts.pop(output.request_id, None)
        return completion(
            request.request_id,
            sample.token_ids,
            sample.logprobs.logprobs,
            sample.finish_reason == "stop",
            output.num_cached_tokens or 0,
        )

    def _restart(self, words: str) -> None:
        """Begin again with a new engine and all open requests; EngineError if that happened since the last version."""
        self._deaths += 1
        if self._deaths > 1:
            raise EngineError(f"vLLM died again after a restart; its last words: {words}")
        log.warning("vLLM died (%s); starting it again with %d open requests", words, len(self._open))
        try:
            self._stop()
            self.start()
            self._load()
        except Exception as second:
            raise EngineError(f"vLLM died ({words}) and did not start again: {second}") from second
        self.restarts += 1
        for request in self._open.values():
            self._add(request)

    def _stop(self) -> None:
        if self._vllm is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._vllm.engine_core.shutdown()
        self._vllm = None  # the last reference: frees its memory before another engine starts
        gc.collect()
        cleanup_dist_env_and_memory()


def give_memory_back() -> None:
    """Have torch return what the trainer needed and no longer holds: the engine allocates beside it."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """Call, and return (result, None) or (None, error text): the exception would keep a dead engine's memory alive.

    vLLM promises no narrower exceptions, and all of them are fatal to the engine.
    """
    try:
        return call(), None
    except EngineError:  # ours, which another start would not mend
        raise
    except Exception as error:
        log.debug("vLLM failed", exc_info=True)
        return None, f"{type(error).__name__}: {error}"


def completion(
    request_id: int, token_ids: Iterable[int], logprobs: Iterable[float], stopped: bool, cached: int
) -> Completion:
    """Build a completion from vLLM's lists. Raises EngineError unless each token has one finite log-prob."""
    tokens, values = np.asarray(token_ids, np.int32), np.asarray(logprobs, np.float32)
    if not len(tokens) or tokens.shape != values.shape or not np.isfinite(values).all():
        raise EngineError(f"vLLM gave {len(tokens)} tokens and {np.isfinite(values).sum()} log-probs for a request")
    return Completion(request_id, tokens, values, stopped, None, cached)


def _start(settings: VllmSettings) -> Any:
    os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        from vllm import EngineArgs, LLMEngine
    except ImportError as error:
        raise EngineError(f"rollout.engine vllm: no vLLM here ({error}); docs/algorithms.md, Rollouts") from None
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        vllm = LLMEngine.from_engine_args(EngineArgs(**settings.arguments, disable_log_stats=True))
    except Exception as error:  # of many kinds, those of the user's options among them
        raise EngineError(f"vLLM did not start: {type(error).__name__}: {error}") from error
    finally:
        torch.set_num_threads = set_threads  # vLLM replaces it on CPUs
        torch.set_num_threads(threads)
    vllm.collective_rpc("scale_logprobs", args=(settings.temperature,))
    return vllm
