"""An open bench over a random tiny policy and a few questions, as tests/invariants trains with; no server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from spo_core.analysis.bench import Bench, opened
from spo_core.analysis.candidates import Candidate
from spo_core.analysis.measure import measure
from spo_core.paths import Paths
from tests.invariants.test_training_runs import small

FEW_CUTS = "credit.partition={type: cutpoints, prob_threshold: 0.9, interval: 8}"  # a random policy is never certain
SHAPES = {
    "tree": small("rollout.branch_factors=[3, 2]", "credit.partition={type: fixed_tokens, tokens: 6}"),
    "chain": small("rollout.branch_factors=[3]", FEW_CUTS, preset="spo-chain"),
    "adaptive": small(
        "rollout.branch_factors=[3]",
        FEW_CUTS,
        "credit.value={type: adaptive_monte_carlo, min_rollouts: 1, max_rollouts: 2}",
        preset="spo-chain",
    ),
    "whole": small("rollout.branch_factors=[4]", preset="grpo"),
    "critic": small(
        "rollout.branch_factors=[2]",
        "credit.value.warmup_iterations=2",
        "credit.value.optimizer_steps=2",
        "credit.value.learning_rate=0.01",
        preset="ppo",
    ),
    "gold": small("rollout.branch_factors=[3, 2]", "credit.partition.tokens=6", "credit.value={type: gold_answer}"),
    "prover": small("rollout.branch_factors=[3]", FEW_CUTS, preset="pav"),
    "pairs": small("rollout.branch_factors=[4]", "learn.loss.pairs=2", preset="dpo-positive"),
    "sequences": small("rollout.branch_factors=[3, 2]", "credit.partition.tokens=6", preset="dvo"),
}
SEQUENCES = ("pairs", "sequences")  # whose loss is of whole sequences


def candidate(name: str) -> Candidate:
    return Candidate(name, SHAPES[name])


@contextmanager
def laboratory(
    paths: Paths, folder: Path, candidates: Sequence[Candidate], first: Path | None = None
) -> Iterator[Bench]:
    with opened(candidates, paths, paths.checkpoint("warmup"), folder, first) as bench:
        yield bench


def measured(paths, folder: Path, *candidates: Candidate, tokens: int, first: Path | None = None) -> list[Path]:
    with laboratory(paths, folder, candidates, first) as bench:
        for one in candidates:
            measure(bench, one, folder / one.name, tokens)
    return [folder / one.name for one in candidates]


class Killed(BaseException):
    """What ends a measurement where a test wants it to."""
