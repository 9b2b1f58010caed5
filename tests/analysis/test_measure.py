"""Gradients of candidates: resumed to the same bits, sketches of the real gradient, and of nothing but credit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from spo_core.analysis import measure as module
from spo_core.analysis.candidates import Candidate
from spo_core.analysis.measure import batches, measure, read_batch, read_credited, read_gradients
from spo_core.analysis.sketch import sketch
from spo_core.credit import assign_credit
from spo_core.errors import ConfigError, DataError, TrainingError
from spo_core.learn.backend import TorchBackend
from spo_core.policy.checkpoint import load_policy
from spo_core.system.files import file_digest
from tests.analysis.laboratory import SEQUENCES, SHAPES, Killed, candidate, laboratory, measured
from tests.invariants.test_training_runs import prepared, small
from tests.learn.test_gradient import TEMPERATURE, naive

pytestmark = pytest.mark.slow

each_shape = pytest.mark.parametrize("name", SHAPES)
CHAINS = ("chain", "adaptive", "prover")
DIFFERENT = ("tree", "adaptive", "critic")  # in what a batch holds and samples


def bits(folder: Path) -> dict:
    """Everything of a candidate's batches but seconds, the trees it credits included."""
    found = {}
    for batch in batches(folder):
        record = {k: v for k, v in asdict(read_batch(batch)).items() if not k.endswith("seconds")}
        trees = [file_digest(p) for p in sorted(folder.parent.glob(f"trees-*/{batch.name}/trees.parquet"))]
        found[batch.name] = record | {p.name: file_digest(p) for p in batch.iterdir() if p.suffix != ".json"}
        found[batch.name]["trees"] = trees
    return found


@pytest.mark.parametrize(
    "name", [name if name in DIFFERENT else pytest.param(name, marks=pytest.mark.exhaustive) for name in SHAPES]
)
def test_killed_between_batches_and_within_one_ends_in_the_same_bits(name, paths, tmp_path, monkeypatch):
    one, place, tokens = candidate(name), tmp_path / "b" / name, 3500 if name in CHAINS else 1200
    (straight,) = measured(paths, tmp_path / "a", one, tokens=tokens)
    assert len(batches(straight)) >= 3 and read_gradients(straight).vectors.any(), "nothing was measured"

    def die(done: int) -> None:
        raise Killed

    with pytest.raises(Killed), laboratory(paths, tmp_path / "b", [one]) as bench:
        measure(bench, one, place, tokens, die)
    assert len(batches(place)) == 1
    write, calls = module.save_file, []
    with monkeypatch.context() as patched, laboratory(paths, tmp_path / "b", [one]) as bench:
        patched.setattr(module, "save_file", lambda *a: die(0) if calls else calls.append(write(*a)))
        with pytest.raises(Killed):
            measure(bench, one, place, tokens)
    assert len(batches(place)) == 2 and not list(place.glob(".*"))
    measured(paths, tmp_path / "b", one, tokens=tokens)
    assert bits(place) == bits(straight)


def test_candidates_do_not_depend_on_which_others_are_measured(paths, tmp_path):
    pair = [candidate("tree"), candidate("chain")]
    together = measured(paths, tmp_path / "a", *pair, tokens=600)
    turned = measured(paths, tmp_path / "b", *reversed(pair), tokens=600)[::-1]
    assert [bits(folder) for folder in together] == [bits(folder) for folder in turned]


def test_candidates_that_sample_alike_credit_the_same_trees(paths, tmp_path):
    """The second samples nothing; a difference of credit is not one of trees, and neither depends on the other."""
    one = candidate("tree")
    credit = type(one.params.credit).model_validate(
        one.params.credit.model_dump() | {"advantage": {"type": "leave_one_out"}}
    )
    other = Candidate("other", one.params.model_copy(update={"credit": credit}))
    folders = measured(paths, tmp_path / "a", one, other, tokens=600)
    assert len(list((tmp_path / "a").glob("trees-*"))) == 1
    trees = [[tree for tree, _ in read_credited(c, f)] for c, f in zip((one, other), folders, strict=True)]
    assert len(trees[0]) == len(trees[1]) > 0
    for a, b in zip(*trees, strict=True):
        assert all(np.array_equal(x.token_ids, y.token_ids) for x, y in zip(a.nodes, b.nodes, strict=True))
    first, second = (read_gradients(folder) for folder in folders)
    assert np.array_equal(first.tokens, second.tokens) and not np.array_equal(first.vectors, second.vectors)
    (alone,) = measured(paths, tmp_path / "b", other, tokens=600)
    assert bits(alone) == bits(folders[1])


def test_more_tokens_keep_what_is_there(paths, tmp_path):
    one = candidate("tree")
    (folder,) = measured(paths, tmp_path / "a", one, tokens=400)
    before = bits(folder)
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    measured(paths, tmp_path / "a", one, tokens=1200)
    after = bits(folder)
    assert len(after) > len(before) and {k: after[k] for k in before} == before
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    fewer = read_gradients(folder)
    measured(paths, tmp_path / "a", one, tokens=10)
    assert np.array_equal(read_gradients(folder).vectors, fewer.vectors), "what was measured is not thrown away"


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in SEQUENCES])
def test_a_sketch_is_that_of_the_naive_gradient(name, paths, tmp_path):
    """Sum over trained tokens of -A grad log p, a tree at a time; equal too if the sampler's temperature is not 1."""
    params = SHAPES[name].model_copy(
        update={"rollout": SHAPES[name].rollout.model_copy(update={"temperature": TEMPERATURE})}
    )
    one = Candidate(name, params)
    (folder,) = measured(paths, tmp_path / "a", one, tokens=1)
    policy, _ = load_policy(paths.checkpoint("warmup"))
    vectors = torch.from_numpy(load_file(folder / "00001" / "gradients.safetensors")["vectors"])
    assert len(vectors) == 4 and vectors.any()
    for pair, vector in zip(read_credited(one, folder)[:4], vectors, strict=True):
        expected = sketch([naive(policy.eval(), [pair])], params.run.seed)
        torch.testing.assert_close(vector, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max() + 1))


