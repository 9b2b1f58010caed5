"""What a training run holds in memory between its tasks: policy, engine, trainer, questions.

Tasks exchange paths and small records; models stay here. A task names its session by the run's directory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from spo_core.config import LearnParams, Params
from spo_core.errors import ConfigError, DataError, RunError
from spo_core.learn.backend import Learner, TorchBackend
from spo_core.learn.deepspeed.trainer import DeepSpeedTrainer
from spo_core.learn.precision import working_copy
from spo_core.learn.replay import ReplayBuffer
from spo_core.learn.trainer import Trainer
from spo_core.learn.tree_check import check_policy
from spo_core.paths import Paths
from spo_core.policy.checkpoint import load_policy, save_policy
from spo_core.policy.device import use_device
from spo_core.problems import problem_set
from spo_core.problems.base import ProblemSet, Question, read_split
from spo_core.problems.templates import encode_prompts
from spo_core.rollout.engine import Engine
from spo_core.rollout.engines import make_engine
from spo_core.rollout.sampler import Progress
from spo_core.runs.directory import RunDirectory, is_milestone, open_run
from spo_core.system.files import read_json, write_json
from spo_core.train.opening import NO_LIMIT, check_length, policy_device, training_run
from spo_core.train.recorded import Recorded, complete_iterations
from spo_core.train.sampling import Sampled, Site, sample
from spo_core.train.shards import MapParts, Parts
from spo_core.verify.verifier import Verifier

log = logging.getLogger(__name__)
_OPEN: dict[Path, Session] = {}
UNREADABLE = (DataError, OSError, ValueError, SafetensorError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class Best:
    """The policy with the highest validation accuracy so far, the first among equals; see ``RunDirectory.best``."""

    iteration: int
    """After which it was measured."""
    accuracy: float
    """Between 0 and 1."""


@dataclass(slots=True)
class Session:
    """A training run under way. ``iteration`` is the last finished one; ``best`` is None until one is validated."""

    params: Params
    run: RunDirectory
    problem: ProblemSet
    verifier: Verifier
    rows: list[Question]
    validation: list[Question]
    model: Any
    """The policy with float32 weights, which are the ones saved and handed over."""
    working: Any
    """What is sampled from and computed with in this process: ``model`` or a rounded copy of it."""
    tokenizer: Any
    engine: Engine | None
    """None where questions are sampled in parts elsewhere."""
    parts: Parts | None
    trainer: Learner
    replay: ReplayBuffer
    iteration: int = 0
    generated_tokens: int = 0
    best: Best | None = None
    recorded: Recorded | None = None
    max_logprob_gap: float = NO_LIMIT
    """Of ``gap.gap_limit``; none where a replay's trees are of another policy."""

    @property
    def finished(self) -> bool:
        budget = self.params.run.max_generated_tokens
        return self.iteration >= self.params.run.iterations or (budget is not None and self.generated_tokens >= budget)

    @property
    def at_milestone(self) -> bool:
        """Whether the last finished iteration is one whose checkpoint is kept for good."""
        return is_milestone(self.iteration, self.params.run.milestone_every)

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last finished iteration is one to save."""
        return self.iteration % self.params.run.checkpoint_every == 0 or self.at_milestone or self.finished

    def sample(
        self, rows: Sequence[Question], iteration: int, *, validation: bool = False, progress: Progress | None = None
    ) -> Sampled:
        """Graded trees of the present policy, sampled here or in parts elsewhere; see ``sampling.sample``."""
        version = self.trainer.step
        more: Any = {"iteration": iteration, "version": version, "validation": validation, "progress": progress}
        if self.parts is not None:
            return self.parts.sample(self.model, rows, **more)
        assert self.engine is not None
        site = Site(self.params, self.problem, self.verifier, self.working, self.tokenizer, self.engine)
        return sample(site, rows, **more)

    def fit_prompts(self) -> None:
        """Leave out questions beyond ``data.max_question_tokens``, and say how many; raise DataError where too few are
        left, and for the first question whose prompt leaves no room for a completion or holds a token that the policy
        does not know."""
        self.rows = self._short_enough(self.rows, "train", self.params.rollout.questions)
        self.validation = self._short_enough(self.validation, "validation", 1)
        limit, known = self.params.rollout.shortest_context, self.model.config.get_text_config().vocab_size
        rows = [*self.rows, *self.validation]
        prompts = encode_prompts(self.problem.template, self.tokenizer, [row.question for row in rows])
        for row, ids in zip(rows, prompts, strict=True):
            if len(ids) >= limit:
                raise DataError(
                    f"question {row.question_id}: its prompt has {len(ids)} tokens, rollout.context_length is {limit}; "
                    "raise it, or leave long questions out with data.max_question_tokens"
                )
            if max(ids) >= known:
                token = self.tokenizer.convert_ids_to_tokens(max(ids))
                raise DataError(
                    f"question {row.question_id}: token {token!r} of its prompt has id {max(ids)}, the policy knows "
                    f"{known} tokens: tokenizer and weights do not belong together"
                )

    def _short_enough(self, rows: list[Question], split: str, fewest: int) -> list[Question]:
        """Those with at most ``data.max_question_tokens`` tokens, the template not counted."""
        most = self.params.data.max_question_tokens
        if most is None:
            return rows
        encoded = self.tokenizer([row.question for row in rows], add_special_tokens=False)["input_ids"]
        kept = [row for row, ids in zip(rows, encoded, strict=True) if len(ids) <= most]
        log.log(
            logging.WARNING if len(kept) < len(rows) else logging.INFO,
            "data.max_question_tokens %d leaves out %d of %d questions of split %s",
            most,
            len(rows) - len(kept),
            len(rows),
            split,
        )
        if len(kept) < fewest:
            raise DataError(
                f"data.max_question_tokens {most} leaves {len(kept)} questions of split {split}, fewer than {fewest}"
            )
        return kept

    def keep_if_best(self, accuracy: float) -> None:
        """Keep the present policy where its validation accuracy is higher than any before."""
        if self.best is None or accuracy > self.best.accuracy:
            self.run.save_best(self.iteration, self._write_policy)
            self.best = Best(self.iteration, accuracy)

    def save(self) -> None:
        """A resumable checkpoint of the last finished iteration. A best policy goes when no checkpoint names it."""
        run = self.params.run
        self.run.save_checkpoint(self.iteration, self._write, run.keep_checkpoints, run.milestone_every)
        try:
            states = [self._state(number) for number in self.run.checkpoints()]
        except RunError as error:  # which best policy it names is not known: none is deleted
            log.warning("all best policies are kept: %s", error)
            return
        self.run.keep_bests({state["best"]["iteration"] for state in states if state.get("best")})

    def _write_policy(self, folder: Path) -> None:
        save_policy(self.model, self.tokenizer, folder / "policy")

    def _write(self, folder: Path) -> None:
        self._write_policy(folder)
        for name in ("trainer", "replay"):
            (folder / name).mkdir()
        self.trainer.save(folder / "trainer")
        self.replay.save(folder / "replay")
        best = None if self.best is None else asdict(self.best)
        state = {"iteration": self.iteration, "generated_tokens": self.generated_tokens, "best": best}
        write_json(folder / "state.json", state)

    def _state(self, number: int) -> dict[str, Any]:
        path = self.run.checkpoint(number) / "state.json"
        try:
            return read_json(path)
        except UNREADABLE as error:
            raise RunError(
                f"{path}: cannot be read ({error}); delete its folder to go on from the checkpoint before"
            ) from None

    def _restore(self, number: int) -> None:
        folder, state = self.run.checkpoint(number), self._state(number)
        if state.get("best"):  # else none was validated yet, or it was saved before best policies were kept
            self.best = Best(**state["best"])
            if not self.run.has_best(self.best.iteration):
                raise RunError(
                    f"{self.run.best(self.best.iteration)}: the best policy so far is missing or damaged, and {folder} "
                    f"names it; put it back, or delete {folder} to go on from the checkpoint before"
                )
        try:
            policy, _ = load_policy(folder / "policy")
            self.model.load_state_dict(policy.state_dict())
            self.trainer.load(folder / "trainer")
            self.replay.load(folder / "replay")
        except UNREADABLE as error:  # of the right size, but not what was written
            why = str(error).partition("\n")[0]
            raise RunError(f"{folder}: cannot be read ({why}); delete it to go on from the one before") from error
        self.generated_tokens = state["generated_tokens"]
        self.iteration = state["iteration"]
        log.info("resumed after iteration %d from %s", self.iteration, folder)

    def _restore_rollouts(self) -> None:
        """Go on after the last complete iteration: nothing but its number has changed since the first."""
        self.iteration = complete_iterations(self.run.path)
        if self.iteration:
            last = read_json(self.run.iteration(self.iteration) / "metrics.json")
            self.generated_tokens = last["generated_tokens"]


def session(directory: str) -> Session:
    """The open session of a run directory."""
    try:
        return _OPEN[Path(directory)]
    except KeyError:
        raise RunError(f"{directory}: no training session is open there in this process") from None


@contextmanager
def open_session(
    params: Params,
    paths: Paths,
    *,
    replay: str | None = None,
    rollouts_only: bool = False,
    map_parts: MapParts | None = None,
) -> Iterator[Session]:
    """Lock the run's directory and load what it needs, from its newest complete checkpoint if it has one.

    ``replay`` is the directory of recorded rollouts to train on; with ``rollouts_only`` the policy stays as it is.
    ``map_parts`` has questions sampled in parts: by the cluster that ``run.task_runner`` names.
    """
    if (map_parts is None) != (params.run.task_runner.type == "local"):
        raise ConfigError(
            f"run.task_runner {params.run.task_runner.type}: open the session with a cluster of that type"
        )
    use_device(policy_device(params))
    planned = training_run(params, paths, replay=replay, rollouts_only=rollouts_only)
    torch.set_num_threads(params.run.threads)
    with open_run(paths.work, planned.stage, planned.identity, paths.root, params.run.name) as run:
        check_length(run, params)
        current = _load(params, paths, run, planned.learn, map_parts)
        try:
            current.recorded = planned.recorded
            assert planned.learn.max_logprob_gap is not None
            current.max_logprob_gap = planned.learn.max_logprob_gap
            current.fit_prompts()
            number = run.resume_point()
            if number is not None:
                current._restore(number)
            elif rollouts_only:
                current._restore_rollouts()
            run.rewind_metrics(current.iteration)
            _OPEN[run.path] = current
            yield current
        finally:
            _OPEN.pop(run.path, None)
            with ExitStack() as closing:  # each, whatever becomes of the others
                for part in (current.trainer, current.engine, current.parts, current.verifier):
                    if part is not None:
                        closing.callback(part.close)


def _load(params: Params, paths: Paths, run: RunDirectory, learn: LearnParams, map_parts: MapParts | None) -> Session:
    problem = problem_set(params.data)
    rows, validation = (read_split(paths.data(params.data.problem_set), s) for s in ("train", "validation"))
    if params.rollout.questions > len(rows):
        raise ConfigError(f"rollout.questions {params.rollout.questions} exceeds the {len(rows)} questions to train on")
    model, tokenizer = load_policy(paths.checkpoint("warmup"))
    longest = getattr(model.config, "max_position_embeddings", params.rollout.longest_context)
    if params.rollout.longest_context > longest:
        raise ConfigError(
            f"rollout.context_length {params.rollout.longest_context} exceeds the policy's {longest} positions"
        )
    model.to(policy_device(params))  # type: ignore[arg-type]
    working = working_copy(model, learn)
    policy = paths.checkpoint("warmup")
    parts = engine = None
    if map_parts is not None:
        parts = Parts(run.path, params, policy, map_parts)
    else:
        engine = make_engine(params, working, tokenizer, policy=policy, folder=run.path / "engine")
    try:
        trainer = _learner(params.model_copy(update={"learn": learn}), policy, model, working, run)
    except BaseException:
        if engine is not None:
            engine.close()
        raise
    verifier, replay = Verifier(params.verify), ReplayBuffer(params.learn)
    return Session(
        params, run, problem, verifier, rows, validation, model, working, tokenizer, engine, parts, trainer, replay
    )


def _learner(
    params: Params, policy: Path, model: PreTrainedModel, working: PreTrainedModel, run: RunDirectory
) -> Learner:
    """``policy``: the folder of ``model``, and of the reference policy where there is one."""
    temperature, seed, longest = params.rollout.temperature, params.run.seed, params.rollout.longest_context
    penalty = params.learn.kl.type == "penalty"
    if params.learn.backend.type == "deepspeed":
        reference = policy if penalty else None
        log_file = run.path / "deepspeed.log"
        return DeepSpeedTrainer(
            model,
            params.learn,
            policy=policy,
            reference=reference,
            context_length=longest,
            temperature=temperature,
            seed=seed,
            log=log_file,
        )
    frozen = load_policy(policy)[0].eval().requires_grad_(False).to(model.device) if penalty else None
    backend = TorchBackend(model, frozen, params.learn, working)
    check_policy(backend.policy, longest)
    return Trainer(backend, params.learn, temperature=temperature, seed=seed)
