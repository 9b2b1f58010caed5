"""What all candidates are measured with: one policy, its engine, its verifier, and the trainer's way to a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    engine: Engine
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
            self.engine,
            self.prompts,
        )

    def trainer(self, candidate: Candidate) -> Trainer:
        """Computes gradients of the candidate's loss, without a penalty."""
        params = own_params(candidate)
        return Trainer(self.backend, params.learn, temperature=params.rollout.temperature, seed=params.run.seed)


def own_params(candidate: Candidate) -> Params:
    """The candidate's params as they are measured: its own seed, one context length, no KL, a limit for the gap."""
    params = candidate.params
    learn = {"kl": NoKL(type="none"), "importance_cap": None, "max_logprob_gap": gap_limit(params)}
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
def opened(candidates: Sequence[Candidate], paths: Paths, policy: Path, folder: Path) -> Iterator[Bench]:
    """Load the policy in ``policy`` and start its engine; ``folder`` names the bench and holds the engine's files.

    Raises ConfigError where the candidates' context exceeds the policy's positions, DataError for questions that do not
    fit it and where there are too few for a candidate.
    """
    asked = next((c for c in candidates if c.params.credit.partition.type == "entropy"), candidates[0])
    params = own_params(asked)  # an engine that is asked for entropies gives them to whoever needs none, too
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
        count = candidate.batch_questions
        if len(rows) // count * count < FEWEST:
            raise DataError(
                f"split train has {len(rows)} questions, {candidate.name} needs {max(count, FEWEST)}: "
                "prepare more, or lower rollout.questions"
            )
    model.to(device)  # type: ignore[arg-type]
    working = working_copy(model, params.learn)
    with ExitStack() as closing:
        verifier = closing.enter_context(Verifier(params.verify))
        engine = make_engine(params, working, tokenizer, policy=policy, folder=folder / "engine")
        closing.callback(engine.close)
        backend = TorchBackend(model, None, params.learn, working)
        check_policy(backend.policy, params.rollout.context_length)
        _OPEN[folder] = Bench(problem, rows, working, tokenizer, engine, verifier, backend, prompts)
        closing.callback(_OPEN.pop, folder)
        yield _OPEN[folder]
