"""The estimate of a dry run: worked by hand, against real models, and printed without reading anything."""

from __future__ import annotations

import io
from dataclasses import astuple, replace

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from spo_core.config import CHUNK_LOGITS, DataParams, ScratchPolicy, flatten, load_params
from spo_core.errors import ConfigError
from spo_core.estimate.dry_run import print_dry_run
from spo_core.estimate.memory import architecture, count_parameters, estimate_memory
from spo_core.estimate.work import Work, estimate
from spo_core.policy.checkpoint import make_policy, make_tokenizer
from spo_core.problems import problem_set
from tests.config.test_presets import EMBEDDED, PUBLISHED
from tests.conftest import ROOT, SHORT

SMALL = (
    *SHORT,
    "rollout.questions=2",
    "rollout.max_completion_tokens=10",
    "data.max_question_tokens=5",  # and 3 of the template
    "learn.optimizer_steps=2",
)
CHAIN = (*SMALL, "rollout.branch_factors=[3]", "rollout.context_length=40")
PROGRESS = ("credit.advantage={type: best_of_k_progress, own: reward}",)
FANS = "credit.value={type: monte_carlo, rollouts: 5}"


def works(*overrides: str, context: int = 40) -> tuple[Work, Work]:
    found = estimate(load_params(ROOT, None, (*SMALL, f"rollout.context_length={context}", *overrides)), context)
    return found.most, found.expected


def test_a_tree_by_hand():
    """2 and 3 children, segments of 4, responses of at most 10 and, as assumed, 5 tokens; prompts of 8 and 10."""
    most, expected = works("rollout.branch_factors=[2,3]", "credit.partition.tokens=4")
    generated = 2 * (2 * 4 + 6 * 6)
    assert most == Work(12, 16, 0, generated, 16, 2 * 8 + generated, 16 * 18)
    generated = 2 * (2 * 4 + 6 * 1)
    assert expected == Work(12, 16, 0, generated, 16, 2 * 10 + generated, 2 * (2 * 14 + 6 * 15))


def test_a_tree_whose_responses_end_before_its_last_depth():
    _, expected = works("rollout.branch_factors=[2,3]", "credit.partition.tokens=5")
    assert (expected.responses, expected.segments, expected.generated_tokens) == (4, 4, 20)


def test_the_context_limits_what_the_completion_limit_does_not():
    most, _ = works("rollout.branch_factors=[2]", "data.max_question_tokens=null", context=8)
    assert most.generated_tokens == 2 * 2 * 7 and most.flat_tokens == 4 * 8


def test_whole_responses_have_no_value_rollouts():
    most, expected = works(
        "rollout.branch_factors=[3]", "credit.partition={type: whole}", "credit.value={type: none}",
        "credit.advantage={type: leave_one_out}",
    )  # fmt: skip
    assert (most.responses, most.segments, most.value_rollouts, most.generated_tokens) == (6, 6, 0, 60)
    assert (expected.flat_tokens, expected.forwarded_tokens) == (6 * 15, 2 * 10 + 6 * 5)


@pytest.mark.parametrize(
    ("partition", "prompt", "cuts", "left", "of_prompt"),
    [
        ("{type: cutpoints, interval: 4}", "cut", 3, 9 + 5 + 1, 1),  # behind tokens 1, 5 and 9 of 10
        ("{type: cutpoints, interval: 100}", "cut", 1, 9, 1),
        ("{type: entropy, threshold: 1.0, interval: 4}", "always", 3, 9 + 5 + 1, 1),
        ("{type: equal_parts, parts: 3}", "cut", 2, 9 + 8, 0),
        ("{type: equal_parts, parts: 30}", "always", 9, 45, 1),
        ("{type: delimiter, max_cuts: 2}", "always", 2, 9 + 8, 1),
        ("{type: delimiter}", "cut", 9, 45, 0),
    ],
)
def test_value_rollouts_at_most(partition, prompt, cuts, left, of_prompt):
    most, expected = works(
        *CHAIN[-2:], f"credit.partition={partition}", FANS, f"credit.value.prompt={prompt}", "credit.mask={type: all}"
    )
    assert most.segments == 6 * (cuts + 1)
    assert most.value_rollouts == 2 * 5 * (3 * cuts + of_prompt)
    assert most.generated_tokens == 60 + 2 * 5 * (3 * left + 10 * of_prompt)
    assert most.episodes == expected.episodes == 6  # an episode is a response


def test_adaptive_rollouts_are_between_their_limits():
    overrides = ("credit.partition={type: equal_parts, parts: 2}", "credit.value={type: adaptive_monte_carlo}")
    params = load_params(ROOT, None, (*CHAIN, *overrides))
    found, value = estimate(params, 40), params.credit.value
    assert value.type == "adaptive_monte_carlo"
    assert found.rollouts_a_state == (value.min_rollouts, value.max_rollouts)
    assert found.most.value_rollouts == 6 * value.max_rollouts > found.expected.value_rollouts


