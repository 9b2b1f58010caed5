"""Dynamic sampling: questions whose responses say nothing give way to others, up to a budget of tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from spo_core.problems.base import Question
from spo_core.rollout.seconds import QuestionSeconds
from spo_core.system.progress import Progress
from spo_core.train.questions import uniform
from spo_core.train.sampling import Counts, Sampled, merge_counts
from spo_core.train.session import Session
from spo_core.tree import RolloutTree


@dataclass(frozen=True, slots=True)
class Asked:
    """An iteration's questions, trees and how long each took. ``sampled`` holds all trees, those that gave way too, and
    their counts."""

    rows: list[Question]
    trees: list[RolloutTree]
    seconds: list[QuestionSeconds]
    sampled: Sampled
    metrics: dict[str, float]


def ask(session: Session, iteration: int, progress: Progress | None = None) -> Asked:
    """Draw an iteration's questions and sample them; with ``rollout.resample`` ask others in place of those whose trees
    are uniform. Where the budget ends first, uniform trees fill up the iteration.

    No question is asked twice for that: it would get the same tree.
    """
    params = session.params.rollout
    rounds = [_round(session, session.order.draw(params.questions, iteration), iteration, [], progress)]
    kept, spare = _divided(rounds[0])
    while params.resample is not None and len(kept) < params.questions:
        asked = {one.row.question_id for every, _ in rounds for one in every}
        tokens = _tokens(rounds)
        affordable = (params.resample.max_tokens - tokens) * sum(len(every) for every, _ in rounds) // max(tokens, 1)
        count = min(params.questions - len(kept), affordable)
        rows = session.order.draw(count, iteration, without=asked) if count > 0 else []
        if not rows:
            break
        rounds.append(_round(session, rows, iteration, rounds, progress))
        more, less = _divided(rounds[-1])
        kept, spare = kept + more, spare + less
    chosen = kept + spare if params.resample is not None else rounds[0][0]
    chosen = chosen[: params.questions]
    sampled = [one for every, _ in rounds for one in every]
    trees = [one.tree for one in sampled]
    session.order.learn(trees, iteration)
    metrics = {}
    if params.resample is not None:
        metrics["rollout/questions_asked"] = float(len(trees))
        metrics["rollout/uniform_share"] = sum(map(uniform, trees)) / len(trees)
    if params.skip_solved is not None:
        ids = {row.question_id for row in session.rows}
        metrics["rollout/left_out_share"] = sum(session.order.left_out(i, iteration + 1) for i in ids) / len(ids)
    return Asked(
        [one.row for one in chosen],
        [one.tree for one in chosen],
        [one.seconds for one in chosen],
        Sampled(trees, _one_after_another([counts for _, counts in rounds]), [one.seconds for one in sampled]),
        metrics,
    )


@dataclass(frozen=True, slots=True)
class _One:
    """A question that was sampled."""

    row: Question
    tree: RolloutTree
    seconds: QuestionSeconds


Round = tuple[list[_One], Counts]


def _round(
    session: Session, rows: list[Question], iteration: int, before: list[Round], progress: Progress | None
) -> Round:
    responses = sum(len(one.tree.leaves) for every, _ in before for one in every)
    tokens = _tokens(before)

    def further(done: int, generated: int) -> None:
        if progress:
            progress(responses + done, tokens + generated)

    sampled = session.sample(rows, iteration, progress=further)
    return list(map(_One, rows, sampled.trees, sampled.seconds)), sampled.counts


def _divided(asked: Round) -> tuple[list[_One], list[_One]]:
    return [one for one in asked[0] if not uniform(one.tree)], [one for one in asked[0] if uniform(one.tree)]


def _tokens(rounds: list[Round]) -> int:
    return sum(one.tree.generated_tokens for every, _ in rounds for one in every)


def _one_after_another(counts: list[Counts]) -> Counts:
    """Merge the counts of rounds: as of shards, but seconds add up, and restarts were counted in all from the start."""
    merged = asdict(merge_counts(counts))
    seconds = {name: sum(getattr(own, name) for own in counts) for name in ("sync", "probe", "grading")}
    return Counts(**merged | seconds | {"engine_restarts": counts[-1].engine_restarts})
