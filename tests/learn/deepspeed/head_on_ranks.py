"""What each rank of test_head runs: ``python -m tests.learn.deepspeed.head_on_ranks STORE RESULT``, RANK being set.

Every combination of ZeRO stage, dtype and tied embeddings after the other, with other numbers of trained tokens, and so
of chunks of logits, on every rank; writes the largest errors against plain torch and how often ZeRO-3 fetched the head.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spo_core.config import LearnParams, with_fidelity
from spo_core.learn import head
from spo_core.learn.deepspeed.backend import DeepSpeedBackend, join_ranks
from spo_core.learn.tree_batch import TrainedSegments, layout
from spo_core.learn.tree_check import check_policy
from tests.conftest import random_tree
from tests.learn.naive import flat_logprobs
from tests.learn.test_trainer import DEFAULTS

ROWS = 7  # trained tokens of a chunk of logits
TEMPERATURE = 0.8


def policy(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def items_of(rank: int) -> list[TrainedSegments]:
    """Rank 1 trains several times what rank 0 does."""
    rng = np.random.default_rng(rank)
    trees = [random_tree(rng, depth=3, widest=2, longest=6) for _ in range(1 + 2 * rank)]
    return [TrainedSegments(t, tuple(np.full(len(n.token_ids), n.trainable) for n in t.nodes)) for t in trees]


def case(stage: int, dtype: str, tied: bool, rank: int, ranks: int) -> dict[str, float]:
    from deepspeed.utils import safe_get_full_grad

    backend = {"type": "deepspeed", "ranks": ranks, "zero_stage": stage}
    params = LearnParams.model_validate(with_fidelity(DEFAULTS | {"backend": backend, "dtype": dtype}))
    model, plain = policy(tied), policy(tied)
    if dtype == "bfloat16":
        for parameter in plain.parameters():
            parameter.data = parameter.data.bfloat16().float()
    trainer = DeepSpeedBackend(model, None, params)
    check_policy(trainer.engine.module, 40)
    fetched = []
    part = trainer.engine.module.head
    part.register_forward_pre_hook(lambda *_: fetched.append(1))
    batch = layout(items_of(rank))
    logprobs, entropies = trainer.logprobs(batch, TEMPERATURE, True)
    trainer.backward(logprobs.square().sum(), last=True)
    expected = [flat_logprobs(plain, items_of(r), TEMPERATURE)[0] for r in range(ranks)]
    sum(part.square().sum() for part in expected).backward()
    wanted = torch.cat([p.grad.flatten() for p in plain.parameters()])
    got = [safe_get_full_grad(p) if trainer.stage else p.grad for p in model.parameters()]
    found = torch.cat([g.float().flatten() for g in got])
    result = {
        "chunks": -(-len(batch.targets) // ROWS),
        "logprobs": float((logprobs - expected[rank]).abs().max().detach()),
        "gradient": float((found - wanted).norm() / wanted.norm()),
        "head_calls": len(fetched),
        "entropies": len(entropies) - len(logprobs),
    }
    trainer.engine.destroy()
    return result


def main(store: Path, result: Path) -> None:
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    join_ranks(store)
    head.CHUNK_LOGITS = ROWS * 30
    found = {}
    for stage, dtype, tied in product(range(4), ("float32", "bfloat16"), (False, True)):
        found[f"{stage} {dtype} {'tied' if tied else 'untied'}"] = case(stage, dtype, tied, rank, ranks)
        gc.collect()
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