def test_replay_limits_what_is_trained():
    replay = ("learn.replay.max_age=4", "learn.replay.segments=6")
    most, expected = works("rollout.branch_factors=[2,3]", "credit.partition.tokens=4", *replay)
    assert (most.segments, most.episodes, expected.episodes) == (16, 6, 6)
    assert most.forwarded_tokens == most.flat_tokens == 6 * 18  # six segments of the last depth, each of another tree
    assert expected.forwarded_tokens < expected.flat_tokens


@pytest.mark.parametrize("name", [None, *sorted(EMBEDDED), *PUBLISHED])
def test_expectations_are_within_the_limits(name):
    params = load_params(ROOT, name)
    found = estimate(params, params.rollout.longest_context)
    assert all(e <= m for e, m in zip(astuple(found.expected), astuple(found.most), strict=True)), found
    assert 0 < found.expected.forwarded_tokens <= found.expected.flat_tokens
    assert found.optimizer_steps == params.learn.epochs * params.learn.optimizer_steps


def test_published_trees():
    params = load_params(ROOT, "rho1b-spo-tree-666")
    found = estimate(params, 2047)
    assert found.most.segments == 16 * 258 and found.most.episodes == 512
    assert found.most.generated_tokens == 16 * (6 * 30 + 36 * 30 + 216 * 964)
    assert estimate(load_params(ROOT, "rho1b-spo-tree-456"), 2047).most.segments == 16 * 144


@pytest.mark.parametrize(("preset", "config"), [("rho1b-grpo", LlamaConfig), ("qwen1.5b-grpo", Qwen2Config)])
def test_parameters_of_the_published_policies(preset, config, tmp_path):
    shape = architecture(load_params(ROOT, preset))
    assert shape is not None
    written = config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(written)
    assert count_parameters(shape) == sum(p.numel() for p in model.parameters())
    assert count_parameters(shape) == {LlamaConfig: 1_100_048_384, Qwen2Config: 1_777_088_000}[config]
    written.save_pretrained(tmp_path)  # a local folder's own configuration is read before policy.init.shape
    overrides = (f"policy.init.path={tmp_path}", "policy.init.shape.layers=1")
    assert architecture(load_params(ROOT, preset, overrides)) == shape


@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
def test_parameters_of_a_policy_from_scratch(tokenizer):
    params = load_params(ROOT, None, (f"policy.init.tokenizer={tokenizer}",))
    assert isinstance(params.policy.init, ScratchPolicy)
    model = make_policy(params.policy.init, make_tokenizer(tokenizer, problem_set(DataParams())), seed=0)
    shape = architecture(params)
    assert shape is not None and count_parameters(shape) == sum(p.numel() for p in model.parameters())


def test_an_architecture_that_is_laid_out_otherwise_is_unknown(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "num_attention_heads": 2, "hidden_size": 8}')
    overrides = (f"policy.init={{type: pretrained, path: {tmp_path}}}",)
    assert architecture(load_params(ROOT, None, overrides)) is None
    assert architecture(load_params(ROOT, None, ("policy.init={type: pretrained, path: some/where}",))) is None


def memory(*overrides: str, preset: str | None = "rho1b-spo-tree-666"):
    params = load_params(ROOT, preset, overrides)
    shape = architecture(params)
    assert shape is not None
    return estimate_memory(params, shape)


def test_memory_of_weights_and_optimizer():
    count, alone = 1_100_048_384, memory()
    assert (alone.weights, alone.gradients, alone.optimizer, alone.reference) == (2 * count, 6 * count, 12 * count, 0)
    assert alone.engine_cache == 0  # vLLM's is a share of the device of its own
    ours = memory("rollout.engine={type: transformers}", "rollout.max_concurrency=128")
    assert ours.engine_cache == 128 * 2047 * 22 * 2 * 4 * 64 * 2 == ours.device - alone.device
    assert memory("learn.fidelity=reference").reference == 2 * count
    sharded = memory("learn.backend.ranks=4", "learn.backend.zero_stage=2", "learn.backend.offload_optimizer=true")
    assert (sharded.weights, sharded.gradients, sharded.optimizer) == (2 * count, count, 3 * count)
    assert alone.device - sharded.device == 12 * count + (6 * count - count)
    here = memory("learn.backend={type: torch}")
    assert (here.weights, here.gradients, here.optimizer) == (2 * count, 4 * count, 12 * count)
    plain = memory("learn.backend={type: torch}", "learn.dtype=float32")
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * count, 4 * count, 8 * count)
    assert memory("learn.gradient_checkpointing=false").activations > 5 * alone.activations


