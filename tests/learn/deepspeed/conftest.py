import pytest

from spo_core.policy.checkpoint import save_policy


@pytest.fixture
def folder(policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path / "policy")
    return tmp_path
