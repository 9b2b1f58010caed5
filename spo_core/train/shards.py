"""An iteration's questions in shards, each sampled and graded by a process of its own that sees the run's directory.

work/<run>/cluster/
  worker.json                params, the folders of tokenizer and architecture and of the project, digests of the code
  weights-<digest>.safetensors   of the policy, float32; the newest alone
  <random>/0.json, 0/      one shard: its questions, and what its worker writes: trees.parquet,
                           sampled.json, seconds.json

The flow's side is ``Shards``, a worker's is ``sample_shard``. Seeds are derived from question and node, so that
trees do not depend on the division beyond the rounding of batches of other sizes.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from transformers import PreTrainedModel

from spo_core.config import Params, digest
from spo_core.errors import RunError
from spo_core.learn.precision import working_copy
from spo_core.policy.checkpoint import read_weights, trained_policy, write_weights
from spo_core.policy.device import use_device
from spo_core.problems import problem_set
from spo_core.problems.base import Question
from spo_core.rollout.engines import make_engine
from spo_core.rollout.seconds import QuestionSeconds
from spo_core.runs.directory import SECONDS
from spo_core.runs.fingerprint import TRAINING, code_digest
from spo_core.system.files import atomic_directory, file_digest, read_json, write_json
from spo_core.system.plugins import open_project, project
from spo_core.system.progress import Progress
from spo_core.train.doors import sources
from spo_core.train.identity import policy_device
from spo_core.train.sampling import Counts, RolloutWorker, Sampled, merge_counts
from spo_core.tree import RolloutTree, read_trees, write_trees
from spo_core.verify.verifier import Verifier


@dataclass(frozen=True, slots=True)
class QuestionShard:
    """A shard of questions for a worker. ``weights`` is a file of ``worker``'s folder, ``digest`` its SHA-256;
    ``folder`` gets the trees, and its name with ``.json`` is that of the file of questions."""

    worker: str
    weights: str
    digest: str
    version: int
    folder: str
    iteration: int
    validation: bool


@dataclass(frozen=True, slots=True)
class ShardDone:
    """Number of responses and generated tokens of a shard that was sampled."""

    responses: int
    tokens: int


MapShards = Callable[[Sequence[QuestionShard]], Iterable[ShardDone]]
"""Has every shard sampled by ``sample_shard``; gives their counts in the order of the shards."""


class Shards:
    """Divides questions into shards and hands the policy to their workers; one for a session in run directory ``run``.

    ``policy`` is a folder with the architecture and tokenizer of ``model``; ``map_shards`` has shards sampled.
    """

    def __init__(self, run: Path, params: Params, policy: Path, model: PreTrainedModel, map_shards: MapShards) -> None:
        self.model = model
        self.folder, self.map_shards, self.count = (
            (run / "cluster").resolve(),
            map_shards,
            params.run.task_runner.shards,
        )
        shutil.rmtree(self.folder, ignore_errors=True)  # left by an interrupted session
        self._handed: tuple[int, Path, str] | None = None
        worker = {
            "params": params.model_dump_json(),
            "policy": str(policy.resolve()),
            "code": [code_digest(*TRAINING), sources(params)],
            "project": str(project()),
        }
        write_json(self.folder / "worker.json", worker)

    def sample(
        self,
        rows: Sequence[Question],
        *,
        iteration: int,
        version: int,
        validation: bool = False,
        progress: Progress | None = None,
    ) -> Sampled:
        """Have the questions sampled in shards, as ``RolloutWorker.sample`` samples them all. Raises RunError where a
        worker left trees of other questions than it was asked."""
        weights, found = self._hand_over(version)
        folder = self.folder / secrets.token_hex(4)  # a worker that outlived its flow writes elsewhere
        indices = divide([row.question_id for row in rows], self.count)
        shards = []
        for number, chosen in enumerate(indices):
            own = folder / str(number)
            write_json(folder / f"{number}.json", [asdict(rows[i]) for i in chosen])
            shard = QuestionShard(
                str(self.folder / "worker.json"), weights.name, found, version, str(own), iteration, validation
            )
            shards.append(shard)
        responses = tokens = 0
        for done in self.map_shards(shards):
            responses, tokens = responses + done.responses, tokens + done.tokens
            if progress:
                progress(responses, tokens)
        trees: dict[int, tuple[RolloutTree, QuestionSeconds]] = {}
        for shard, chosen in zip(shards, indices, strict=True):
            path = Path(shard.folder, "trees.parquet")
            read = read_trees(path)
            if [tree.question_id for tree in read] != [rows[i].question_id for i in chosen]:
                raise RunError(f"{path}: holds other questions than were asked; run the same command again")
            seconds = [QuestionSeconds(**own) for own in read_json(path.with_name(SECONDS))]
            trees |= dict(zip(chosen, zip(read, seconds, strict=True), strict=True))
        counts = merge_counts([Counts(**read_json(Path(shard.folder, "sampled.json"))) for shard in shards])
        shutil.rmtree(folder)
        ordered = [trees[i] for i in range(len(rows))]
        return Sampled([tree for tree, _ in ordered], counts, [seconds for _, seconds in ordered])

    def _hand_over(self, version: int) -> tuple[Path, str]:
        """Write the weights once for each version; returns their file and its digest."""
        if self._handed is None or self._handed[0] != version:
            new = self.folder / "weights.new"
            write_weights(new, self.model)
            found = file_digest(new)
            path = self.folder / f"weights-{found[:16]}.safetensors"
            new.rename(path)
            for old in self.folder.glob("weights-*"):
                if old != path:
                    old.unlink()
            self._handed = version, path, found
        return self._handed[1:]

    def close(self) -> None:
        """Delete the folder, of which a resume needs nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)


