"""What all candidates are measured with: one policy, its engine, its verifier, and the trainer's way to a gradient;
and the other policies that some need: provers, and the reference of losses of whole sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spo_core.analysis.candidates import FEWEST, Candidate, own_seed
from spo_core.config import Params
from spo_core.config.learn import NoKL
from spo_core.errors import ConfigError, DataError
from spo_core.learn.backend import TorchBackend
from spo_core.learn.precision import working_copy
from spo_core.learn.trainer import Trainer
from spo_core.learn.tree_check import check_policy
from spo_core.paths import Paths
from spo_core.policy.checkpoint import load_policy
from spo_core.policy.device import find_device, use_device
from spo_core.problems import problem_set
from spo_core.problems.base import ProblemSet, Question, read_split
from spo_core.rollout.engine import Engine
from spo_core.rollout.engines import make_engine
from spo_core.rollout.gap import gap_limit
from spo_core.train.questions import fitting_questions
from spo_core.train.sampling import RolloutWorker
from spo_core.verify.verifier import Verifier


@dataclass(frozen=True, eq=False, slots=True)
class Bench:
    """Made by ``opened``. ``rows`` are the questions of the training split; the policy stays as it is."""

    problem: ProblemSet
    rows: list[Question]
    working: Any
    """What is sampled from and computed with: the policy in the dtype of ``learn.dtype``."""
    tokenizer: Any
    engines: Mapping[str | None, Engine]
    """By the name of the prover, None where a candidate has none; all serve the policy."""
    verifier: Verifier
    backend: TorchBackend
    prompts: dict[str, list[int]]

    def worker(self, candidate: Candidate) -> RolloutWorker:
        """Samples and grades as the candidate does, with seeds of its own."""
        return RolloutWorker(
            own_params(candidate),
            self.problem,
            self.verifier,
            self.working,
            self.tokenizer,
            self.engines[candidate.prover_name],
            self.prompts,
        )

    def trainer(self, candidate: Candidate) -> Trainer:
        """Computes gradients of the candidate's loss, without a penalty."""
        params = own_params(candidate)
        return Trainer(self.backend, params.learn, temperature=params.rollout.temperature, seed=params.run.seed)


def own_params(candidate: Candidate) -> Params:
    """The candidate's params as they are measured: its own seed, one context length, no KL, no restart, a limit for the
    gap."""
    params = candidate.params
    learn: dict[str, Any] = {"kl": NoKL(type="none"), "importance_cap": None, "restart": False}
    learn["max_logprob_gap"] = gap_limit(params)
    return params.model_copy(
        update={
            "run": params.run.model_copy(update={"seed": own_seed(candidate)}),
            "rollout": params.rollout.model_copy(update={"context_schedule": ()}),
            "learn": params.learn.model_copy(update=learn),
        }
    )


_OPEN: dict[Path, Bench] = {}


def bench(folder: str) -> Bench:
    """The open bench of a folder."""
    return _OPEN[Path(folder)]


@contextmanager
def opened(
    candidates: Sequence[Candidate], paths: Paths, policy: Path, folder: Path, first: Path | None = None
) -> Iterator[Bench]:
    """Load the policy in ``policy`` and start its engine; ``folder`` names the bench and holds the engine's files.

    ``first`` holds the policy that training began with: the reference of losses of whole sequences, and the prover
    ``first``; without it the policy itself is both. Raises ConfigError where the candidates' context exceeds the
    policy's positions, DataError for questions that do not fit it and where there are too few for a candidate.
    """
    params = own_params(candidates[0])
    torch.set_num_threads(params.run.threads)
    device = find_device(params.run.device)
    use_device(device)
    problem = problem_set(params.data)
    rows = read_split(paths.data(params.data.problem_set), "train")
    model, tokenizer = load_policy(policy)
    longest = getattr(model.config, "max_position_embeddings", params.rollout.context_length)
    if params.rollout.context_length > longest:
        raise ConfigError(
            f"rollout.context_length {params.rollout.context_length} exceeds the {longest} positions of {policy}"
        )
    rows, _, prompts = fitting_questions(params, problem, tokenizer, model, rows, [])
    for candidate in candidates:
        count, kept = candidate.batch_questions, candidate.warming_questions(len(rows))
        if (len(rows) - kept) // count * count < FEWEST:
            apart = f", {kept} of them to warm the critic with" if kept else ""
            raise DataError(
                f"split train has {len(rows)} questions{apart}, {candidate.name} needs {max(count, FEWEST)}: "
                "prepare more, or lower rollout.questions"
            )
    model.to(device)  # type: ignore[arg-type]
    working = working_copy(model, params.learn)
    with ExitStack() as closing:
        verifier = closing.enter_context(Verifier(params.verify))
        engines: dict[str | None, Engine] = {}
        provers = sorted({c.prover_name for c in candidates if c.prover_name is not None})
        for prover in provers or (None,):
            chosen, place = _sampling_params(candidates, prover), folder / "engine"
            engines[prover] = make_engine(chosen, working, tokenizer, policy=first or policy, folder=place)
            closing.callback(engines[prover].close)
        engines[None] = next(iter(engines.values()))  # one with a prover samples from the policy too
        compares = any(c.needs_reference for c in candidates)
        reference = load_policy(first)[0].to(device) if compares and first is not None else None  # type: ignore[arg-type]
        backend = TorchBackend(model, reference, params.learn, working)
        if reference is None:
            backend.reference = backend.policy
        check_policy(backend.policy, params.rollout.context_length)
        _OPEN[folder] = Bench(problem, rows, working, tokenizer, engines, verifier, backend, prompts)
        closing.callback(_OPEN.pop, folder)
        yield _OPEN[folder]


def _sampling_params(candidates: Sequence[Candidate], prover: str | None) -> Params:
    """Params of an engine that serves every candidate, with a prover or without: of one that asks for entropies, if any
    does, as an engine that gives them gives them to whoever needs none, too.

    Raises ConfigError where several provers are asked for that do not fit beside each other.
    """
    asked = next((c for c in candidates if c.params.credit.partition.type == "entropy"), candidates[0])
    params = own_params(asked)
    names = {c.prover_name for c in candidates} - {None}
    if len(names) > 1 and params.rollout.engine.type == "vllm":
        raise ConfigError(
            f"credit.value.prover: candidates name {', '.join(sorted(map(str, names)))}, and rollout.engine vllm "
            "serves one prover at a time; measure one after the other, or choose the transformers engine"
        )
    value = next((c.params.credit.value for c in candidates if c.prover_name == prover is not None), None)
    if value is None:
        return params
    return params.model_copy(update={"credit": params.credit.model_copy(update={"value": value})})
