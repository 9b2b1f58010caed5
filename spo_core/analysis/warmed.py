"""A candidate's critic as a run has it when its policy begins to learn: warmed on the policy's graded rollouts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from spo_core.analysis.bench import Bench, own_params
from spo_core.analysis.candidates import Candidate, warming
from spo_core.analysis.efficiency import Estimate, jackknife
from spo_core.config import digest
from spo_core.learn.critic import Critic, StateValues, own_model, quality, state_returns
from spo_core.system.files import atomic_directory, read_json, write_json
from spo_core.train.questions import QuestionOrder
from spo_core.tree import RolloutTree


@dataclass(frozen=True, slots=True)
class Warming:
    """What warming took: iterations and generated tokens, and the seconds in which the last one trained a tree."""

    iterations: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CriticFound:
    """A warmed critic over the trees that were measured, whose questions it has not seen."""

    warming: Warming
    explained: Estimate
    """Share of the variance of returns that its values explain, over all tokens; the error is over questions."""
    calibration_error: float
    by_quarter: tuple[float, ...]
    """Root mean squared difference to the returns, by quarters of the longest response's tokens."""


def warm(bench: Bench, candidate: Candidate, folder: Path) -> tuple[Critic, Warming]:
    """The candidate's critic after ``credit.value.warmup_iterations`` of its own rollouts, beside ``folder``.

    As in a run, each iteration samples ``rollout.questions`` questions; they come from the end of the order in which
    questions are measured, so that none is both. Finished iterations are kept.
    """
    params, value = own_params(candidate), candidate.params.credit.value
    assert value.type == "critic"
    place, worker = _place(candidate, folder), bench.worker(candidate)
    shares, seed = params.rewards_are_shares, params.run.seed
    first = own_model(bench.backend.model, value)
    critic = Critic(first, bench.backend, value, params.learn, probabilities=shares, seed=seed)
    count = candidate.warming_questions(len(bench.rows))
    last = QuestionOrder(bench.rows, candidate.params.run.seed, position=len(bench.rows) - count).draw(count, 0)
    order, done = QuestionOrder(last, seed), _done(place)
    for number in range(1, value.warmup_iterations + 1):
        rows = order.draw(params.rollout.questions, number)
        if number < done.iterations:
            continue
        if number == done.iterations:
            critic.load(place / f"{number:05d}")
            continue
        trees = worker.sample(rows, iteration=number, version=0).trees
        started = time.perf_counter()
        critic.update(trees, number)
        seconds = (time.perf_counter() - started) / len(trees)
        done = Warming(number, done.tokens + sum(tree.generated_tokens for tree in trees), seconds)
        with atomic_directory(place / f"{number:05d}") as target:
            critic.save(target)
            write_json(target / "warming.json", asdict(done))
        shutil.rmtree(place / f"{number - 1:05d}", ignore_errors=True)
    return critic, done


def read_warming(candidate: Candidate, folder: Path) -> Warming:
    """What warming the critic of a candidate that was measured in ``folder`` took."""
    return _done(_place(candidate, folder))


def _place(candidate: Candidate, folder: Path) -> Path:
    return folder.parent / f"critic-{digest(warming(candidate))[:8]}"


def _done(place: Path) -> Warming:
    found = sorted(path for path in place.iterdir() if path.name.isdigit()) if place.is_dir() else []
    return TypeAdapter(Warming).validate_python(read_json(found[-1] / "warming.json")) if found else Warming()


def critic_found(trees: Sequence[RolloutTree], before: Sequence[StateValues], took: Warming) -> CriticFound:
    """How good a critic's values ``before`` every token are."""
    found = quality(trees, before)
    quarters = tuple(found[f"error_quarter_{k}"] for k in range(1, 5))
    return CriticFound(took, explained(trees, before), found["calibration_error"], quarters)


def explained(trees: Sequence[RolloutTree], before: Sequence[StateValues]) -> Estimate:
    """1 - mean (return - value)^2 / variance of returns, over all tokens; its error by the jackknife over questions."""
    sums: dict[str, np.ndarray] = {}
    for tree, values in zip(trees, before, strict=True):
        own = np.concatenate(values[1:])
        returns = np.concatenate(state_returns(tree)[1:])
        row = np.array([len(own), returns.sum(), (returns**2).sum(), ((returns - own) ** 2).sum()])
        sums[tree.question_id] = sums.get(tree.question_id, 0) + row
    of_questions = np.array(list(sums.values()))

    def of(left: np.ndarray) -> np.ndarray:
        out = np.isfinite(left)
        without = np.where(out[:, None], of_questions[np.nan_to_num(left).astype(int)], 0.0)
        tokens, total, squares, errors = (of_questions.sum(axis=0) - without).T
        return 1 - errors / (squares - total**2 / tokens)

    return jackknife(of, len(of_questions))
