"""Estimates what one iteration samples and trains, without validation, from params alone: limits, and expectations
under assumptions. Memory is in ``memory.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from spo_core.config import CUT_TYPES, Params
from spo_core.problems import problem_set

# assumptions of expectations, which no param states; a run's own metrics are better
PROMPT = 100  # tokens of a prompt: GSM8K has about as many, MATH with its instruction more
USE = 0.5  # mean length of a response, as a share of the longest possible
CUTTABLE = 0.2  # share of tokens below the probability or above the entropy threshold
STEP = 20  # tokens from one delimiter to the next
ANSWER = 10  # tokens of a gold answer, what leads to it included
UNIFORM = 0.5  # share of questions whose responses all have one reward, for which resampling asks others
ASSUMPTIONS = (
    f"prompts of {PROMPT} tokens (or a quarter of the context), every response {USE:.0%} as long as it may be, every "
    f"segment with an advantage, {CUTTABLE:.0%} of tokens below the probability or above the entropy threshold, a "
    f"delimiter every {STEP} tokens, no two responses equal up to a cut, no node left at its "
    f"rollout.first_children, gold answers of {ANSWER} tokens"
)
RESAMPLED = f"{UNIFORM:.0%} of questions whose responses all have one reward, which rollout.resample replaces"


@dataclass(frozen=True, slots=True)
class Work:
    """Counts of one iteration. Generated tokens are of completions, forwarded ones of prompts too."""

    responses: int
    """Paths from a prompt to the end of a response."""
    segments: int
    """Sampled segments that may be trained: edges of a tree, or what lies between the cuts of a response."""
    value_rollouts: int
    """Completions sampled only to value a state; fewer where responses have equal states, which share them."""
    generated_tokens: int
    """Tokens sampled, value rollouts included."""
    episodes: int
    """Episodes trained in one epoch: segments of SPO-tree, responses of every other algorithm."""
    forwarded_tokens: int
    """Tokens forwarded in one epoch, each shared prefix once; more where the token budget or micro-batches split
    trees."""
    flat_tokens: int
    """Tokens forwarded in one epoch if each episode were a sequence with its prompt, without padding."""
    prover_tokens: int = 0
    """Of the tokens sampled, those that a prover samples."""
    critic_tokens: int = 0
    """Tokens that a critic forwards: the iteration's trees for their values, and in each of its epochs those that it
    replays; with ``clip`` these once more."""
    answer_tokens: int = 0
    """Tokens that the policy forwards to value states by gold answers: each state once, and its answer behind it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """One iteration at one context length: ``most`` is not exceeded, ``expected`` holds under ASSUMPTIONS."""

    context_length: int
    most: Work
    expected: Work
    optimizer_steps: int
    """Most optimizer steps, over all epochs."""
    rollouts_a_state: tuple[int, int]
    """Fewest and most value rollouts of one cutpoint; (0, 0) where the value estimator uses none."""
    asked: tuple[int, int]
    """Questions asked as expected and at most; more than are trained where ``rollout.resample`` replaces some."""


