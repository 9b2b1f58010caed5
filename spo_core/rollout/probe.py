"""Checks, after new weights, that engine and trainer give the same probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from spo_core.errors import EngineError
from spo_core.rollout.engine import Completion, Engine, Request, finish_all
from spo_core.rollout.growing import Prompt
from spo_core.rollout.seeds import derive_seed

PROMPTS, TOKENS = 4, 16  # most of a probe


@dataclass(frozen=True, slots=True)
class LogprobGap:
    """Distance of the engine's log-probs from the trainer's over the tokens of a probe, in nats a token."""

    mean: float
    largest: float
    tokens: int


def probe(
    engine: Engine,
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    *,
    context_length: int,
    temperature: float,
    seed: int,
) -> LogprobGap:
    """Sample a few tokens after the first prompts and compare; the engine must be idle."""
    requests = []
    for number, prompt in enumerate(prompts[:PROMPTS]):
        ids = np.asarray(prompt.token_ids, np.int32)
        own = derive_seed(seed, "probe", engine.version or 0, prompt.question_id)
        requests.append(Request(number, ids, min(TOKENS, context_length - len(ids)), own, tree=prompt.question_id))
    engine.submit(requests)
    done = finish_all(engine)
    gaps = np.concatenate(
        [np.abs(done[r.request_id].logprobs - _logprobs(model, r, done[r.request_id], temperature)) for r in requests]
    )
    return LogprobGap(float(gaps.mean()), float(gaps.max()), len(gaps))


def check_gap(gap: LogprobGap, limit: float, version: int) -> None:
    """Raise EngineError where the mean exceeds the limit (or is no number)."""
    if not gap.mean <= limit:
        raise EngineError(
            f"policy version {version}: engine and trainer differ by {gap.mean:.2g} nats a token on average (at most "
            f"{gap.largest:.2g}) over {gap.tokens} tokens, and rounding explains at most {limit:g} "
            "(learn.max_logprob_gap). Check that the engine has the new weights, the dtypes, and rollout.engine.options"
        )


@torch.inference_mode()
def _logprobs(model: PreTrainedModel, request: Request, completion: Completion, temperature: float) -> np.ndarray:
    """Compute the trainer's log-probs, float32 [n], by one plain forward pass of the sequence."""
    training = model.training
    model.eval()
    sampled = torch.from_numpy(completion.token_ids.astype(np.int64)).to(model.device)
    prefix = torch.from_numpy(request.token_ids.astype(np.int64)).to(model.device)
    logits = model(input_ids=torch.cat([prefix, sampled])[None], use_cache=False).logits[0, len(prefix) - 1 : -1]
    model.train(training)
    logprobs = (logits.float() / temperature).log_softmax(-1)  # (n, vocabulary)
    return logprobs.gather(-1, sampled[:, None])[:, 0].cpu().numpy()
