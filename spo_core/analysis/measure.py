"""Per-question gradients of a candidate, in batches that a killed measurement goes on from.

A batch has as many trees as an iteration of the candidate, two of each question, so that what sampling a question again
would change is told from what differs between questions. Each tree's gradient is taken by the trainer's own code,
without a step, and kept as a sketch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file
from torch import Tensor

from spo_core.analysis.bench import Bench
from spo_core.analysis.candidates import FEWEST, REPEATS, Candidate, sampling
from spo_core.analysis.efficiency import Gradients
from spo_core.analysis.sketch import sketch
from spo_core.analysis.warmed import warm
from spo_core.config import digest
from spo_core.credit import assign_credit, by_node
from spo_core.credit.pairs import CreditedTree
from spo_core.errors import TrainingError
from spo_core.learn.backend import TorchBackend
from spo_core.learn.critic import StateValues
from spo_core.learn.trainer import Trainer
from spo_core.problems.base import Question
from spo_core.system.files import atomic_directory, read_json, write_json
from spo_core.train.gold_values import answer_values
from spo_core.train.questions import QuestionOrder
from spo_core.train.sampling import RolloutWorker
from spo_core.tree import RolloutTree, read_trees, write_trees

GRADIENTS = "gradients.safetensors"
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}  # of the sum of separate gradients, relative to their lengths


@dataclass(frozen=True, slots=True)
class Batch:
    """What a batch took: seconds of all its trees together, and for each tree its question, tokens and signal."""

    questions: tuple[str, ...]
    tokens: tuple[int, ...]
    signal: tuple[bool, ...]
    rollout_seconds: float
    update_seconds: float


def measure(
    bench: Bench, candidate: Candidate, folder: Path, tokens: int, progress: Callable[[int], None] | None = None
) -> None:
    """Sample and differentiate batches below ``folder`` until ``tokens`` were generated or the split is used up.

    ``progress`` is told the tokens so far. Batches that are there are kept. A critic is warmed first and then held
    fixed; a tree's seconds are with those of valuing it and of training the critic on it, as an iteration does. Raises
    TrainingError where the gradients of a batch's trees do not add up to the batch's.
    """
    params, count = candidate.params, candidate.batch_questions
    worker, trainer = bench.worker(candidate), bench.trainer(candidate)
    valued: Callable[[Sequence[RolloutTree]], list[StateValues]] | None = None
    training = 0.0
    if params.credit.value.type == "critic":
        critic, took = warm(bench, candidate, folder)
        valued, training = critic.values, took.seconds
    elif params.credit.value.type == "gold_answer":
        answers = answer_values(params.credit.value, bench.problem, bench.rows, bench.tokenizer, trainer)
        valued = partial(answers.values, context_length=params.rollout.context_length)
    generated = number = 0
    most = len(bench.rows) - candidate.warming_questions(len(bench.rows))
    while (number + 1) * count <= most:
        number += 1
        batch = folder / f"{number:05d}"
        if not batch.is_dir():
            rows = QuestionOrder(bench.rows, params.run.seed, position=(number - 1) * count).draw(count, number)
            trees, seconds = _trees(worker, rows, _tree_folder(candidate, folder) / batch.name, number)
            started = time.perf_counter()
            before = valued(trees) if valued else None
            more = time.perf_counter() - started + training * len(trees) if valued else 0.0
            pairs = _credited(candidate, trees, before)
            with atomic_directory(batch) as place:
                _differentiate(
                    trainer,
                    bench.backend,
                    pairs,
                    before,
                    seed=params.run.seed,
                    rollout_seconds=seconds,
                    more_seconds=more,
                    folder=place,
                )
        generated += sum(read_batch(batch).tokens)
        if progress:
            progress(generated)
        if generated >= tokens and number * count >= FEWEST:
            return


def _credited(
    candidate: Candidate, trees: Sequence[RolloutTree], before: Sequence[StateValues] | None
) -> list[CreditedTree]:
    credit = candidate.params.credit
    values: Sequence[StateValues | None] = before if before is not None else [None] * len(trees)
    return [(tree, assign_credit(tree, credit, own)) for tree, own in zip(trees, values, strict=True)]


def _tree_folder(candidate: Candidate, folder: Path) -> Path:
    """Folder of the batches of trees that ``candidate``, measured in ``folder``, shares with whoever samples alike."""
    return folder.parent / f"trees-{digest(sampling(candidate))[:8]}"


def _trees(
    worker: RolloutWorker, rows: Sequence[Question], folder: Path, number: int
) -> tuple[list[RolloutTree], float]:
    """Trees of a batch, sampled unless they are there, and the seconds that took."""
    if not folder.is_dir():
        started = time.perf_counter()
        sampled = worker.sample([row for row in rows for _ in range(REPEATS)], iteration=number, version=0)
        seconds = time.perf_counter() - started - sampled.counts.sync - sampled.counts.probe
        with atomic_directory(folder) as place:
            write_trees(place / "trees.parquet", sampled.trees)
            write_json(place / "sampled.json", {"seconds": seconds})
    return read_trees(folder / "trees.parquet"), read_json(folder / "sampled.json")["seconds"]


def _differentiate(
    trainer: Trainer,
    backend: TorchBackend,
    pairs: Sequence[CreditedTree],
    before: Sequence[StateValues] | None,
    *,
    seed: int,
    rollout_seconds: float,
    more_seconds: float,
    folder: Path,
) -> None:
    """Write a batch: the sketch of each tree's gradient, the values ``before`` its tokens, and what it took;
    ``more_seconds`` are the update's too."""
    started = time.perf_counter()
    trainer.add_gradient(pairs)
    seconds = time.perf_counter() - started
    together = _taken(backend, seed)
    vectors, signal = [], []
    for pair in pairs:
        trained = trainer.add_gradient([pair])
        vectors.append(_taken(backend, seed))
        signal.append(trained > 0 and bool(vectors[-1].any()))  # DVO trains what has no advantage, towards no change
    stacked = torch.stack(vectors)
    off, scale = float((stacked.sum(0) - together).norm()), float(stacked.norm())
    if not off <= TOLERANCE[trainer.params.dtype] * scale:
        raise TrainingError(
            f"gradients of {len(pairs)} trees do not add up to that of all: off by {off / scale:.2g} of their lengths"
        )
    values = {} if before is None else {"values": np.concatenate([own for tree in before for own in tree])}
    save_file({"vectors": stacked.numpy(), **values}, folder / GRADIENTS)
    trees = [tree for tree, _ in pairs]
    batch = Batch(
        tuple(tree.question_id for tree in trees),
        tuple(tree.generated_tokens for tree in trees),
        tuple(signal),
        rollout_seconds,
        seconds + more_seconds,
    )
    write_json(folder / "batch.json", asdict(batch))


