"""Trees and report inputs for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from spo_core.config import CreditParams
from spo_core.credit import Credit, assign_credit
from spo_core.evaluate.lighteval.details import Sample, by_question
from spo_core.evaluate.result import CellScore, CrossCheck, Protocol, Tokens
from spo_core.evaluate.uncertainty import bootstrap_interval, standard_error
from spo_core.observe.evaluations import EvaluatedCell
from spo_core.observe.report import ReportInputs
from spo_core.tree import FinishReason, Node, RolloutTree
from spo_core.verify import Outcome

TREE = CreditParams.model_validate(
    {
        "partition": {"type": "fixed_tokens", "tokens": 20},
        "value": {"type": "tree_mean"},
        "advantage": {"type": "difference"},
        "mask": {"type": "low_probability", "threshold": 0.9},
    }
)
CHAIN = CreditParams.model_validate(
    {
        "partition": {"type": "cutpoints", "interval": 1},
        "value": {"type": "monte_carlo", "rollouts": 9},
        "advantage": {"type": "difference"},
        "mask": {"type": "low_probability", "threshold": 0.9},
    }
)


def decode(ids) -> str:
    """A token id is a code point."""
    return "".join(chr(i) for i in ids)


def node(parent: int, text: str, finish: FinishReason = FinishReason.SEGMENT, *, logprob: float = -0.5, **more) -> Node:
    return Node.sampled(parent, [ord(c) for c in text], [logprob] * len(text), finish, **more)


def leaf(parent: int, text: str, correct: bool, **more) -> Node:
    return node(
        parent, text, FinishReason.STOP, reward=float(correct), outcome="correct" if correct else "wrong", **more
    )


def prompt(text: str = "1+1=?\n") -> Node:
    return Node.prompt([ord(c) for c in text])


def small_tree(text: str = "2") -> tuple[RolloutTree, Credit, str]:
    tree = RolloutTree("small-0", (prompt(), leaf(0, text, True), leaf(0, "3", False)))
    return tree, assign_credit(tree, TREE), "1+1=?"


def full_tree(branch: int = 6, depth: int = 3, tokens: int = 20) -> tuple[RolloutTree, Credit, str]:
    """6-6-6 has 258 segments."""
    rng = np.random.default_rng(0)
    nodes, level = [prompt()], [0]
    for d in range(1, depth + 1):
        below = []
        for parent in level:
            for _ in range(branch):
                ids, logprobs = rng.integers(97, 123, tokens), -rng.exponential(0.2, tokens)
                correct = bool(rng.integers(0, 2))
                end = {"reward": float(correct), "outcome": "correct" if correct else "wrong"} if d == depth else {}
                nodes.append(
                    Node.sampled(parent, ids, logprobs, FinishReason.STOP if end else FinishReason.SEGMENT, **end)
                )
                below.append(len(nodes) - 1)
        level = below
    tree = RolloutTree("full-0", tuple(nodes))
    return tree, assign_credit(tree, TREE), "a question"


def chain_tree() -> tuple[RolloutTree, Credit, str]:
    """Two trajectories; the first has three segments with fans of 9 (4 and 7 of them correct), the second is whole."""
    nodes = [prompt(), node(0, "1+1"), node(1, "="), leaf(2, "2", True), leaf(0, "3", False)]
    for parent, correct in ((1, 4), (2, 7)):
        nodes += [leaf(parent, f"v{parent}", k < correct, trainable=False) for k in range(9)]
    tree = RolloutTree("chain-0", tuple(nodes))
    return tree, assign_credit(tree, CHAIN), "1+1=?"


VERSIONS = {"lighteval": "0.13.0", "torch": "2.11.0"}
OUTCOMES = (Outcome.WRONG, Outcome.NO_ANSWER, Outcome.UNPARSABLE, Outcome.TIMEOUT, Outcome.TRUNCATED)


def completions(seed: int, correct: float, questions: int = 50, samples: int = 4) -> list[Sample]:
    """Drawn at random; lighteval agrees with most of them."""
    rng = np.random.default_rng(seed)
    drawn = []
    for question in range(questions):
        for number in range(samples):
            outcome = Outcome.CORRECT if rng.random() < correct else OUTCOMES[rng.integers(len(OUTCOMES))]
            agrees = rng.random() < 0.9
            other = "correct" if (outcome is Outcome.CORRECT) == agrees else ("wrong", "timeout")[rng.integers(2)]
            given = None if outcome is Outcome.NO_ANSWER else f"{rng.integers(100)}"
            tokens = int(rng.integers(20, 80))
            drawn.append(
                Sample(f"test-{question:03}", number, f"= {given}", f"gold {question}", given, outcome, other, tokens)
            )
    return drawn


def cell(
    samples: list[Sample],
    model: str = "final",
    *,
    problem_set: str = "arithmetic",
    context: str = "long",
    context_length: int = 80,
    prompt_hash: str = "0123456789abcdef",
    seed: int = 0,
    **protocol,
) -> EvaluatedCell:
    """Scored from its completions; ``protocol`` replaces fields of it."""
    rows = [[sample.correct for sample in row] for row in by_question(samples)]
    theirs = [[sample.lighteval == "correct" for sample in row] for row in by_question(samples)]
    means, n = np.mean(rows, axis=1), len(samples)
    shares = {o: sum(sample.outcome is o for sample in samples) / n for o in Outcome}
    tokens = [sample.tokens for sample in samples]
    differing = [sample for sample in samples if sample.disagrees]
    graded = any(sample.lighteval is not None for sample in samples)
    check = CrossCheck(
        accuracy=float(np.mean(theirs)),
        standard_error=standard_error(np.mean(theirs, axis=1)),
        disagreements=len(differing),
        truncated_disagreements=sum(sample.outcome is Outcome.TRUNCATED for sample in differing),
        timeouts=sum(sample.lighteval == "timeout" for sample in samples),
    )
    settings = {
        "questions": len(rows),
        "samples": len(rows[0]),
        "temperature": 1.0,
        "top_p": 1.0,
        "prompt_digest": "3f8a" * 16,
        "answer_digest": "77c1" * 16,
        "grader": "exact",
        "engine": "transformers",
        "dtype": "float32",
        "versions": VERSIONS,
    }
    score = CellScore(
        model=model,
        model_digest=(model[:1] * 64),
        suite="embedded",
        cell=f"{problem_set}-{context}",
        context=context,
        accuracy=float(np.mean(means)),
        standard_error=standard_error(means),
        interval=bootstrap_interval(np.array(rows, float), seed),
        majority=float(np.mean(means >= 0.5)),
        truncated=shares[Outcome.TRUNCATED],
        no_answer=shares[Outcome.NO_ANSWER],
        unparsable=shares[Outcome.UNPARSABLE],
        timeout=shares[Outcome.TIMEOUT],
        tokens=Tokens(
            float(np.mean(tokens)), float(np.median(tokens)), float(np.quantile(tokens, 0.9)), max(tokens), None
        ),
        cross_check=check if graded else None,
        protocol=Protocol(problem_set=problem_set, context_length=context_length, **settings | protocol),
        lighteval_prompt_hash=prompt_hash,
        seed=seed,
        seconds=20.625,
        generated_tokens=sum(tokens),
    )
    return EvaluatedCell(score, samples, f"metrics/evaluate/{model}/{problem_set}-{context}.parquet")


def evaluation(checkpoint: str, correct: float) -> dict[str, EvaluatedCell]:
    """Two contexts of one problem set."""
    short = cell(completions(1, correct / 2), checkpoint, context="short", context_length=56)
    long = cell(completions(2, correct), checkpoint)
    return {evaluated.score.cell: evaluated for evaluated in (short, long)}


def changed(evaluated: EvaluatedCell, **protocol) -> EvaluatedCell:
    """The same figures, measured in another way."""
    return replace(evaluated, score=replace(evaluated.score, protocol=replace(evaluated.score.protocol, **protocol)))


def inputs() -> ReportInputs:
    iterations = [
        {
            "iteration": i,
            "generated_tokens": 50_000 * i,
            "rollout/reward": 0.4 + i / 100,
            "rollout/completion_tokens": 50.0,
            "rollout/truncated_share": 0.1,
            "rollout/unparsable_share": 0.01 * i,
            "rollout/timeout_share": 0.0,
            "credit/mask_share": 0.2,
            "credit/segments_with_advantage": 0.6,
            "train/clip_fraction": 0.01,
            "train/kl": 0.001 * i,
            "train/grad_norm": 1.0,
            "timing/rollout": 4.125,
            "timing/advantage": 0.081,
            "timing/train": 3.375,
        }
        for i in range(1, 9)
    ]
    evaluations = {"warmup": evaluation("warmup", 0.4), "final": evaluation("final", 0.7)}
    before, after = (evaluations[name]["arithmetic-long"].score for name in ("warmup", "final"))
    summary = {
        "accuracy_before": before.accuracy,
        "standard_error_before": before.standard_error,
        "accuracy_after": after.accuracy,
        "standard_error_after": after.standard_error,
        "generated_tokens": 400_000,
        "seconds": {"warmup": 71.24, "train": 333.25},
    }
    return ReportInputs(
        title="tree run",
        summary=summary,
        evaluations=evaluations,
        iterations=iterations,
        warmup=[{"iteration": i, "warmup/loss": 2.0 / i} for i in range(1, 9)],
        params={
            "learn": {"learning_rate": 0.0003, "kl": {"type": "penalty", "estimator": "k3"}},
            "run": {"name": None},
        },
        provenance={"code_revision": "0123abcd", "uncommitted_changes": False},
        trees=[small_tree(), chain_tree()],
    )
