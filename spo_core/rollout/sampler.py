"""Growing trees over an engine: children are requested the moment their parent finishes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from spo_core.config import CUT_TYPES, AdaptiveMonteCarlo, CreditParams, MonteCarlo, RolloutParams
from spo_core.config.credit import CutPartition
from spo_core.credit.partition import cut, segment_bounds
from spo_core.errors import ConfigError
from spo_core.rollout.engine import Completion, Engine, Request
from spo_core.rollout.growing import Branching, GrowingTree, OpenRequest, Prompt
from spo_core.rollout.seconds import QuestionSeconds
from spo_core.rollout.seeds import derive_seed, state_name
from spo_core.rollout.stops import Stop
from spo_core.rollout.value_rollouts import State
from spo_core.system.progress import Progress
from spo_core.tree import FinishReason, Node, RolloutTree

TokenTexts = Callable[[np.ndarray], Sequence[str]]  # token ids of a response -> the text each of them adds
Ended = tuple[str, np.ndarray, FinishReason]  # question id, token ids of a completion, its finish
Grade = Callable[[Sequence[Ended]], Sequence[tuple[float, str]]]  # reward and outcome of each


class Sampler:
    """Grows one tree a question over an engine; one instance serves one iteration.

    Partition ``delimiter`` needs ``token_texts``, value ``adaptive_monte_carlo`` needs ``grade``, and partition
    ``entropy`` an engine that gives entropies; ConfigError where one is missing. ``version`` is the policy version that
    the engine serves. ``stop`` says where stop strings end a response. ``grade`` is asked once about every response,
    when no request of its question is under way; without it the trees are not graded.
    """

    def __init__(
        self,
        engine: Engine,
        rollout: RolloutParams,
        credit: CreditParams,
        *,
        seed: int,
        iteration: int,
        version: int,
        token_texts: TokenTexts | None = None,
        grade: Grade | None = None,
        stop: Stop | None = None,
    ) -> None:
        partition, value = credit.partition.type, credit.value.type
        if partition == "entropy" and not engine.gives_entropies:
            raise ConfigError("credit.partition entropy: this engine was not asked for entropies, or has none to give")
        if partition == "delimiter" and token_texts is None:
            raise ConfigError("credit.partition delimiter: the sampler was not told the text of tokens")
        if value == "adaptive_monte_carlo" and grade is None:
            raise ConfigError("credit.value adaptive_monte_carlo: the sampler was not told how to grade")
        if rollout.first_children is not None and grade is None:
            raise ConfigError("rollout.first_children: the sampler was not told how to grade")
        self._prover = isinstance(credit.value, MonteCarlo) and credit.value.prover is not None
        if self._prover and not getattr(engine, "proves", False):
            raise ConfigError("credit.value.prover: the engine serves the policy alone, no prover")
        self.engine, self.rollout, self.credit = engine, rollout, credit
        self.seed, self.iteration, self.version = seed, iteration, version
        self.token_texts, self.grade, self.stop = token_texts, grade, stop
        self._open: dict[int, OpenRequest] = {}
        self._children: Counter[int] = Counter()  # kept request -> its children still decoding, or to come
        self._next_id = 0
        self.generated_tokens = 0
        self.prefix_tokens = 0  # in the prefixes of all requests
        self.cached_tokens = 0  # prefix tokens that came from the engine's cache
        self.grading_seconds = 0.0
        self.seconds: list[QuestionSeconds] = []  # of each tree that ``grow`` returned last

    def grow(self, prompts: Sequence[Prompt], progress: Progress | None = None) -> list[RolloutTree]:
        """Grow one tree a prompt; returns them in the order of the prompts."""
        trees = []
        repeats: Counter[str] = Counter()
        for prompt in prompts:
            tree = GrowingTree(prompt, repeat=repeats[prompt.question_id])
            repeats[prompt.question_id] += 1
            tree.add(Node.prompt(prompt.token_ids))
            trees.append(tree)
            self._branch(tree, 0, np.asarray(prompt.token_ids, np.int32), (), parent_request=None)
            if self._valued and self._valued.prompt == "always":
                self._value(tree, [tree.prompt_state()])
        responses = 0
        while self.engine.busy:
            settled = []
            completions, ended = self.engine.step(), time.perf_counter()
            for completion in completions:
                request = self._open.pop(completion.request_id)
                request.tree.watch.request(request.asked if completion.began is None else completion.began, ended)
                self.generated_tokens += len(completion.token_ids)
                self.cached_tokens += completion.cached_tokens
                responses += self._finished(request, completion)
                if not request.tree.open:
                    settled.append(request.tree)
            self._grade(settled)
            for tree in settled:
                self._widen(tree)
                if isinstance(self._valued, AdaptiveMonteCarlo):
                    self._next_round(tree, self._valued)
            if progress:
                progress(responses, self.generated_tokens)
        self.seconds = [tree.watch.seconds(tree.prompt.question_id) for tree in trees]
        return [
            RolloutTree(t.prompt.question_id, t.ordered(), policy_version=self.version, iteration=self.iteration)
            for t in trees
        ]

    def _finished(self, request: OpenRequest, completion: Completion) -> int:
        """Add what finished to its tree and ask for what follows; returns the number of responses that ended."""
        tree = request.tree
        tree.open -= 1
        path, prompt = np.concatenate([request.prefix, completion.token_ids]), len(tree.prompt.token_ids)
        stop = tree.prompt.stop or self.stop
        if stop and (end := stop(path[prompt:], len(request.prefix) - prompt)) is not None:
            path = path[: prompt + end]
            completion = completion.cut(len(path) - len(request.prefix))
        ended = completion.stopped or self._room(tree, path) == 0 or self._depth(request) == self._max_depth
        finish = FinishReason.STOP if completion.stopped else FinishReason.LENGTH if ended else FinishReason.SEGMENT
        if self.credit.partition.type in CUT_TYPES and request.trainable:
            index = self._cut(request, completion, path, finish)
        else:
            ids, logprobs = completion.token_ids, completion.logprobs
            node = Node.sampled(request.parent, ids, logprobs, finish, trainable=request.trainable)
            index = tree.add(node, request.place)
            if not ended:
                self._branch(tree, index, path, request.path, parent_request=completion.request_id)
        if ended and self.grade:
            tree.ended.append((index, len(request.prefix), path))
        self._release(completion.request_id)
        self._let_go(request.parent_request)
        return int(ended)

    @property
    def _valued(self) -> MonteCarlo | AdaptiveMonteCarlo | None:
        """Params of value rollouts; None where states are not valued by rollouts."""
        value = self.credit.value
        return value if isinstance(value, MonteCarlo | AdaptiveMonteCarlo) else None

    def _let_go(self, request_id: int | None) -> None:
        """Count one child less of a kept request, and release it after its last."""
        if request_id is not None:
            self._children[request_id] -= 1
            self._release(request_id)

    def _release(self, request_id: int) -> None:
        if not self._children[request_id]:
            del self._children[request_id]
            self.engine.release(request_id)

    def _branch(
        self, tree: GrowingTree, index: int, prefix: np.ndarray, path: tuple[str, ...], *, parent_request: int | None
    ) -> None:
        """Ask for the children of a node, or for its first ones."""
        branching = Branching(index, prefix, path, parent_request)
        count = self.rollout.branch_factors[len(path)]
        first = min(count, self.rollout.first_children or count)
        if first < count:
            tree.undecided.append(branching)
            if parent_request is not None:
                self._children[parent_request] += 1  # keeps its cache until it is known whether others follow
        self._ask(tree, branching, range(first))

    def _widen(self, tree: GrowingTree) -> None:
        """Ask for the other children of nodes below whose first ones rewards differ."""
        for branching, differ in tree.decide():
            if differ:
                assert self.rollout.first_children is not None
                factor = self.rollout.branch_factors[len(branching.path)]
                self._ask(tree, branching, range(self.rollout.first_children, factor))
            self._let_go(branching.parent_request)

    def _ask(self, tree: GrowingTree, at: Branching, numbers: range) -> None:
        """Ask for these children of a node."""
        partition = self.credit.partition
        room = self._room(tree, at.prefix)
        last = len(at.path) + 1 == self._max_depth
        limit = room if last or partition.type != "fixed_tokens" else min(room, partition.tokens)
        children = [
            OpenRequest(tree, at.node, at.prefix, (*at.path, str(child)), child, limit, at.parent_request)
            for child in numbers
        ]
        self._submit(children, keep=not last or partition.type in CUT_TYPES)

    def _cut(self, request: OpenRequest, completion: Completion, path: np.ndarray, finish: FinishReason) -> int:
        """Turn a response into a spine of segments, and have the state at every cutpoint valued; returns the last
        node."""
        partition, tree = self.credit.partition, request.tree
        assert isinstance(partition, CutPartition)
        ids, logprobs = completion.token_ids, completion.logprobs
        texts = self.token_texts(ids) if self.token_texts and partition.type == "delimiter" else None
        cuts = cut(partition, logprobs, entropies=completion.entropies, texts=texts)
        states = [tree.prompt_state()] if -1 in cuts else []
        parent, place = request.parent, request.place
        for start, stop in segment_bounds(len(ids), cuts):
            end = FinishReason.SEGMENT if stop < len(ids) else finish
            parent = tree.add(Node.sampled(parent, ids[start:stop], logprobs[start:stop], end), place)
            place = 0
            if stop < len(ids):
                prefix = path[: len(request.prefix) + stop]
                states.append(State(parent, prefix, (*request.path, f"cut{stop}"), completion.request_id))
        self._value(tree, states)
        return parent

    def _value(self, tree: GrowingTree, states: list[State]) -> None:
        """Ask for a fan of value rollouts at every state of the question, one for states with equal token ids.

        It starts at once, with seeds named after the state, because which of its equals came first depends on how
        requests overlapped; if adaptive, when all responses have ended. Nothing where no rollouts value states.
        """
        if self._valued is None:
            return
        if isinstance(self._valued, MonteCarlo):
            prompt = len(tree.prompt.token_ids)
            named = [replace(s, path=state_name(s.prefix[prompt:])) for s in tree.new_states(states)]
            self._start(tree, [(state, self._valued.rollouts) for state in named])
            return
        tree.group.states += states
        for state in states:
            if state.parent_request is not None:
                self._children[state.parent_request] += 1  # keeps its cache until all states of the question are valued

    def _grade(self, trees: Sequence[GrowingTree]) -> None:
        """Grade the responses of these trees that were not graded before, and note their rewards; all at once, so that
        the grader's workers share them."""
        if self.grade is None or not trees:
            return
        started = time.perf_counter()
        ended = [(tree, *response) for tree in trees for response in tree.ended]
        found = self.grade(
            [
                (tree.prompt.question_id, path[len(tree.prompt.token_ids) :], tree.nodes[index].finish)
                for tree, index, _, path in ended
            ]
        )
        for (tree, index, start, path), (reward, outcome) in zip(ended, found, strict=True):
            tree.nodes[index] = tree.nodes[index].graded(reward, outcome)
            tree.group.record(start, path, reward)
        passed = time.perf_counter() - started
        for tree in trees:
            tree.ended.clear()
            tree.watch.grading += passed
        self.grading_seconds += passed

    def _next_round(self, tree: GrowingTree, value: AdaptiveMonteCarlo) -> None:
        for state in tree.group.share():
            self._let_go(state.parent_request)
        asked = tree.group.next_round(value)
        self._start(tree, asked)
        if not asked:
            for state in tree.group.states:
                self._let_go(state.parent_request)

    def _start(self, tree: GrowingTree, asked: list[tuple[State, int]]) -> None:
        rollouts = []
        for state, count in asked:
            room = self._room(tree, state.prefix)
            for k in range(state.started, state.started + count):
                path = (*state.path, f"value{k}")
                rollouts.append(
                    OpenRequest(tree, state.node, state.prefix, path, k, room, state.parent_request, trainable=False)
                )
            state.started += count
        self._submit(rollouts, keep=False)

    def _submit(self, opened: Iterable[OpenRequest], *, keep: bool) -> None:
        requests = []
        for item in opened:
            question = item.tree.prompt.question_id
            again = (item.tree.repeat,) if item.tree.repeat else ()
            seed = derive_seed(self.seed, self.iteration, question, *again, *item.path)
            prover = self._prover and not item.trainable
            requests.append(
                Request(self._next_id, item.prefix, item.max_tokens, seed, item.parent_request, keep, question, prover)
            )
            self.prefix_tokens += len(item.prefix)
            if item.parent_request is not None:
                self._children[item.parent_request] += 1
            self._open[self._next_id] = item
            item.tree.open += 1
            self._next_id += 1
        self.engine.submit(requests)

    @property
    def _max_depth(self) -> int:
        return len(self.rollout.branch_factors)

    def _depth(self, request: OpenRequest) -> int:
        return len(request.path) if request.trainable else self._max_depth

    def _room(self, tree: GrowingTree, prefix: np.ndarray) -> int:
        """Number of tokens that may still be sampled after this prefix."""
        room = self.rollout.context_length - len(prefix)
        if self.rollout.max_completion_tokens is not None:
            sampled = len(prefix) - len(tree.prompt.token_ids)
            room = min(room, self.rollout.max_completion_tokens - sampled)
        return max(room, 0)