def divide(question_ids: Sequence[str], count: int) -> list[list[int]]:
    """Divide questions into ``count`` shards of nearly equal size, or fewer, none empty; returns each one's indices.

    Equal questions stay together: a tree's seeds tell it from others of the same question by their order.
    """
    by_question: dict[str, list[int]] = {}
    for index, question in enumerate(question_ids):
        by_question.setdefault(question, []).append(index)
    groups = list(by_question.values())
    count = min(count, len(groups))
    borders = [len(groups) * n // count for n in range(count + 1)]
    return [sorted(i for group in groups[a:b] for i in group) for a, b in pairwise(borders)]


@dataclass(slots=True)
class _Open:
    """The worker that a process keeps loaded from shard to shard. ``weights`` is the digest of those that its model
    has."""

    key: str
    worker: RolloutWorker
    weights: str = ""


_LOCK = threading.Lock()  # a process may have several threads; one shard at a time
_open: _Open | None = None


def sample_shard(shard: QuestionShard) -> ShardDone:
    """Sample and grade a shard; writes trees.parquet, sampled.json and seconds.json into its folder, all or none.

    The policy stays loaded for the next shard of the run. Raises RunError where this process does not see the run's
    directory, has other code than the flow, or reads other weights than were written.
    """
    with _LOCK:
        opened = _opened(Path(shard.worker))
        _load_weights(opened, Path(shard.worker).parent / shard.weights, shard.digest)
        folder = Path(shard.folder)
        rows = [Question(**row) for row in read_json(folder.with_suffix(".json"))]
        sampled = opened.worker.sample(
            rows, iteration=shard.iteration, version=shard.version, validation=shard.validation
        )
        with atomic_directory(folder) as target:
            write_trees(target / "trees.parquet", sampled.trees)
            write_json(target / "sampled.json", asdict(sampled.counts))
            write_json(target / SECONDS, [asdict(own) for own in sampled.seconds])
        responses = sum(tree.nodes[leaf].trainable for tree in sampled.trees for leaf in tree.leaves)
        return ShardDone(responses, sampled.counts.generated_tokens)


def close_worker() -> None:
    """Let go of the policy, the engine and the grading processes of this process, if it sampled any shard."""
    global _open
    with _LOCK:
        if _open is not None:
            _open.worker.close()
            _open = None


async def close_worker_later() -> None:
    """Call ``close_worker`` in a thread: it waits for a shard under way, and a worker's event loop must not."""
    await asyncio.to_thread(close_worker)


def _opened(file: Path) -> _Open:
    global _open
    here = f"{platform.node()}, process {os.getpid()}"
    try:
        content = read_json(file)
    except OSError:
        raise RunError(f"{file}: not there on {here}; every worker must see the flow's working directory") from None
    key = digest([str(file), content])
    if _open is not None and _open.key == key:
        return _open
    params, policy = Params.model_validate_json(content["params"]), Path(content["policy"])
    open_project(Path(content["project"]))
    if content["code"] != [code_digest(*TRAINING), sources(params)]:
        raise RunError(f"{here}: a worker with other code than the flow; start it again from the same revision")
    if _open is not None:
        _open.worker.close()
        _open = None
    torch.set_num_threads(params.run.threads)
    device = policy_device(params, worker=True)
    use_device(device)
    model, tokenizer = trained_policy(policy, params.policy.lora, seed=params.run.seed, dtype=params.learn.dtype)
    model = working_copy(model.to(device), params.learn)  # type: ignore[arg-type]
    own = file.parent / f"engine-{platform.node()}-{os.getpid()}"
    with ExitStack() as opened:  # ends the engine where a later step fails
        engine = make_engine(params, model, tokenizer, policy=policy, folder=own)
        opened.callback(engine.close)
        verifier = opened.enter_context(Verifier(params.verify))
        worker = RolloutWorker(params, problem_set(params.data), verifier, model, tokenizer, engine)
        opened.pop_all()
    _open = _Open(key, worker)
    return _open


def _load_weights(opened: _Open, path: Path, expected: str) -> None:
    """Load the file's weights into the model; raises RunError where the file's digest is not ``expected``."""
    if opened.weights == expected:
        return
    began = time.monotonic()
    while not path.is_file() and time.monotonic() - began < 30:  # a network file system may show it late
        time.sleep(0.2)
    if not path.is_file() or file_digest(path) != expected:
        raise RunError(f"{path}: not the weights that the flow wrote, as {platform.node()} sees them")
    opened.weights = ""
    read_weights(path, opened.worker.model)
    opened.weights = expected
