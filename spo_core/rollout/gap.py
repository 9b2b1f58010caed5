"""The gap between log-probs of engine and trainer, and its limit, for the probe and for the first optimizer step.

The quantity is the mean, over all sampled tokens of the present policy, of |engine's log-prob - trainer's|, in nats.
Masked tokens alone would not do: at those of low probability rounding is five to twenty times as large.

How large rounding makes it follows from the coarser dtype of the two. With the logits of both rounded, and a whole unit
in the last place of noise on either side before that, it stays below 0.054 in bfloat16 and 0.0063 in float16 where no
token is certain, and below 0.012 and 0.0013 where six of seven are nearly so, as in language models (vocabularies of
32K and 152K, largest logits of 10 to 27, temperatures 0.35 to 1; over the masked tokens it reaches 0.17 and 0.023). In
float32 it is about 1e-6, and an engine that rounds to half the bits is told from one that does not. Beyond LIMITS it is
not rounding; from a quarter of them on there is a warning. A temperature of 1 for 0.6 makes about half the tokens' mean
nll.
"""

from __future__ import annotations

from spo_core.config import LearnParams, Params

LIMITS = {"float32": 0.002, "float16": 0.0125, "bfloat16": 0.1}
WARNING = 0.25  # share of the limit


def gap_limit(params: Params) -> float:
    """Return the limit of a run's gap, in nats a token: ``learn.max_logprob_gap``, or what both dtypes allow."""
    engine = params.rollout.engine
    served = None if engine.type == "transformers" else engine.dtype
    return max(trainer_limit(params.learn), trainer_limit(params.learn, served))


def trainer_limit(params: LearnParams, dtype: str | None = None) -> float:
    """Return the limit for a single dtype, in nats a token: the trainer's unless another is given."""
    if params.max_logprob_gap is not None:
        return params.max_logprob_gap
    return LIMITS[dtype or params.dtype]
