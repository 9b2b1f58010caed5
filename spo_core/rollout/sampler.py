"""How trees grow: children are requested the moment their parent finishes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from spo_core.config import CreditParams, Cutpoints, RolloutParams
from spo_core.credit.partition import cutpoints, segment_bounds
from spo_core.rollout.engine import Completion, Engine, Request
from spo_core.rollout.seeds import derive_seed
from spo_core.tree import Finish, Node, RolloutTree

Progress = Callable[[int, int], None]  # (finished responses, generated tokens)


@dataclass(frozen=True, slots=True)
class Prompt:
    question_id: str
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class _Growing:
    """Nodes of one tree while it grows; ``path`` of a request is the seed name of the node it will become."""

    prompt: Prompt
    nodes: list[Node] = field(default_factory=list)
    prompt_valued: bool = False

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1


@dataclass(frozen=True, slots=True)
class _Open:
    """A request under way: the tree and node it hangs from, the prefix it continues, its place among the samples."""

    tree: _Growing
    parent: int
    prefix: np.ndarray
    path: tuple[str, ...]
    max_tokens: int
    parent_request: int | None = None
    trainable: bool = True


class Sampler:
    """Grows one tree a question over an engine; one instance serves one iteration."""

    def __init__(
        self, engine: Engine, rollout: RolloutParams, credit: CreditParams, *, seed: int, iteration: int, version: int
    ) -> None:
        self.engine, self.rollout, self.credit = engine, rollout, credit
        self.seed, self.iteration, self.version = seed, iteration, version
        self._open: dict[int, _Open] = {}
        self._children: Counter[int] = Counter()  # kept request -> its children still decoding
        self._next_id = 0
        self.generated_tokens = 0

    def grow(self, prompts: Sequence[Prompt], progress: Progress | None = None) -> list[RolloutTree]:
        """One tree a prompt, in order. Nodes stand in the order in which they finished."""
        trees = [_Growing(prompt, [Node.prompt(prompt.token_ids)]) for prompt in prompts]
        for tree in trees:
            self._branch(tree, 0, np.asarray(tree.prompt.token_ids, np.int32), (), parent_request=None)
        responses = 0
        while self.engine.busy:
            for completion in self.engine.step():
                self.generated_tokens += len(completion.token_ids)
                responses += self._finished(completion)
            if progress:
                progress(responses, self.generated_tokens)
        return [
            RolloutTree(t.prompt.question_id, tuple(t.nodes), policy_version=self.version, iteration=self.iteration)
            for t in trees
        ]

    def _finished(self, completion: Completion) -> int:
        """Add what finished to its tree and ask for what follows; the number of responses that ended."""
        request = self._open.pop(completion.request_id)
        path = np.concatenate([request.prefix, completion.token_ids])
        ended = completion.stopped or self._room(request.tree, path) == 0 or self._depth(request) == self._max_depth
        finish = Finish.STOP if completion.stopped else Finish.LENGTH if ended else Finish.SEGMENT
        if isinstance(self.credit.partition, Cutpoints) and request.trainable:
            self._cut(request, completion, finish)
        else:
            node = Node.sampled(
                request.parent, completion.token_ids, completion.logprobs, finish, trainable=request.trainable
            )
            index = request.tree.add(node)
            if not ended:
                self._branch(request.tree, index, path, request.path, parent_request=completion.request_id)
        self._release(completion.request_id)
        if request.parent_request is not None:
            self._children[request.parent_request] -= 1
            self._release(request.parent_request)
        return int(ended)

    def _release(self, request_id: int) -> None:
        if not self._children[request_id]:
            del self._children[request_id]
            self.engine.release(request_id)

    def _branch(
        self, tree: _Growing, index: int, prefix: np.ndarray, path: tuple[str, ...], *, parent_request: int | None
    ) -> None:
        """Ask for all children of a node."""
        depth, partition = len(path), self.credit.partition
        room = self._room(tree, prefix)
        last = depth + 1 == self._max_depth
        limit = room if last or partition.type != "fixed_tokens" else min(room, partition.tokens)
        children = [
            _Open(tree, index, prefix, (*path, str(child)), limit, parent_request)
            for child in range(self.rollout.branch_factors[depth])
        ]
        self._submit(children, keep=not last or isinstance(partition, Cutpoints))

    def _cut(self, request: _Open, completion: Completion, finish: Finish) -> None:
        """Turn a trajectory into a spine of segments, with a fan of value rollouts at every cutpoint."""
        partition, value = self.credit.partition, self.credit.value
        assert partition.type == "cutpoints" and value.type == "monte_carlo"
        ids, logprobs = completion.token_ids, completion.logprobs
        cuts = cutpoints(logprobs, partition.prob_threshold, partition.interval)
        bounds = segment_bounds(len(ids), cuts)
        parent, fans = request.parent, []
        for start, stop in bounds:
            end = Finish.SEGMENT if stop < len(ids) else finish
            parent = request.tree.add(Node.sampled(parent, ids[start:stop], logprobs[start:stop], end))
            if stop < len(ids):
                fans.append((parent, np.concatenate([request.prefix, ids[:stop]]), (*request.path, f"cut{stop}")))
        if -1 in cuts and not request.tree.prompt_valued:  # one value of the prompt serves all its trajectories
            request.tree.prompt_valued = True
            fans.append((0, request.prefix, ("prompt",)))
        rollouts = [
            _Open(
                request.tree,
                node,
                prefix,
                (*path, f"value{k}"),
                self._room(request.tree, prefix),
                completion.request_id,
                trainable=False,
            )
            for node, prefix, path in fans
            for k in range(value.rollouts)
        ]
        self._submit(rollouts, keep=False)

    def _submit(self, opened: Iterable[_Open], *, keep: bool) -> None:
        requests = []
        for item in opened:
            seed = derive_seed(self.seed, self.iteration, item.tree.prompt.question_id, *item.path)
            requests.append(Request(self._next_id, item.prefix, item.max_tokens, seed, item.parent_request, keep))
            if item.parent_request is not None:
                self._children[item.parent_request] += 1
            self._open[self._next_id] = item
            self._next_id += 1
        self.engine.submit(requests)

    @property
    def _max_depth(self) -> int:
        return len(self.rollout.branch_factors)

    def _depth(self, request: _Open) -> int:
        return len(request.path) if request.trainable else self._max_depth

    def _room(self, tree: _Growing, prefix: np.ndarray) -> int:
        """Tokens that may still be sampled after this prefix."""
        room = self.rollout.context_length - len(prefix)
        if self.rollout.max_completion_tokens is not None:
            sampled = len(prefix) - len(tree.prompt.token_ids)
            room = min(room, self.rollout.max_completion_tokens - sampled)
        return max(room, 0)
