"""Trees and engine on other architectures, against the plain forward pass as their authors wrote it."""

import copy

import numpy as np
import pytest
import torch

from spo_core.errors import ConfigError
from spo_core.learn import head, tree_attention
from spo_core.learn.tree_batch import layout
from spo_core.learn.tree_check import check_policy
from spo_core.learn.tree_forward import TreePolicy
from spo_core.policy import architecture
from spo_core.policy.attention import NAME
from spo_core.rollout import transformers_engine
from spo_core.rollout.engine import Request
from spo_core.rollout.engine_check import checked_engine
from spo_core.rollout.transformers_engine import TransformersEngine
from tests.conftest import random_tree
from tests.learn.architectures import VOCABULARY, WINDOW, dropouts, model_types, parameters, tiny_config, tiny_model
from tests.learn.naive import flat_logprobs
from tests.learn.test_tree_forward import masked, relative_error

pytestmark = pytest.mark.slow

FAMILIES = [
    *("llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "mistral", "gemma2", "gemma3_text", "gemma3n_text", "granite"),
    *("granite_swa", "cohere", "cohere2", "olmo2", "olmo3", "smollm3", "gpt2", "gpt_oss", "mimo_v2_flash", "mixtral"),
    *("deepseek_v3", "llama4_text", "exaone4", "opt", "modernbert-decoder"),
]
REFUSED = {  # and the words for the layers
    "qwen3_next": r"linear_attention \(Qwen3NextGatedDeltaNet\)",
    "mamba": r"linear_attention \(MambaMixer\)",
    "lfm2": r"conv \(Lfm2ShortConv\)",
    "granitemoehybrid": "linear_attention",
    "recurrent_gemma": "RecurrentGemma",
    "minimax": r"linear_attention \(MiniMaxLightningAttention\)",
    "bloom": "BloomAttention",
    "mpt": "MptAttention",
    "falcon": "FalconAttention",
    "gpt_neo": "GPTNeoAttention",
    "gptj": "GPTJAttention",
    "deepseek_v32": "layers of kind",
    "inkling_text": "position_bias",
    "bart": "it numbers the tokens of a row itself and ignores position_ids",
    "pegasus": "it numbers the tokens of a row itself and ignores position_ids",
    "cpmant": "it numbers the tokens of a row itself and ignores position_ids",
}


def sampled_trees(seed: int, longest: int):
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, depth=3, widest=2, longest=longest, vocabulary=VOCABULARY) for _ in range(2)]
    return [masked(rng, tree, 0.8) for tree in trees]


@pytest.mark.parametrize("longest", [2, 9])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_of_plain_forwards(family, longest):
    """Trees within the window of 6 tokens, and paths that are several times as long."""
    model = tiny_model(tiny_config(family), scale=1.5)
    items = sampled_trees(1, longest)
    batch = layout(items)
    assert (int(batch.position_ids.max()) >= 2 * WINDOW) == (longest == 9)
    expected, _ = flat_logprobs(model, items, 0.7)
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal(len(expected)).astype(np.float32))
    wanted = gradients_of(model, expected, weights)
    for attention in ("rows", "flex"):
        tree_model = copy.deepcopy(model).train()
        with torch.set_grad_enabled(attention != "flex"):  # which has no backward pass on CPUs
            found, entropies = TreePolicy(tree_model, attention)(batch, 0.7, True)
        assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), rel=1e-4, abs=1e-4), attention
        assert bool(((entropies > 0) & (entropies < np.log(VOCABULARY) + 1e-3)).all())
        if attention != "flex":
            assert relative_error(wanted, gradients_of(tree_model, found, weights)) <= 1e-4, attention


def gradients_of(model, logprobs, weights):
    """With zeros for what has no part in the log-probs."""
    model.zero_grad()
    (logprobs * weights).sum().backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("olmo3", "exaone4", "mixtral")])
def test_the_engine_samples_with_the_log_probs_of_plain_forwards(family):
    model = tiny_model(tiny_config(family), scale=1.5)
    rng = np.random.default_rng(0)
    engine = TransformersEngine(copy.deepcopy(model), stop_ids=(), context_length=60, max_concurrency=3, entropies=True)
    prompts = [architecture.random_ids(model, n, rng) for n in (1, 4, 23, 11)]
    engine.submit(Request(n, ids, 9, seed=n, keep=n == 2) for n, ids in enumerate(prompts))
    done = drain(engine)
    prompts.append(np.concatenate([prompts[2], done[2].token_ids[:5]]))
    engine.submit([Request(4, prompts[4], 12, seed=4, parent=2)])
    done |= drain(engine)
    for number, prompt in enumerate(prompts):
        ids = np.concatenate([prompt, done[number].token_ids])
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, len(prompt) - 1 : -1]
        plain = torch.distributions.Categorical(logits=logits.double())
        expected = plain.log_prob(torch.from_numpy(done[number].token_ids.astype(np.int64)))
        assert done[number].logprobs == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-4)
        assert done[number].entropies == pytest.approx(plain.entropy().numpy(), rel=1e-4, abs=1e-4)