def estimate(params: Params, context_length: int) -> Estimate:
    """Estimate an iteration at this context length, in tokens of prompt and completion together."""
    rollout = params.rollout
    limit = rollout.max_completion_tokens or context_length
    longest = min(limit, context_length - 1)  # behind a prompt of one token
    prompt = min(PROMPT, context_length // 4)
    usual = max(1, round(USE * min(limit, context_length - prompt)))
    longest_prompt = min(_longest_prompt(params) or context_length, context_length - 1)
    most, most_asked = _resampled(params, _work(params, longest_prompt, longest, context_length, most=True), most=True)
    expected, asked = _resampled(params, _work(params, prompt, usual, context_length, most=False), most=False)
    return Estimate(
        context_length,
        most,
        expected,
        optimizer_steps=params.learn.epochs * min(params.learn.optimizer_steps, rollout.questions),
        rollouts_a_state=_rollouts(params),
        asked=(asked, most_asked),
    )


def _resampled(params: Params, once: Work, *, most: bool) -> tuple[Work, int]:
    """The work where questions are asked in place of others, and how many are asked in all; what is trained stays.

    None is asked where, at the mean of those before, it would exceed the budget. So the most are asked where each has
    as few tokens as it can, and the most tokens are sampled where the last ones have as many as they can.
    """
    resample, questions = params.rollout.resample, params.rollout.questions
    if resample is None:
        return once, questions
    budget, each = resample.max_tokens, ceil(once.generated_tokens / questions)
    first = params.rollout.branch_factors[0]
    fewest = min(first, params.rollout.first_children or first)  # tokens of a question: one for each first segment
    affordable = budget // (fewest if most else each)
    asked = max(questions, affordable if most else min(round(questions / (1 - UNIFORM)), affordable))
    tokens = asked * each
    if most:
        tokens = min(tokens, max(questions * each, budget + questions * (each - fewest)))
    more = asked / questions
    counts = {name: round(getattr(once, name) * more) for name in ("responses", "segments", "value_rollouts")}
    proved = min(round(once.prover_tokens * more), tokens)
    return replace(once, **counts, generated_tokens=tokens, prover_tokens=proved), asked


def _longest_prompt(params: Params) -> int | None:
    """Most tokens of a prompt: the longest question kept, and its template at a token a byte; None: no limit."""
    most = params.data.max_question_tokens
    if most is None or params.data.mixture:
        return None
    template = problem_set(params.data).template
    return None if template.chat is not None else most + len(template.fill("").encode())


def _work(params: Params, prompt: int, length: int, context: int, *, most: bool) -> Work:
    """Counts if all prompts have ``prompt`` tokens and all responses ``length``; ``most``: upper bounds."""
    questions = params.rollout.questions
    levels = _levels(params, length)
    responses, sampled = levels[-1][0], sum(nodes * tokens for nodes, tokens in levels)
    cuts, states, continued = _valued(params, length, most=most)
    segments = sum(nodes for nodes, _ in levels) + responses * cuts
    whole = questions * (prompt + sampled)

    drawn = _drawn(params, questions * segments, most=most)
    share = drawn / (questions * segments)
    episodes = forwarded = flat = 0.0
    before = prompt
    for (nodes, tokens), branches in zip(levels, params.rollout.branch_factors, strict=False):
        families = nodes if params.learn.replay.unit == "segments" else nodes / branches
        episodes += share * questions * nodes
        forwarded += share * questions * (nodes * tokens + families * before)
        flat += share * questions * nodes * (before + tokens)
        before += tokens
    if most:  # the segments drawn may all be of the last depth, each below another parent
        episodes = min(questions * sum(nodes for nodes, _ in levels) * params.learn.replay.max_age, drawn)
        forwarded = flat = episodes * min(prompt + length, context)
    return Work(
        responses=questions * responses,
        segments=questions * segments,
        value_rollouts=questions * states,
        generated_tokens=questions * (sampled + continued),
        episodes=round(episodes),
        forwarded_tokens=ceil(min(forwarded, whole * (params.learn.replay.max_age if most else max(1.0, share)))),
        flat_tokens=ceil(flat),
        prover_tokens=questions * continued if getattr(params.credit.value, "prover", None) else 0,
        critic_tokens=whole * _critic_passes(params),
        answer_tokens=questions * _answered(params, levels, cuts, prompt, context, most=most),
    )


def _levels(params: Params, length: int) -> list[tuple[int, int]]:
    """(Nodes, tokens of each) at every depth below one prompt."""
    partition, factors = params.credit.partition, params.rollout.branch_factors
    levels: list[tuple[int, int]] = []
    nodes, left = 1, length
    for depth, branches in enumerate(factors, start=1):
        cut = partition.type == "fixed_tokens" and depth < len(factors)
        tokens = min(left, partition.tokens) if cut and partition.type == "fixed_tokens" else left
        nodes *= branches
        levels.append((nodes, tokens))
        left -= tokens
        if not left:
            break
    return levels


def _valued(params: Params, length: int, *, most: bool) -> tuple[int, int, int]:
    """Number of cuts in a response behind its first token; of value rollouts of a question; of the tokens they sample.

    A value rollout is as long as the rest of the response that it replaces. Every cut is assumed to have its own; equal
    states share theirs, so this is an upper bound.
    """
    partition: Any = params.credit.partition
    if partition.type not in CUT_TYPES:
        return 0, 0, 0
    rollouts = _rollouts(params)[1] if most else round(sum(_rollouts(params)) / 2)
    spacing = getattr(partition, "interval", 1)
    cuttable = (length - 1) if most else CUTTABLE * length
    cuts = {
        "cutpoints": ceil(cuttable / spacing),
        "entropy": ceil(cuttable / spacing),
        "equal_parts": getattr(partition, "parts", 1) - 1,
        "delimiter": length - 1 if most else length // STEP,
    }[partition.type]
    cuts = min(cuts, length - 1, getattr(partition, "max_cuts", None) or length)
    behind = (
        sum(length - 1 - i * spacing for i in range(cuts))  # as early and as close as cuts can be
        if most
        else sum(length - round(length * i / (cuts + 1)) for i in range(1, cuts + 1))
    )
    of_prompt = getattr(params.credit.value, "prompt", "cut") == "always" or partition.type in ("cutpoints", "entropy")
    responses = params.rollout.branch_factors[0]
    return cuts, rollouts * (responses * cuts + of_prompt), rollouts * (responses * behind + of_prompt * length)


def _critic_passes(params: Params) -> int:
    """How often a critic forwards the trees of one iteration, all in all; 0 without one."""
    value = params.credit.value
    if value.type != "critic":
        return 0
    return 1 + value.replay * (value.epochs + (value.clip is not None))


def _answered(
    params: Params, levels: Sequence[tuple[int, int]], cuts: int, prompt: int, context: int, *, most: bool
) -> int:
    """Tokens of a question's states, and of the gold answer behind each; 0 where they are not valued so. An answer is
    at most as long as the context."""
    if params.credit.value.type != "gold_answer":
        return 0
    responses, length = levels[-1]
    states = 1 + sum(nodes for nodes, _ in levels[:-1]) + responses * cuts
    read = sum(nodes * tokens for nodes, tokens in levels[:-1])
    if cuts:
        read += responses * (length if most else length * cuts // (cuts + 1))
    return read + states * context if most else prompt + read + states * ANSWER


def _rollouts(params: Params) -> tuple[int, int]:
    value = params.credit.value
    if value.type == "monte_carlo":
        return value.rollouts, value.rollouts
    return (value.min_rollouts, value.max_rollouts) if value.type == "adaptive_monte_carlo" else (0, 0)


def _drawn(params: Params, segments: int, *, most: bool) -> int:
    """Segments trained in an iteration in which ``segments`` are sampled; older ones may wait beside them."""
    replay = params.learn.replay
    if replay.segments is None and replay.per_question is None:
        return segments
    limits = [segments * (replay.max_age if most else 1)]  # each is trained once, so no more on average
    if replay.segments is not None:
        limits.append(replay.segments)
    if replay.per_question is not None:
        limits.append(replay.per_question * params.rollout.questions * replay.max_age)
    return min(limits)
