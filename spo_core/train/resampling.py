"""Dynamic sampling: questions whose responses say nothing give way to others, up to a budget of tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from spo_core.problems.base import Question
from spo_core.system.progress import Progress
from spo_core.train.questions import uniform
from spo_core.train.sampling import Counts, Sampled, merge_counts
from spo_core.train.session import Session
from spo_core.tree import RolloutTree


@dataclass(frozen=True, slots=True)
class Asked:
    """An iteration's questions and trees. ``sampled`` holds all trees, those that gave way too, and their counts."""

    rows: list[Question]
    trees: list[RolloutTree]
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
        asked = {row.question_id for pairs, _ in rounds for row, _ in pairs}
        tokens = _tokens(rounds)
        affordable = (params.resample.max_tokens - tokens) * sum(len(pairs) for pairs, _ in rounds) // max(tokens, 1)
        count = min(params.questions - len(kept), affordable)
        rows = session.order.draw(count, iteration, without=asked) if count > 0 else []
        if not rows:
            break
        rounds.append(_round(session, rows, iteration, rounds, progress))
        more, less = _divided(rounds[-1])
        kept, spare = kept + more, spare + less
    pairs = kept + spare if params.resample is not None else rounds[0][0]
    pairs = pairs[: params.questions]
    trees = [tree for pairs_of, _ in rounds for _, tree in pairs_of]
    session.order.learn(trees, iteration)
    metrics = {}
    if params.resample is not None:
        metrics["rollout/questions_asked"] = float(len(trees))
        metrics["rollout/uniform_share"] = sum(map(uniform, trees)) / len(trees)
    if params.skip_solved is not None:
        ids = {row.question_id for row in session.rows}
        metrics["rollout/left_out_share"] = sum(session.order.left_out(i, iteration + 1) for i in ids) / len(ids)
    return Asked(
        [row for row, _ in pairs],
        [tree for _, tree in pairs],
        Sampled(trees, _one_after_another([counts for _, counts in rounds])),
        metrics,
    )


Round = tuple[list[tuple[Question, RolloutTree]], Counts]


def _round(
    session: Session, rows: list[Question], iteration: int, before: list[Round], progress: Progress | None
) -> Round:
    responses = sum(len(tree.leaves) for pairs, _ in before for _, tree in pairs)
    tokens = _tokens(before)

    def further(done: int, generated: int) -> None:
        if progress:
            progress(responses + done, tokens + generated)

    sampled = session.sample(rows, iteration, progress=further)
    return list(zip(rows, sampled.trees, strict=True)), sampled.counts


def _divided(asked: Round) -> tuple[list[tuple[Question, RolloutTree]], list[tuple[Question, RolloutTree]]]:
    return [pair for pair in asked[0] if not uniform(pair[1])], [pair for pair in asked[0] if uniform(pair[1])]


def _tokens(rounds: list[Round]) -> int:
    return sum(tree.generated_tokens for pairs, _ in rounds for _, tree in pairs)


def _one_after_another(counts: list[Counts]) -> Counts:
    """Merge the counts of rounds: as of shards, but seconds add up, and restarts were counted in all from the start."""
    merged = asdict(merge_counts(counts))
    seconds = {name: sum(getattr(own, name) for own in counts) for name in ("sync", "probe", "grading")}
    return Counts(**merged | seconds | {"engine_restarts": counts[-1].engine_restarts})