@each_shape
def test_gradients_belong_to_their_trees(name, paths, tmp_path):
    one = candidate(name)
    (folder,) = measured(paths, tmp_path / "a", one, tokens=500)
    found, pairs = read_gradients(folder), read_credited(one, folder)
    trees = [tree for tree, _ in pairs]
    assert [tree.question_id for tree in trees] == [q for q in found.questions for _ in range(2)]
    assert len(set(found.questions)) == len(found.questions)
    tokens = np.array([tree.generated_tokens for tree in trees]).reshape(-1, 2)
    assert np.array_equal(found.tokens, tokens.mean(axis=1)) and tokens.sum() >= 500
    assert tokens[: -one.batch_questions].sum() < 500 or len(found.questions) <= 4, "and stops there"
    for number, (tree, credit) in enumerate(pairs):
        if name not in ("critic", "gold"):
            own = assign_credit(tree, one.params.credit)
            assert all(np.array_equal(a, b) for a, b in zip(own.advantages, credit.advantages, strict=True))
        signal = any(credit.trains(i) for i in range(len(tree.nodes)))
        assert found.signal.reshape(-1)[number] == signal == found.vectors.reshape(len(trees), -1)[number].any()
    again = [
        any(not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(x.nodes, y.nodes, strict=False))
        for x, y in zip(trees[::2], trees[1::2], strict=True)
    ]
    assert all(again), "the second sample of a question is another one"
    assert (found.seconds > 0).all()


def test_a_measurement_ends_where_the_split_does(tmp_path, policy, tokenizer, monkeypatch):
    own = ("data.train=7", "rollout.questions=4")
    paths = prepared(tmp_path, policy, tokenizer, monkeypatch, *own)
    (folder,) = measured(paths, tmp_path / "a", Candidate("c", small(*own)), tokens=10**9)
    assert len(read_gradients(folder).questions) == 6, "three batches of two; the seventh question makes none"


@pytest.mark.parametrize(("train", "questions"), [(8, 18), (3, 4), (2, 2)])
def test_too_few_questions_are_refused_before_anything_is_sampled(
    tmp_path, policy, tokenizer, monkeypatch, train, questions
):
    own = (f"data.train={train}", f"rollout.questions={questions}")
    paths = prepared(tmp_path, policy, tokenizer, monkeypatch, *own)
    fits, large = (
        Candidate("fits", small(f"data.train={train}", "rollout.questions=2")),
        Candidate("large", small(*own)),
    )
    with (
        pytest.raises(
            DataError, match=rf"split train has {train} questions, (large|fits) needs \d+.*rollout\.questions"
        ),
        laboratory(paths, tmp_path / "a", [fits, large]),
    ):
        pass


def test_a_context_beyond_the_policy_s_positions_is_refused(paths, tmp_path):
    with (
        pytest.raises(ConfigError, match=r"rollout\.context_length 129 exceeds the 128 positions"),
        laboratory(paths, tmp_path / "a", [Candidate("c", small("rollout.context_length=129"))]),
    ):
        pass


def test_gradients_that_do_not_add_up_are_refused(paths, tmp_path, monkeypatch):
    take = TorchBackend.take_gradient
    monkeypatch.setattr(TorchBackend, "take_gradient", lambda self: [g + 0.1 for g in take(self)])
    with pytest.raises(TrainingError, match="do not add up"):
        measured(paths, tmp_path / "a", candidate("tree"), tokens=1)


LEARN = [
    (
        "learn.learning_rate=0.1",
        "learn.epochs=3",
        "learn.optimizer_steps=1",
        "learn.kl={type: penalty, coefficient: 3.0}",
        "learn.importance_cap=0.5",
        "learn.max_ratio=1.5",
        "learn.max_grad_norm=0.001",
        "learn.replay={max_age: 3}",
        "learn.report_entropy=false",
    ),
    ("learn.fidelity=reference", "learn.micro_batch=2"),
    ("learn.max_tokens_per_forward=60", "learn.attention=rows", "learn.gradient_checkpointing=true"),
]


def test_what_an_identity_leaves_out_changes_no_gradient(paths, tmp_path):
    """However the update is made, and divided: the gradient is that of the summed token losses at the policy."""
    shape = "rollout.branch_factors=[3, 2]"
    (folder,) = measured(paths, tmp_path / "base", Candidate("c", small(shape)), tokens=1)
    expected = read_gradients(folder).vectors
    for number, overrides in enumerate(LEARN):
        (folder,) = measured(paths, tmp_path / str(number), Candidate("c", small(shape, *overrides)), tokens=1)
        found = read_gradients(folder).vectors
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), overrides
