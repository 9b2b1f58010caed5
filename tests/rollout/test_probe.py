"""The probe after a sync: silent where engine and trainer are one, loud where the engine has other weights."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from spo_core.errors import EngineError
from spo_core.rollout.probe import PROMPTS, TOKENS, LogprobGap, check_gap, probe
from spo_core.rollout.sampler import Prompt
from spo_core.rollout.transformers_engine import TransformersEngine

ASKED = [Prompt(str(n), (3, 4, 5 + n)) for n in range(PROMPTS + 2)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gap_is_that_of_the_weights(policy, temperature):
    trainer = copy.deepcopy(policy).train()
    engine = TransformersEngine(policy, stop_ids=(), context_length=40, temperature=temperature)
    engine.policy_changed(1)
    options = {"context_length": 40, "temperature": temperature, "seed": 7}
    gap = probe(engine, trainer, ASKED, **options)
    assert gap.tokens == PROMPTS * TOKENS and gap.mean <= gap.largest < 1e-4
    assert trainer.training, "the probe left the trainer's mode as it was"
    assert probe(engine, trainer, ASKED, **options) == gap, "the same seed gives the same probe"
    with torch.no_grad():
        trainer.lm_head.weight.mul_(1.3)
    gap = probe(engine, trainer, ASKED, **options)
    assert gap.mean > 0.05
    with pytest.raises(EngineError, match=r"rounding explains at most 0\.05 \(learn\.max_logprob_gap\)"):
        check_gap(gap, 0.05, 1)


def test_a_prompt_that_almost_fills_the_context_is_probed_by_what_fits(policy):
    engine = TransformersEngine(policy, stop_ids=(), context_length=5)
    engine.policy_changed(1)
    assert probe(engine, policy, ASKED[:2], context_length=5, temperature=1.0, seed=0).tokens == 4


def test_no_number_is_no_agreement():
    with pytest.raises(EngineError):
        check_gap(LogprobGap(math.nan, math.nan, 3), 0.05, 1)