def _taken(backend: TorchBackend, seed: int) -> Tensor:
    return sketch(backend.take_gradient(), seed)


def read_batch(folder: Path) -> Batch:
    return TypeAdapter(Batch).validate_python(read_json(folder / "batch.json"))


def batches(folder: Path) -> list[Path]:
    """Folders of a candidate's finished batches, in order."""
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def read_gradients(folder: Path) -> Gradients:
    """The gradients of all batches of a candidate; seconds of a batch are divided evenly among its trees."""
    found = batches(folder)
    records = [read_batch(batch) for batch in found]
    vectors = np.concatenate([load_file(batch / GRADIENTS)["vectors"] for batch in found])
    tokens = np.concatenate([record.tokens for record in records]).reshape(-1, REPEATS)
    each = [(record.rollout_seconds + record.update_seconds) / len(record.tokens) for record in records]
    seconds = np.repeat(each, [len(record.tokens) // REPEATS for record in records])
    return Gradients(
        tuple(question for record in records for question in record.questions[::REPEATS]),
        vectors.reshape(len(tokens), REPEATS, -1),
        tokens.mean(axis=1),
        seconds,
        np.concatenate([record.signal for record in records]).reshape(-1, REPEATS),
    )


def read_credited(candidate: Candidate, folder: Path) -> list[CreditedTree]:
    """All trees that were measured of a candidate, with its credit, in the order they were sampled."""
    trees = _read_trees(candidate, folder)
    return _credited(candidate, trees, _values(trees, folder))


def read_values(candidate: Candidate, folder: Path) -> list[StateValues] | None:
    """A critic's values of the states before every token of the trees that were measured; None without a critic."""
    if candidate.params.credit.value.type != "critic":
        return None
    return _values(_read_trees(candidate, folder), folder)


def _read_trees(candidate: Candidate, folder: Path) -> list[RolloutTree]:
    places = [_tree_folder(candidate, folder) / batch.name for batch in batches(folder)]
    return [tree for place in places for tree in read_trees(place / "trees.parquet")]


def _values(trees: Sequence[RolloutTree], folder: Path) -> list[StateValues] | None:
    found = [load_file(batch / GRADIENTS) for batch in batches(folder)]
    if not found or "values" not in found[0]:
        return None
    flat = np.concatenate([own["values"] for own in found])
    starts = np.cumsum([int(tree.lengths.sum()) for tree in trees])[:-1]
    return [by_node(own, tree.lengths) for tree, own in zip(trees, np.split(flat, starts), strict=True)]
