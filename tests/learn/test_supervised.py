"""Warm-up trains every architecture that training takes, its layers' matrices with Muon."""

from __future__ import annotations

import pytest
import torch

from spo_core.config import WarmupParams
from spo_core.learn.supervised import Warmup
from tests.learn.architectures import VOCABULARY, tiny_config, tiny_model
from tests.learn.test_architectures import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_is_warmed_up(family):
    model = tiny_model(tiny_config(family), scale=1.0)
    warmup = Warmup(model, WarmupParams(steps=2))
    muon, adam = ([p for group in o.param_groups for p in group["params"]] for o in warmup.optimizers)
    assert muon and all(p.ndim == 2 for p in muon)
    assert {id(p) for p in (*muon, *adam)} == {id(p) for p in model.parameters()}
    assert model.get_input_embeddings().weight not in set(muon)
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))
    losses = [warmup.step(ids, ids, number) for number in range(2)]
    assert losses[1] < losses[0]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
