"""Published runs of ReST-EM, DPO-positive, DVO and PAV resolve to their numbers, transcribed from the code."""

from __future__ import annotations

import pytest

from spo_core.config import flatten, load_params
from tests.config.test_presets import OFFLINE, RHO, flat
from tests.conftest import ROOT

OPEN = {"run.iterations", "run.validate_every", "run.checkpoint_every", "learn.max_ratio"}  # of no meaning there
WHOLE = {"credit.partition.type": "whole", "credit.value.type": "none", "credit.mask.type": "all"}
OWN = {
    "rho1b-restem": WHOLE
    | {
        "run.iterations": 10,
        "rollout.questions": 7100,
        "rollout.branch_factors": [8],
        "credit.advantage": {"type": "rejection", "threshold": 1.0, "per_question": 10},
        "learn.loss": {"type": "likelihood"},
        "learn.restart": True,
        "learn.epochs": 8,
        "learn.zero_advantage": "drop",
        "learn.max_ratio": None,
    },
    "rho1b-dpo-positive": WHOLE
    | {
        "run.iterations": 1,
        "rollout.questions": 7100,
        "rollout.branch_factors": [64],
        "learn.loss": {"type": "dpo_positive", "beta": 0.3, "penalty": 50.0, "margin": 0.5, "pairs": 64},
        "learn.restart": False,
        "learn.epochs": 3,
        "learn.max_ratio": None,
    },
    "rho1b-dvo": WHOLE
    | {"run.iterations": 1000, "learn.loss": {"type": "dvo", "beta": 0.1, "cap": 10.0}, "learn.max_ratio": None},
    "rho1b-pav": {
        "run.iterations": 1000,
        "rollout.questions": 16,
        "rollout.branch_factors": [6, 6, 6],
        "credit.partition": {"type": "fixed_tokens", "tokens": 30},
        "credit.value.type": "tree_mean",
        "credit.mask": {"type": "low_probability", "threshold": 0.9},
        "learn.max_ratio": 10.0,
    },
}


@pytest.mark.parametrize("name", sorted(OFFLINE))
def test_published_numbers(name):
    params = load_params(ROOT, name)
    resolved = flat(params)
    expected = {key: value for key, value in RHO.items() if key not in OPEN} | flatten(OWN[name])
    assert {key: resolved.get(key, "absent") for key in expected} == expected


@pytest.mark.parametrize("name", ["rho1b-restem", "rho1b-dpo-positive"])
def test_the_learning_rate_falls_to_nothing_over_batches_of_64(name):
    """Within an iteration, of which both know the size beforehand alone: 40.3 % right responses, all pairs."""
    params = load_params(ROOT, name)
    learn, questions = params.learn, params.rollout.questions
    most = {"rho1b-restem": 8 * questions * 0.403, "rho1b-dpo-positive": 64 * questions}[name]
    assert learn.optimizer_steps == -(-most // 64)
    assert learn.decay_steps == learn.epochs * learn.optimizer_steps
    assert learn.warmup_steps == -(-3 * learn.decay_steps // 100)
    assert learn.restart or params.run.iterations == 1


def test_pav_has_the_published_formula():
    advantage = load_params(ROOT, "rho1b-pav").credit.advantage
    assert (advantage.type, advantage.k, advantage.weight, advantage.baseline) == ("best_of_k_progress", 4, 5.0, "none")