def drain(engine):
    done = {}
    while engine.busy:
        done |= {c.request_id: c for c in engine.step()}
    return done


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "cohere2", "llama4_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_passes_what_is_right(family, dtype):
    model = tiny_model(tiny_config(family), scale=1.5).to(dtype)
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    policy = TreePolicy(model).train()
    check_policy(policy, 64)
    checked_engine(model, stop_ids=(2,), context_length=64, max_concurrency=2)
    assert model.config._attn_implementation == NAME and all(map(torch.equal, before, model.parameters()))
    assert torch.equal(state, torch.get_rng_state()), "training would get other random numbers"


@pytest.mark.parametrize("context", [3, 5, WINDOW, WINDOW + 1, 30])
def test_the_check_stays_within_the_context(context):
    model = tiny_model(tiny_config("mistral"))
    lengths = []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    check_policy(TreePolicy(model), context)
    plain = max(lengths[:-1])  # the last is the row of the tree, which has several paths
    assert plain <= context and (plain > WINDOW) == (context > WINDOW)


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_not_supported_is_refused(family):
    model = tiny_model(tiny_config(family))
    with pytest.raises(
        ConfigError, match=rf"(?s)^a policy of model_type {family} cannot be trained.*{REFUSED[family]}"
    ):
        check_policy(TreePolicy(copy.deepcopy(model)), 64)
    with pytest.raises(ConfigError, match=rf"^a policy of model_type {family} cannot be sampled"):
        checked_engine(model, stop_ids=(2,), context_length=64, max_concurrency=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_that_is_not_kept_is_noticed(monkeypatch, dtype):
    model = tiny_model(tiny_config("qwen2"), scale=1.5).to(dtype)
    monkeypatch.setattr(tree_attention, "first_seen", lambda sees, positions: None)
    with pytest.raises(ConfigError, match=r"layers of kind sliding_attention \(Qwen2Attention\): log-probs .* off"):
        check_policy(TreePolicy(copy.deepcopy(model)), 64)
    check_policy(TreePolicy(copy.deepcopy(model)), WINDOW)  # which the run cannot reach
    monkeypatch.setattr(transformers_engine, "CAUSAL", None)
    monkeypatch.setattr(transformers_engine._RowLayout, "mask", unwindowed)
    with pytest.raises(ConfigError, match=r"cannot be sampled .* sliding_attention \(Qwen2Attention\): log-probs"):
        checked_engine(model, stop_ids=(2,), context_length=64, max_concurrency=2)


def unwindowed(layout, sees):
    visible = layout.engine.positions[None, : layout.engine.width] <= layout.lengths
    return torch.zeros(visible.shape, dtype=layout.engine.dtype).masked_fill(~visible, float("-inf"))[:, None, None]


def test_scaling_that_is_left_out_is_noticed(monkeypatch):
    model = tiny_model(tiny_config("granite"), scale=1.5)
    project = head.Head._project
    monkeypatch.setattr(head.Head, "_project", lambda self, h, t, temperature, e: project(self, h, t, 2.0, e))
    with pytest.raises(ConfigError, match="what follows its layers: log-probs on trees are off"):
        check_policy(TreePolicy(model), 64)


@pytest.mark.parametrize(
    ("family", "key"), [("gpt2", "resid_pdrop"), ("gpt2", "attn_pdrop"), ("llama", "attention_dropout")]
)
def test_dropout_is_refused(family, key):
    config = tiny_config(family, **{key: 0.2})
    assert key in dropouts(config, 0.0)
    with pytest.raises(ConfigError, match=rf"not the same in training: set {key} to 0 in its config\.json"):
        check_policy(TreePolicy(tiny_model(config)), 64)


def test_positions_that_are_stretched_for_long_texts_are_refused():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = tiny_model(tiny_config("llama", rope_parameters=rope, max_position_embeddings=32))
    policy = TreePolicy(model)
    check_policy(policy, 32)
    with pytest.raises(ConfigError, match=r"\(dynamic\).*set rollout\.context_length to at most 32"):
        check_policy(policy, 33)
    with pytest.raises(ConfigError, match=r"\(dynamic\)"):
        checked_engine(model, stop_ids=(2,), context_length=33, max_concurrency=2)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_without_a_tree_softcap_and_sinks_are_kept(family):
    """In warm-up, evaluation and wherever else plain rows are forwarded."""
    model = tiny_model(tiny_config(family), scale=1.5)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, VOCABULARY, (2, 20)))
    expected = model(input_ids=ids).logits
    model.set_attn_implementation(NAME)
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("model_type", model_types())
def test_every_causal_model_is_right_or_refused(model_type):
    """The check has seen one tree; here are others, of what it lets pass."""
    try:
        config = tiny_config(model_type)
        if parameters(config) > 5e6:
            pytest.skip("no small one can be made")
        model = tiny_model(config)
    except Exception as error:
        pytest.skip(f"no small one can be made: {error!r}"[:200])
    try:
        policy = TreePolicy(copy.deepcopy(model))
        check_policy(policy, 64)
    except ConfigError:
        return
    for seed in range(3):
        items = sampled_trees(seed, 7)
        with torch.no_grad():
            model.set_attn_implementation("eager")
            expected, _ = flat_logprobs(model, items, 1.0)
            model.set_attn_implementation(NAME)
            otherwise, _ = flat_logprobs(model, items, 1.0)
            found, _ = policy(layout(items), 1.0)
        rounding = architecture.difference(otherwise, expected)  # recurrent ones with random weights blow it up
        assert architecture.difference(found, expected) <= max(1e-3, 4 * rounding)
