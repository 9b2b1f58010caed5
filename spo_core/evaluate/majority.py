"""majority@n: whether the answer that most completions of a question give is the correct one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from spo_core.evaluate import uncertainty
from spo_core.evaluate.lighteval.details import Sample
from spo_core.verify import Outcome
from spo_core.verify.verifier import Verifier

BY_TEXT = {"game24"}  # rules that compare an answer with a puzzle, not two answers: equal texts vote together


def majority(verifier: Verifier, rule: str, questions: Sequence[Sequence[Sample]]) -> float:
    """majority@n from samples (questions, samples): the mean of 1 where the correct answer has most votes, else 0.

    Correct completions vote for one answer, whatever they write; wrong ones for theirs, and two of these are the same
    where ``rule`` calls one correct for the other. Completions without an answer that can be compared do not vote. A
    question without votes counts 0, one where the correct answer ties for first place with k - 1 others 1 / k. The
    order of questions and completions does not matter. Raises ValueError without a question.
    """
    elections = [_Election([sample for sample in samples if _votes(sample)]) for samples in questions]
    by_rule = rule not in BY_TEXT
    while open_now := [election for election in elections if election.open]:
        # One round: in every question still open, the most frequent answer that is in no group gathers its equals.
        pairs = [election.comparisons if by_rule else [] for election in open_now]
        outcomes = iter(verifier.compare([(rule, given, leader) for asked in pairs for given, leader in asked]))
        for election, asked in zip(open_now, pairs, strict=True):
            election.gather({given: next(outcomes) for given, _ in asked})
    return uncertainty.mean([election.score for election in elections])


def _votes(sample: Sample) -> bool:
    return sample.given is not None and sample.outcome in (Outcome.CORRECT, Outcome.WRONG)


class _Election:
    """The votes of one question. Equal wrong answers are gathered into groups, the most frequent first."""

    def __init__(self, voters: Sequence[Sample]) -> None:
        self.correct = sum(voter.correct for voter in voters)
        votes = Counter(str(voter.given) for voter in voters if not voter.correct)
        self._left = sorted(votes.items(), key=lambda vote: (-vote[1], vote[0]))
        self._groups: list[int] = []  # votes of each

    @property
    def open(self) -> bool:
        """Whether a group that is not gathered yet could change the score."""
        most = max(self._groups, default=0)
        return 0 < self.correct <= sum(count for _, count in self._left) and most <= self.correct

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """Pairs to compare: (another wrong answer, the most frequent one, whose equals are gathered now)."""
        leader = self._left[0][0]
        return [(given, leader) for given, _ in self._left[1:]]

    def gather(self, outcomes: Mapping[str, Outcome]) -> None:
        """Gather the most frequent answer and those that ``outcomes`` calls correct for it into a group."""
        (_, votes), *others = self._left
        self._left = []
        for given, count in others:
            if outcomes.get(given) is Outcome.CORRECT:
                votes += count
            else:
                self._left.append((given, count))
        self._groups.append(votes)

    @property
    def score(self) -> float:
        if not self.correct or max(self._groups, default=0) > self.correct:
            return 0.0
        return 1 / (1 + self._groups.count(self.correct))