def test_a_prover_is_counted():
    """Value rollouts are its tokens; its memory is that of a policy and a cache beside, but not with vLLM, where it has
    GPUs of its own."""
    fans = (*CHAIN, "credit.partition={type: equal_parts, parts: 3}", "credit.mask={type: all}")
    policy, prover = (
        works(*fans, f"credit.value={{type: monte_carlo, rollouts: 5, prover: {who}}}", *PROGRESS)
        for who in ("null", "first")
    )
    for own, other in zip(policy, prover, strict=True):
        assert own.prover_tokens == 0 and other == replace(own, prover_tokens=other.prover_tokens)
    assert prover[0].prover_tokens == prover[0].generated_tokens - 60
    count = memory(preset="pav").parameters
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        found = memory(f"learn.dtype={dtype}", preset="pav")
        assert found.prover == size * count + found.engine_cache
        assert (
            found.device - memory(f"learn.dtype={dtype}", "credit.value.prover=null", preset="pav").device
            == found.prover
        )
    servers = "rollout.engine={type: vllm, servers: 2, first_gpu: 1}"
    assert memory(servers, preset="pav").prover == 0 and "as many, the GPUs behind them" in printed("pav", servers)
    assert "tokens generated by the prover" in printed("pav")
    assert "tokens generated by the prover" not in printed("ppo")


def test_a_critics_tokens_are_counted():
    """The trees once for their values, and in each epoch those of the iterations that are replayed."""
    value = "credit.value={type: critic, epochs: 3, replay: 2, loss: squared"
    one, clipped = (works(*CHAIN[-2:], f"{value}{more}}}") for more in ("", ", clip: 0.2"))
    for plain, more in zip(one, clipped, strict=True):
        assert plain.critic_tokens * 9 == more.critic_tokens * 7 > 0
    assert one[0].critic_tokens == 7 * (2 * 8 + one[0].generated_tokens)
    assert "tokens forwarded by the critic" in printed("ppo")


def test_the_tokens_of_gold_answers_are_counted():
    """A tree's two inner nodes and its prompt, an answer of ten tokens, or the whole context, behind each; behind two
    cuts of each of three responses."""
    gold = "credit.value={type: gold_answer}"
    most, expected = works("rollout.branch_factors=[2,3]", "credit.partition.tokens=4", gold)
    assert expected.answer_tokens == 2 * (10 + 2 * 4 + 3 * 10)
    assert most.answer_tokens == 2 * (2 * 4 + 3 * 40)
    parts = "credit.partition={type: equal_parts, parts: 3}"
    _, expected = works("rollout.branch_factors=[3]", "rollout.max_completion_tokens=12", parts, gold, context=60)
    assert expected.answer_tokens == 2 * (15 + 3 * 4 + 7 * 10)
    assert "to value states" in printed(None, gold) and "to value states" not in printed("ppo")


def test_memory_of_logits_is_that_of_one_chunk_and_its_gradient():
    assert memory().logits == 8 * CHUNK_LOGITS


def test_activations_are_near_what_a_forward_pass_keeps():
    """Bytes that autograd holds after a forward pass of a small Llama, its head left out."""
    tokens, shape = 64, "hidden_size: 64, layers: 6, heads: 4, intermediate_size: 176, max_positions: 160"
    overrides = (
        f"policy.init={{type: scratch, tokenizer: characters, {shape}}}",
        f"learn.max_tokens_per_forward={tokens}",
        f"rollout.context_length={tokens}",
    )
    params = load_params(ROOT, None, overrides)
    assert isinstance(params.policy.init, ScratchPolicy)
    model = make_policy(params.policy.init, make_tokenizer("characters", problem_set(DataParams())), seed=0).train()
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.model(torch.randint(3, 19, (1, tokens)), use_cache=False).last_hidden_state
    assert output.requires_grad
    for parameter in model.parameters():
        held.pop(parameter.untyped_storage().data_ptr(), None)
    activations = memory(*overrides, preset=None).activations
    assert activations == pytest.approx(sum(held.values()), rel=0.3)
    recomputed = memory(*overrides, "learn.gradient_checkpointing=true", preset=None).activations
    assert recomputed == activations // 6 + 6 * tokens * 64 * 4  # one layer, and the input of each


def printed(preset: str | None, *overrides: str) -> str:
    out = io.StringIO()
    print_dry_run(load_params(ROOT, preset, overrides), Console(file=out, width=120, highlight=False, markup=False))
    return out.getvalue()


def test_every_param_and_every_context_are_printed():
    params, text = load_params(ROOT, "qwen1.5b-spo-tree-666"), printed("qwen1.5b-spo-tree-666")
    for content in params.model_dump(mode="json").values():
        for key in flatten(content):
            assert f"\n  {key}: " in text
    assert "from iteration 1 on, context of 2,048 tokens" in text
    assert "from iteration 231 on, context of 4,096 tokens" in text
    assert "1,777,088,000 parameters" in text


def test_what_is_missing_is_said():
    assert "unknown: policy.init" in printed(None, "policy.init={type: pretrained, path: some/where}")
    with pytest.raises(ConfigError, match="no problem set 'riddles'; there are: "):
        printed(None, "data.problem_set=riddles")
