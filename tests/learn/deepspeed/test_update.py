"""Ranks make the updates of one device where these are of whole sequences, begin anew, or are a critic's."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spo_core.config import Critic as CriticParams
from spo_core.learn.backend import TorchBackend
from spo_core.learn.critic import Critic, own_model
from spo_core.learn.deepspeed.critic import RankedCritic
from spo_core.learn.deepspeed.gold_answer import ranked_score
from spo_core.learn.gold_answer import Ending, answer_logprobs, answered
from tests.learn.deepspeed.started import on_ranks
from tests.learn.deepspeed.test_training import params_of, ranks_of
from tests.learn.test_critic import learnable
from tests.learn.test_trainer import relative

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the extra deepspeed"),
]


@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        pytest.param(1, (), marks=pytest.mark.exhaustive),
        (2, ()),
        pytest.param(2, ("all",), marks=pytest.mark.exhaustive),
    ],
)
def test_every_update_is_that_of_one_device(tmp_path, ranks, more):
    """Sequence losses, restarts and critics, under ZeRO stages 0 to 3: weights, metrics and values are equal to
    rounding, and a checkpoint gives the same bits."""
    results = on_ranks("tests.learn.deepspeed.update_on_ranks", ranks, tmp_path, *more)
    assert len(results[0]) == (24 if more else 6)
    for rank, result in enumerate(results):
        for case, found in result.items():
            told = (rank, case, found)
            assert found.pop("resumed") == 0.0, told
            assert found.pop("moved") > 1e-3, told
            if "spread" in found:
                assert found.pop("spread") > 1e-3, told
            else:
                assert found.pop("steps") == 4, told
            assert max(found.values()) < 1e-3 and all(v < 1e-5 for k, v in found.items() if "weights" in k), told


def test_a_flow_has_its_ranks_value_states_and_train_the_critic(policy, folder):
    """Trees and values go to and fro; a checkpoint is the file that one device writes, and gives the same bits."""
    chosen = CriticParams.model_validate({"type": "critic", "learning_rate": 3e-3, "epochs": 1})
    params = params_of({"zero_stage": 2})
    alone = Critic(
        own_model(policy, chosen), TorchBackend(policy, None, params), chosen, params, probabilities=True, seed=0
    )
    with ranks_of(folder, params, critic=(chosen, True)) as ranks:
        critic = RankedCritic(ranks, chosen)

        def saved(name: str) -> list[torch.Tensor]:
            (folder / name).mkdir()
            critic.save(folder / name)
            weights = load_file(folder / name / "critic.safetensors")
            return [weights[name] for name, _ in alone.trained.named_parameters()]

        asked = [answered(tree, Ending((5, 6, 7), 1), 64) for tree in learnable(4)]
        here = answer_logprobs(alone.backend, asked, 1.0, params.max_tokens_per_forward)
        assert ranked_score(ranks)(asked) == pytest.approx(here, rel=1e-4) and len(here) > 4
        for number in (1, 2, 3):
            found, expected = (c.update(learnable(number, number), number) for c in (critic, alone))
            assert found == pytest.approx(expected, rel=1e-4)
            last = saved(f"critic{number}")
        assert relative(list(alone.trained.parameters()), last) < 1e-5
        for ours, theirs in zip(critic.values(learnable(9)), alone.values(learnable(9)), strict=True):
            assert len(ours) == len(theirs)
            assert all(np.allclose(a, b, atol=1e-5) and a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
        critic.load(folder / "critic2")
        critic.update(learnable(3, 3), 3)
        assert all(map(torch.equal, last, saved("again")))
        alone.load(folder / "critic2")
        alone.update(learnable(3, 3), 3)
        assert relative(list(alone.trained.parameters()), last) < 1e-5
