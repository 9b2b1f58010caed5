"""Questions sampled and graded with one policy: in the flow's process, or in a worker's (see parts)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from spo_core.config import AllTokens, CreditParams, LeaveOneOut, NoValue, Params, RolloutParams, Whole
from spo_core.problems.base import ProblemSet, Question
from spo_core.problems.templates import encode_prompt
from spo_core.rollout.decoding import make_decode
from spo_core.rollout.engine import Engine
from spo_core.rollout.gap import gap_limit
from spo_core.rollout.probe import LogprobGap, check_gap, probe
from spo_core.rollout.sampler import Prompt, Sampler
from spo_core.rollout.stops import stop_at
from spo_core.rollout.token_texts import token_texts
from spo_core.system.progress import Progress
from spo_core.tree import FinishReason, RolloutTree
from spo_core.verify import Outcome
from spo_core.verify.reward import Response
from spo_core.verify.verifier import Verifier

VALIDATION = CreditParams(  # whole responses
    partition=Whole(type="whole"),
    value=NoValue(type="none"),
    advantage=LeaveOneOut(type="leave_one_out"),
    mask=AllTokens(type="all"),
)


@dataclass(slots=True)
class RolloutWorker:
    """Where questions are sampled: the policy and the engine that serves it, and what grades."""

    params: Params
    problem: ProblemSet
    verifier: Verifier
    model: Any
    tokenizer: Any
    engine: Engine
    prompts: dict[str, list[int]] = field(default_factory=dict)
    """Token ids by question; filled as questions are asked, so that each is encoded once a run."""

    def prompt(self, row: Question) -> Prompt:
        """Token ids of a question's prompt."""
        if row.question not in self.prompts:
            self.prompts[row.question] = encode_prompt(self.problem.template, self.tokenizer, row.question)
        return Prompt(row.question_id, tuple(self.prompts[row.question]))

    def rollout_params(self, iteration: int) -> RolloutParams:
        """Those of an iteration: its context length."""
        rollout = self.params.rollout
        return rollout.model_copy(update={"context_length": rollout.context_at(iteration)})

    def sample(
        self,
        rows: Sequence[Question],
        *,
        iteration: int,
        version: int,
        validation: bool = False,
        progress: Progress | None = None,
    ) -> Sampled:
        """As :func:`sample`."""
        return sample(self, rows, iteration=iteration, version=version, validation=validation, progress=progress)

    def close(self) -> None:
        """End the engine and the processes that grade."""
        with ExitStack() as closing:  # each, whatever becomes of the other
            closing.callback(self.verifier.close)
            closing.callback(self.engine.close)


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one call of ``sample``: how far engine and trainer were apart, tokens, and seconds of each step."""

    gap_mean: float
    gap_max: float
    gap_tokens: int
    engine_restarts: int
    generated_tokens: int
    prefix_tokens: int
    cached_tokens: int
    sync: float
    probe: float
    grading: float


@dataclass(frozen=True, slots=True)
class Sampled:
    """Graded trees in the order of the questions."""

    trees: list[RolloutTree]
    counts: Counts


def sample(
    worker: RolloutWorker,
    rows: Sequence[Question],
    *,
    iteration: int,
    version: int,
    validation: bool = False,
    progress: Progress | None = None,
) -> Sampled:
    """One graded tree a question, with the weights of ``worker.model``, whose version is named; with ``validation`` one
    whole response a question. Raises EngineError where a probe says that the engine serves other weights."""
    prompts = [worker.prompt(row) for row in rows]
    asked = {row.question_id: (row, len(p.token_ids)) for row, p in zip(rows, prompts, strict=True)}
    gap, sync_seconds, probe_seconds = sync_policy(worker, prompts, version)
    rollout = worker.rollout_params(iteration)
    stop = stop_at(worker.tokenizer, worker.problem.template.stop)
    seed = worker.params.run.seed
    if validation:
        rollout = rollout.model_copy(update={"branch_factors": (1,)})
        sampler = Sampler(
            worker.engine, rollout, VALIDATION, seed=seed, iteration=-iteration, version=iteration, stop=stop
        )
    else:
        sampler = Sampler(
            worker.engine,
            rollout,
            worker.params.credit,
            seed=seed,
            iteration=iteration,
            version=version,
            pieces=lambda ids: token_texts(worker.tokenizer, ids),
            reward=lambda question, ids, finish: _grade(worker, [(ids, finish, *asked[question])], rollout)[0][0],
            stop=stop,
        )
    grown = sampler.grow(prompts, progress)
    worker.engine.sleep()
    started = time.perf_counter()
    trees = grade_trees(worker, grown, rows, rollout, validation=validation)
    counts = Counts(
        gap.mean,
        gap.largest,
        gap.tokens,
        worker.engine.restarts,
        sampler.generated_tokens,
        sampler.prefix_tokens,
        sampler.cached_tokens,
        sync_seconds,
        probe_seconds,
        time.perf_counter() - started,
    )
    return Sampled(trees, counts)


def merge_counts(parts: Sequence[Counts]) -> Counts:
    """Of parts that were sampled side by side: sums, the largest gap, and the seconds of the slowest."""
    tokens = sum(part.gap_tokens for part in parts)
    mean = sum(part.gap_mean * part.gap_tokens for part in parts) / tokens
    values = [asdict(part) for part in parts]
    largest = {key: max(v[key] for v in values) for key in ("gap_max", "sync", "probe", "grading")}
    totals = {
        key: sum(v[key] for v in values)
        for key in ("engine_restarts", "generated_tokens", "prefix_tokens", "cached_tokens")
    }
    return Counts(gap_mean=mean, gap_tokens=tokens, **largest, **totals)


def sync_policy(worker: RolloutWorker, prompts: Sequence[Prompt], version: int) -> tuple[LogprobGap, float, float]:
    """Have the engine serve the present weights, and raise EngineError where a probe says that it does not; the gap,
    and the seconds of both."""
    started = time.perf_counter()
    rollout = worker.params.rollout
    worker.engine.policy_changed(version)
    synced = time.perf_counter()
    gap = probe(
        worker.engine,
        worker.model,
        prompts,
        context_length=rollout.shortest_context,
        temperature=rollout.temperature,
        seed=worker.params.run.seed,
    )
    check_gap(gap, gap_limit(worker.params), version)
    return gap, synced - started, time.perf_counter() - synced


def grade_trees(
    worker: RolloutWorker,
    trees: Sequence[RolloutTree],
    rows: Sequence[Question],
    rollout: RolloutParams,
    *,
    validation: bool = False,
) -> list[RolloutTree]:
    """Grade every leaf on its completion alone; a response cut off by a limit as ``rollout.truncated`` says. With
    ``validation`` the reward is that of the outcome."""
    ended = (
        (tokens, tree.nodes[index].finish, row, len(tree.nodes[0].token_ids))
        for tree, row in zip(trees, rows, strict=True)
        for index, tokens in tree.completions()
        if not tree.children[index]
    )
    graded = iter(_grade(worker, ended, rollout, validation=validation))
    rewarded = []
    for tree in trees:
        found = {i: next(graded) for i in tree.depth_first if not tree.children[i]}
        rewarded.append(tree.with_rewards({i: (reward, str(outcome)) for i, (reward, outcome) in found.items()}))
    return rewarded


def _grade(
    worker: RolloutWorker,
    completions: Iterable[tuple[np.ndarray, FinishReason, Question, int]],
    rollout: RolloutParams,
    *,
    validation: bool = False,
) -> list[tuple[float, Outcome]]:
    """Reward and outcome of completions with their prompts' lengths; all at once, so that workers share them."""
    skip, decode = rollout.truncated == "zero", make_decode(worker.tokenizer)
    verifier = worker.verifier
    found: list[tuple[str, FinishReason, Question, int, int]] = []
    for ids, finish, row, prompt in completions:  # decoded now: the tokens may be a view that the next overwrites
        read = verifier.rewards.reads_texts or not (skip and finish is FinishReason.LENGTH)
        limit = min(rollout.context_length - prompt, rollout.max_completion_tokens or rollout.context_length)
        found.append((decode(ids) if read else "", finish, row, len(ids), limit))
    asked = [(text, row.answer) for text, finish, row, *_ in found if not (skip and finish is FinishReason.LENGTH)]
    verdicts = iter(verifier.grade(worker.problem, asked))
    outcomes = [
        Outcome.TRUNCATED if skip and f is FinishReason.LENGTH else next(verdicts).outcome for _, f, *_ in found
    ]
    if validation:
        return [(verifier.rewards.of_outcome(outcome), outcome) for outcome in outcomes]
    pairs = zip(found, outcomes, strict=True)
    return verifier.rewards([Response(text, row, o, finish, n, limit) for (text, finish, row, n, limit), o in pairs])
