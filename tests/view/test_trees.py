"""What is drawn of a tree, against plain recursion, brute force and independent statistics."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from spo_core.credit import assign_credit
from spo_core.credit.pairs import write_pairs
from spo_core.observe.formatting import visible
from spo_core.policy.checkpoint import save_policy
from spo_core.problems import problem_set
from spo_core.system.files import write_json
from spo_core.tree import FinishReason, Node, RolloutTree
from spo_core.view.iterations import search
from spo_core.view.measured import measure
from spo_core.view.texts import Texts
from spo_core.view.trees import equal_states, interval, mistakes, token_blocks, tree_page
from tests.conftest import SHORT_DATA, random_tree
from tests.observe.examples import CHAIN, TREE, chain_tree, decode, full_tree


def graded(rng: np.random.Generator, **shape: int) -> RolloutTree:
    tree = random_tree(rng, **shape)
    leaves = set(tree.leaves)
    nodes = [
        n.graded(n.reward, "correct" if n.reward else "wrong") if i in leaves else n for i, n in enumerate(tree.nodes)
    ]
    return RolloutTree("q", tuple(nodes))


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_the_tree_folded(seed):
    """Each node once, parents first; ``below`` and leaves as recursion counts them; hidden only below a fold."""
    tree = graded(np.random.default_rng(seed), depth=4, widest=4, longest=5)
    page = tree_page(tree, assign_credit(tree, TREE), Texts(), {}, "")
    assert [row.index for row in page.rows] == list(tree.depth_first[1:])

    def under(i: int) -> list[int]:
        return [k for c in tree.children[i] for k in (c, *under(c))]

    open_rows = {row.index: row.is_open for row in page.rows} | {0: True}
    for place, row in enumerate(page.rows):
        own = under(row.index)
        assert [r.index for r in page.rows[place + 1 : place + 1 + row.below]] == own
        leaves = [i for i in (row.index, *own) if not tree.children[i]]
        assert row.leaves == len(leaves) and row.correct == sum(tree.nodes[i].reward for i in leaves)
        assert row.visible == all(open_rows[i] for i in tree.path(row.index)[:-1])
    assert page.responses == len(tree.leaves) and page.strongest == max(
        row.strength * page.strongest for row in page.rows
    )


def test_a_large_tree_shows_the_way_to_the_strongest_advantage_alone():
    tree, credit, _ = full_tree()
    page = tree_page(tree, credit, Texts(), {}, "")
    seen = [row for row in page.rows if row.visible]
    assert len(page.rows) == 258 and len(seen) == 18 and max(row.strength for row in seen) == 1


def test_value_rollouts_are_counted_and_not_drawn():
    tree, credit, _ = chain_tree()
    page = tree_page(tree, credit, Texts(), {}, "")
    first = page.rows[0]
    assert (page.value_rollouts, len(page.rows), first.fan) == (18, 4, {"wrong": 5, "correct": 4})
    assert first.continuations == 9 and first.interval == interval(4 / 9, 9, 0, 1)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 6), (3, 6), (5, 9), (40, 216)])
def test_intervals_are_wilsons(k, n):
    expected = binomtest(k, n).proportion_ci(0.95, "wilson")
    assert interval(k / n, n, 0, 1) == pytest.approx(tuple(expected), abs=1e-4)
    assert interval(2 * k / n - 1, n, -1, 1) == pytest.approx([2 * x - 1 for x in expected], abs=2e-4)
    assert interval(float("nan"), n, 0, 1) is None and interval(0.5, 0, 0, 1) is None


@pytest.mark.parametrize("kind", ["tree_mean", "monte_carlo", "adaptive_monte_carlo", "critic", "custom"])
def test_only_means_of_continuations_have_intervals(kind):
    for tree, credit, _ in (chain_tree(), full_tree(2, 3)):
        page = tree_page(tree, credit, Texts(), {"credit.value.type": kind}, "")
        valued = [row for row in page.rows if row.below and np.isfinite(row.value)]
        assert {row.interval is not None for row in valued} == {kind not in ("critic", "custom")}
        assert all(bool(row.continuations) == (row.interval is not None) for row in valued)
        assert kind in ("tree_mean", "monte_carlo", "adaptive_monte_carlo") or page.interval is None


@pytest.mark.parametrize("seed", range(20))
def test_equal_states_are_those_of_equal_tokens(seed):
    rng = np.random.default_rng(seed)
    tree = graded(rng, depth=3, widest=3, longest=2, vocabulary=5)
    texts = [tuple(tree.completion(i).tolist()) for i in range(len(tree.nodes))]
    found = equal_states(tree)
    for i in range(1, len(tree.nodes)):
        assert found.get(i, ()) == tuple(k for k in range(1, len(texts)) if k != i and texts[k] == texts[i])


@pytest.mark.parametrize(
    ("cut", "problem_set_name", "question_id"),
    [(1, "arithmetic", "q"), (3, "mixed", "arithmetic-train-000001"), (7, "arithmetic", "q")],
)
def test_the_first_wrong_step_is_marked_wherever_segments_are_cut(tokenizer, cut, problem_set_name, question_id):
    params = {"data.problem_set": problem_set_name}
    problem = problem_set(SHORT_DATA)
    question, wrong = "7+5*3-9", "7+5=12\n12*3=35\n35-9=26\n#### 26"
    ids = tokenizer(wrong)["input_ids"]
    nodes = [Node.prompt(tokenizer(problem.prompt(question))["input_ids"])]
    for start in range(0, len(ids), cut):
        part, last = ids[start : start + cut], start + cut >= len(ids)
        node = Node.sampled(
            len(nodes) - 1, part, [-0.5] * len(part), FinishReason.STOP if last else FinishReason.SEGMENT
        )
        nodes.append(node.graded(0.0, "wrong") if last else node)
    tree, texts = RolloutTree(question_id, tuple(nodes)), Texts(tokenizer.backend_tokenizer)
    flags = mistakes(tree, texts, params, question)
    marked = [bool(flags.get(i, np.zeros(99))[k]) for i in range(1, len(nodes)) for k in range(len(nodes[i].token_ids))]
    pieces = texts.pieces([], ids)
    assert "".join(p for p, m in zip(pieces, marked, strict=True) if m) == "12*3=35\n"
    page = tree_page(tree, assign_credit(tree, TREE), texts, params, question)
    assert sum(row.mistake for row in page.rows) == 1 and page.knows_mistakes
    blocks = token_blocks(tree, assign_credit(tree, TREE), texts, flags, range(1, len(nodes)))
    assert "".join(text for block in blocks.values() for text in block["text"]) == wrong
    other = replace(tree, question_id="gsm8k-train-1")
    assert not tree_page(
        other, assign_credit(tree, TREE), texts, {"data.problem_set": "mixed"}, question
    ).knows_mistakes


def test_entropy_and_ratio_are_those_of_plain_sequences(policy, tokenizer, tmp_path):
    """Against one forward of the model a response; the policy that sampled has ratios of 1."""
    tree = random_tree(np.random.default_rng(3), depth=3, widest=3, longest=6)
    save_policy(policy, tokenizer, tmp_path)

    def plain(leaf: int) -> tuple[np.ndarray, np.ndarray]:
        ids = torch.tensor([[*tree.nodes[0].token_ids.tolist(), *tree.completion(leaf).tolist()]])
        with torch.no_grad():
            logprobs = (policy(ids).logits[0] / 0.7).log_softmax(-1)
        own = logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].numpy()
        entropy = -(logprobs.exp() * logprobs).sum(-1)[:-1].numpy()
        start = len(tree.nodes[0].token_ids) - 1
        return own[start:], entropy[start:]

    nodes, expected = list(tree.nodes), {}
    for leaf in tree.leaves:
        own, entropy = plain(leaf)
        for i in tree.path(leaf)[1:]:
            stop = tree.completion_lengths[i]
            part = slice(stop - len(nodes[i].token_ids), stop)
            n = tree.nodes[i]
            expected[i] = entropy[part], np.exp(own[part] - n.logprobs)
            nodes[i] = Node.sampled(n.parent, n.token_ids, own[part], n.finish, reward=n.reward)
    found = measure(tree, tmp_path, 0.7)
    assert found.keys() == set(range(1, len(nodes)))
    for i, (entropy, ratio) in expected.items():
        np.testing.assert_allclose(found[i]["entropy"], entropy, atol=2e-4)
        np.testing.assert_allclose(found[i]["ratio"], ratio, rtol=2e-3, atol=2e-5)
    for block in measure(RolloutTree("q", tuple(nodes)), tmp_path, 0.7).values():
        np.testing.assert_allclose(block["ratio"], 1, atol=2e-4)


def test_found_continuations_lead_to_segments_of_the_trees_page(tmp_path):
    """Value rollouts have no row there; the state that they start from has, unless it is the prompt."""
    chain, _, text = chain_tree()
    nodes = [*chain.nodes, *(Node.sampled(0, [118, 48 + k], [-1, -1], FinishReason.STOP) for k in range(3))]
    for i in range(len(chain.nodes), len(nodes)):
        nodes[i] = replace(nodes[i], trainable=False, reward=0.0, outcome="wrong")
    tree = replace(chain, nodes=tuple(nodes))
    write_pairs(tmp_path, [(tree, credit := assign_credit(tree, CHAIN))])
    write_json(tmp_path / "questions.json", [{"question_id": "chain-0", "question": text, "answer": "2"}])
    listed = {row.index for row in tree_page(tree, credit, Texts(), {}, "").rows}
    found = search(tmp_path, "v", decode).found
    assert len(found) == 9 + 9 + 3 and all(hit.value_rollout for hit in found)
    assert [hit.segment for hit in found] == [1] * 9 + [2] * 9 + [0] * 3
    responses = [hit for hit in search(tmp_path, "1", decode).found if not hit.value_rollout]
    assert [hit.segment for hit in responses] == [3] and {1, 2, 3} <= listed and 0 not in listed


def test_what_would_be_obeyed_is_shown():
    """Of every code point: no control, format or separator is left but what letters need, and all else stays."""
    obeyed = ("Cc", "Cf", "Cs", "Zl", "Zp")
    every = [(character, unicodedata.category(character)) for character in map(chr, range(0x110000))]
    text = "".join(character for character, category in every if category in obeyed)
    assert {c for c in visible(text) if unicodedata.category(c) in obeyed} == {"\n", "\t", "\u200c", "\u200d"}
    assert visible(visible(text)) == visible(text)
    rest = "".join(character for character, category in every[:0x20000] if category not in obeyed)
    assert visible(rest) == rest
