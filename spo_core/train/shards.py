"""An iteration's questions in parts, each sampled and graded by a process of its own that sees the run's directory.

work/<run>/cluster/
  worker.json                params, the folders of tokenizer and architecture and of the project, digests of the code
  weights-<digest>.safetensors   of the policy, float32; the newest alone
  <random>/0/              one part: questions.json, and what its worker leaves: trees.parquet, sampled.json

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
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from spo_core.config import Params, digest
from spo_core.errors import RunError
from spo_core.learn.precision import working_copy
from spo_core.policy.checkpoint import load_policy, read_weights, write_weights
from spo_core.policy.device import use_device
from spo_core.problems import problem_set
from spo_core.problems.base import Question
from spo_core.rollout.engines import make_engine
from spo_core.runs.fingerprint import TRAINING, code_digest
from spo_core.system.files import atomic_directory, file_digest, read_json, write_json
from spo_core.system.plugins import open_project, project
from spo_core.system.progress import Progress
from spo_core.train.doors import sources
from spo_core.train.identity import policy_device
from spo_core.train.sampling import Counts, RolloutWorker, Sampled, merge_counts
from spo_core.tree import read_trees, write_trees
from spo_core.verify.verifier import Verifier


@dataclass(frozen=True, slots=True)
class QuestionShard:
    """What a worker is told. ``weights`` is a file of ``worker``'s folder, ``digest`` its SHA-256; ``folder`` holds the
    questions and gets the trees."""

    worker: str
    weights: str
    digest: str
    version: int
    folder: str
    iteration: int
    validation: bool


@dataclass(frozen=True, slots=True)
class ShardDone:
    """Responses and generated tokens of one part."""

    responses: int
    tokens: int


MapShards = Callable[
    [Sequence[QuestionShard]], Iterable[ShardDone]
]  # has all sampled by sample_shard; in the order given


class Shards:
    """Hands the policy over and divides questions; one for a session, whose run directory ``run`` is.

    ``policy``: a folder with the architecture and tokenizer of ``model``; ``map_shards`` has parts sampled.
    """

    def __init__(self, run: Path, params: Params, policy: Path, model: PreTrainedModel, map_shards: MapShards) -> None:
        self.model = model
        self.folder, self.map_shards, self.count = (run / "cluster").resolve(), map_shards, params.run.task_runner.parts
        shutil.rmtree(self.folder, ignore_errors=True)  # of an interrupted session
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
        """Have the questions sampled in parts, as ``RolloutWorker.sample`` samples them all. Raises RunError where a
        worker left trees of other questions than it was asked."""
        weights, found = self._hand_over(version)
        folder = self.folder / secrets.token_hex(4)  # a worker that outlived its flow writes elsewhere
        places = divide([row.question_id for row in rows], self.count)
        parts = []
        for number, chosen in enumerate(places):
            own = folder / str(number)
            write_json(folder / f"{number}.json", [asdict(rows[i]) for i in chosen])
            part = QuestionShard(
                str(self.folder / "worker.json"), weights.name, found, version, str(own), iteration, validation
            )
            parts.append(part)
        responses = tokens = 0
        for done in self.map_shards(parts):
            responses, tokens = responses + done.responses, tokens + done.tokens
            if progress:
                progress(responses, tokens)
        trees: dict[int, Any] = {}
        for part, chosen in zip(parts, places, strict=True):
            path = Path(part.folder, "trees.parquet")
            read = read_trees(path)
            if [tree.question_id for tree in read] != [rows[i].question_id for i in chosen]:
                raise RunError(f"{path}: holds other questions than were asked; run the same command again")
            trees |= dict(zip(chosen, read, strict=True))
        counts = merge_counts([Counts(**read_json(Path(part.folder, "sampled.json"))) for part in parts])
        shutil.rmtree(folder)
        return Sampled([trees[i] for i in range(len(rows))], counts)

    def _hand_over(self, version: int) -> tuple[Path, str]:
        """The file of the weights and its digest; written once for each version."""
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
        """Nothing of it is needed to resume."""
        shutil.rmtree(self.folder, ignore_errors=True)


def divide(question_ids: Sequence[str], parts: int) -> list[list[int]]:
    """Places of the questions of each part: as many as parts, nearly equal in number, in order, none empty.

    Equal questions stay together: a tree's seeds tell it from others of the same question by their order.
    """
    by_question: dict[str, list[int]] = {}
    for place, question in enumerate(question_ids):
        by_question.setdefault(question, []).append(place)
    groups = list(by_question.values())
    count = min(parts, len(groups))
    borders = [len(groups) * n // count for n in range(count + 1)]
    return [sorted(i for group in groups[a:b] for i in group) for a, b in pairwise(borders)]


@dataclass(slots=True)
class _Open:
    """A worker's worker, kept from part to part. ``weights``: digest of those that its model has."""

    key: str
    worker: RolloutWorker
    weights: str = ""


_LOCK = threading.Lock()  # a worker may have several threads; one part at a time
_open: _Open | None = None


def sample_shard(part: QuestionShard) -> ShardDone:
    """A worker's share: writes trees.parquet and sampled.json into the part's folder, as a whole.

    The policy stays loaded for the next part of the run. Raises RunError where this process does not see the run's
    directory, has other code than the flow, or reads other weights than were written.
    """
    with _LOCK:
        opened = _opened(Path(part.worker))
        _load_weights(opened, Path(part.worker).parent / part.weights, part.digest)
        folder = Path(part.folder)
        rows = [Question(**row) for row in read_json(folder.with_suffix(".json"))]
        sampled = opened.worker.sample(rows, iteration=part.iteration, version=part.version, validation=part.validation)
        with atomic_directory(folder) as target:
            write_trees(target / "trees.parquet", sampled.trees)
            write_json(target / "sampled.json", asdict(sampled.counts))
        responses = sum(tree.nodes[leaf].trainable for tree in sampled.trees for leaf in tree.leaves)
        return ShardDone(responses, sampled.counts.generated_tokens)


def close_worker() -> None:
    """Let go of the policy, the engine and the grading processes of this process, if it sampled any part."""
    global _open
    with _LOCK:
        if _open is not None:
            _open.worker.close()
            _open = None


async def close_worker_later() -> None:
    """``close_worker`` in a thread: it waits for a part under way, and a worker's event loop must not."""
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
    model, tokenizer = load_policy(policy)
    model = working_copy(model.to(device), params.learn)  # type: ignore[arg-type]
    own = file.parent / f"engine-{platform.node()}-{os.getpid()}"
    engine = make_engine(params, model, tokenizer, policy=policy, folder=own)
    worker = RolloutWorker(params, problem_set(params.data), Verifier(params.verify), model, tokenizer, engine)
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
