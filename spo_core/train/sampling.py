"""Sampling and grading of questions with one policy, in the flow's process or in that of a shard's worker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from spo_core.config import AllTokens, CreditParams, LeaveOneOut, NoValue, Params, RolloutParams, Whole
from spo_core.problems.base import ProblemSet, Question
from spo_core.problems.mixture import grader_of, parts_of, set_of
from spo_core.problems.templates import encode_prompt
from spo_core.rollout.decoding import make_decode
from spo_core.rollout.engine import Engine
from spo_core.rollout.gap import gap_limit
from spo_core.rollout.probe import LogprobGap, check_gap, probe
from spo_core.rollout.sampler import Prompt, Sampler
from spo_core.rollout.seconds import QuestionSeconds
from spo_core.rollout.stops import Stop, stop_at
from spo_core.rollout.token_texts import token_texts
from spo_core.system.progress import Progress
from spo_core.tree import FinishReason, RolloutTree
from spo_core.verify import Outcome, Verdict
from spo_core.verify.reward import Response
from spo_core.verify.verifier import Verifier

VALIDATION = CreditParams(  # whole responses, without value rollouts
    partition=Whole(type="whole"),
    value=NoValue(type="none"),
    advantage=LeaveOneOut(type="leave_one_out"),
    mask=AllTokens(type="all"),
)


@dataclass(slots=True)
class RolloutWorker:
    """Samples and grades in this process; holds the policy, the engine that serves it, and the verifier."""

    params: Params
    problem: ProblemSet
    verifier: Verifier
    model: Any
    tokenizer: Any
    engine: Engine
    prompts: dict[str, list[int]] = field(default_factory=dict)
    """Token ids by question; filled as questions are asked, so that each is encoded once a run."""
    stops: dict[str, Stop | None] = field(default_factory=dict)
    """Where responses end, by problem set."""

    def prompt(self, row: Question) -> Prompt:
        """Encode a question's prompt, once a run."""
        own = set_of(self.problem, row.question_id)
        if row.question not in self.prompts:
            self.prompts[row.question] = encode_prompt(own.template, self.tokenizer, row.question)
        if own.name not in self.stops:
            self.stops[own.name] = stop_at(self.tokenizer, own.template.stop)
        return Prompt(row.question_id, tuple(self.prompts[row.question]), self.stops[own.name])

    def sample(
        self,
        rows: Sequence[Question],
        *,
        iteration: int,
        version: int,
        validation: bool = False,
        progress: Progress | None = None,
    ) -> Sampled:
        """Sample and grade one tree a question with the weights of ``model``, which are at policy version ``version``;
        with ``validation`` one whole response a question, whose reward is that of its outcome. Raises EngineError where
        a probe says that the engine serves other weights."""
        prompts = [self.prompt(row) for row in rows]
        gap, sync_seconds, probe_seconds = self.sync(prompts, version)
        rollout, credit = self.params.rollout, self.params.credit
        rollout = rollout.model_copy(update={"context_length": rollout.context_at(iteration)})
        if validation:
            rollout, credit = rollout.model_copy(update={"branch_factors": (1,), "first_children": None}), VALIDATION
        by_id = {row.question_id: row for row in rows}
        sampler = Sampler(
            self.engine,
            rollout,
            credit,
            seed=self.params.run.seed,
            iteration=-iteration if validation else iteration,
            version=version,
            token_texts=lambda ids: token_texts(self.tokenizer, ids),
            grade=lambda ended: self.grade([(by_id[q], ids, f) for q, ids, f in ended], rollout, validation=validation),
        )
        trees = sampler.grow(prompts, progress)
        self.engine.sleep()
        counts = Counts(
            gap.mean,
            gap.largest,
            gap.tokens,
            self.engine.restarts,
            sampler.generated_tokens,
            sampler.prefix_tokens,
            sampler.cached_tokens,
            sync_seconds,
            probe_seconds,
            sampler.grading_seconds,
        )
        return Sampled(trees, counts, sampler.seconds)

    def sync(self, prompts: Sequence[Prompt], version: int) -> tuple[LogprobGap, float, float]:
        """Have the engine serve the present weights, and probe it; returns the probe's gap, and the seconds of both.
        Raises EngineError where the probe says that the engine serves other weights."""
        started = time.perf_counter()
        rollout = self.params.rollout
        self.engine.policy_changed(version)
        synced = time.perf_counter()
        gap = probe(
            self.engine,
            self.model,
            prompts,
            context_length=rollout.shortest_context,
            temperature=rollout.temperature,
            seed=self.params.run.seed,
        )
        check_gap(gap, gap_limit(self.params), version)
        return gap, synced - started, time.perf_counter() - synced

    def grade(
        self,
        responses: Sequence[tuple[Question, np.ndarray, FinishReason]],
        rollout: RolloutParams,
        *,
        validation: bool = False,
    ) -> list[tuple[float, str]]:
        """Decode and grade responses, each on its completion alone; returns rewards and outcomes. What a limit cut off
        is graded as ``rollout.truncated`` says. With ``validation`` the reward is that of the outcome."""
        decode, rewards = make_decode(self.tokenizer), self.verifier.rewards
        skipped = [rollout.truncated == "zero" and finish is FinishReason.LENGTH for _, _, finish in responses]
        texts = [
            "" if skip and not rewards.reads_texts else decode(ids)
            for (_, ids, _), skip in zip(responses, skipped, strict=True)
        ]
        asked = [(text, row) for text, (row, *_), skip in zip(texts, responses, skipped, strict=True) if not skip]
        verdicts = iter(self._verdicts(asked))
        outcomes = [Outcome.TRUNCATED if skip else next(verdicts).outcome for skip in skipped]
        if validation:
            return [(rewards.of_outcome(outcome), str(outcome)) for outcome in outcomes]
        found = []
        for text, (row, ids, finish), outcome in zip(texts, responses, outcomes, strict=True):
            room = rollout.context_length - len(self.prompts[row.question])
            limit = min(room, rollout.max_completion_tokens or room)
            found.append(Response(text, row, outcome, finish, len(ids), limit))
        return [(reward, str(outcome)) for reward, outcome in rewards(found)]

    def _verdicts(self, asked: Sequence[tuple[str, Question]]) -> list[Verdict]:
        """Grade completions, each by its own set's rule and grader."""
        found: dict[str, Iterator[Verdict]] = {}
        for part in parts_of(self.problem):
            own = [(text, row.answer) for text, row in asked if set_of(self.problem, row.question_id) is part]
            grader = grader_of(self.params.data, part.name, self.params.verify.grader)
            found[part.name] = iter(self.verifier.grade(part, own, grader))
        return [next(found[set_of(self.problem, row.question_id).name]) for _, row in asked]

    def close(self) -> None:
        """End the engine and the processes that grade."""
        with ExitStack() as closing:  # closes each, even where closing the other fails
            closing.callback(self.verifier.close)
            closing.callback(self.engine.close)


@dataclass(frozen=True, slots=True)
class Counts:
    """Measurements of one call of ``sample``: gap between engine and trainer, tokens, and seconds of each step."""

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
    """Graded trees in the order of the questions, and how long each took."""

    trees: list[RolloutTree]
    counts: Counts
    seconds: list[QuestionSeconds]


def merge_counts(counts: Sequence[Counts]) -> Counts:
    """Merge the counts of shards sampled side by side: sums, the largest gap, and the seconds of the slowest."""
    tokens = sum(own.gap_tokens for own in counts)
    mean = sum(own.gap_mean * own.gap_tokens for own in counts) / tokens
    values = [asdict(own) for own in counts]
    largest = {key: max(v[key] for v in values) for key in ("gap_max", "sync", "probe", "grading")}
    totals = {
        key: sum(v[key] for v in values)
        for key in ("engine_restarts", "generated_tokens", "prefix_tokens", "cached_tokens")
    }
    return Counts(gap_mean=mean, gap_tokens=tokens, **largest, **totals)
