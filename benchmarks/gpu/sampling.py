"""Part 4: tokens a second of the transformers engine, on the embedded policy and on a larger one."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.gpu.embedded import ROOT
from benchmarks.gpu.setting import Result, Setting, table
from benchmarks.tree_update import Case
from spo_core.config import LearnParams, load_params
from spo_core.estimate.memory import architecture
from spo_core.learn.precision import working_copy
from spo_core.rollout.engine import Request
from spo_core.rollout.transformers_engine import TransformersEngine

LARGER = Case("24 layers of 1,024", 24, 1024, 16, 16, 2816, 32000, prompt=100, segment=128)
SLOTS = 256


def embedded_case() -> Case:
    """The embedded policy's shape, with prompts and responses of usual lengths."""
    shape = architecture(load_params(ROOT))
    assert shape is not None
    sizes = shape.layers, shape.hidden_size, shape.heads, shape.kv_heads, shape.intermediate_size, shape.vocabulary
    return Case("embedded policy", *sizes, prompt=20, segment=64)


def run(setting: Setting) -> Result:
    """Measure sampling. No token stops a response, so all have one length; random weights decode as fast as others."""
    if setting.small:
        cases = [(Case("2 layers", 2, 32, 2, 2, 48, 60, prompt=5, segment=6), 4, "float32")]
    else:
        cases = [(embedded_case(), SLOTS, "float32"), (LARGER, SLOTS, "bfloat16")]
    shown = table(
        "4. Sampling with the transformers engine",
        "policy",
        "dtype",
        "at once",
        "tokens",
        "seconds",
        "tokens/s",
        "first run, s",
    )
    rows = []
    for case, slots, dtype in cases:
        torch.manual_seed(0)
        with torch.device(setting.device):
            model = LlamaForCausalLM(LlamaConfig(**case.config)).eval()
        policy = working_copy(model, LearnParams(learning_rate=1.0, dtype=dtype))
        del model
        first, seconds, times = setting.repeated(lambda p=policy, c=case, s=slots: sample(p, c, s), 3)  # type: ignore[misc]
        tokens = slots * case.segment
        numbers = {"slots": slots, "tokens": tokens, "seconds": seconds, "first_seconds": first, "times": times}
        rows.append({"policy": case.name, "dtype": dtype, **numbers})
        speed = f"{tokens / seconds:,.0f}"
        shown.add_row(case.name, dtype, str(slots), f"{tokens:,}", f"{seconds:.2f}", speed, f"{first:.2f}")
    return Result(shown, {"rows": rows})


def sample(policy: PreTrainedModel, case: Case, slots: int) -> None:
    """Sample one response of ``case.segment`` tokens in every slot, each after a prompt of its own."""
    length = case.prompt + case.segment
    engine = TransformersEngine(policy, stop_ids=(), context_length=length, max_concurrency=slots)
    engine.policy_changed(0)
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, case.vocabulary, (slots, case.prompt)).astype(np.int32)
    engine.submit(Request(n, prompt, case.segment, seed=n) for n, prompt in enumerate(prompts))
    while engine.busy:
        engine.step()
