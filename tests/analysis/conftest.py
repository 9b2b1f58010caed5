"""What the analysis' tests measure: a tiny policy and a few questions."""

from __future__ import annotations

import pytest

from spo_core.paths import Paths
from tests.invariants.test_training_runs import prepared


@pytest.fixture
def paths(tmp_path, policy, tokenizer, monkeypatch) -> Paths:
    return prepared(tmp_path, policy, tokenizer, monkeypatch)
