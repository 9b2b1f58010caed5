"""One iteration of training, as three steps. Each hands its results to the next in the session, and writes them into
the iteration's folder for a replay, the report and readers."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from spo_core.config import VllmEngineParams
from spo_core.config.engine import EngineParams
from spo_core.credit import assign_credit, write_credits
from spo_core.credit.value import response_means
from spo_core.errors import RunError, TrainingError
from spo_core.learn.critic import StateValues, quality
from spo_core.policy.device import peak_bytes
from spo_core.problems.mixture import Mixture, parts_of, set_of, weights_of
from spo_core.rollout.gap import WARNING
from spo_core.rollout.seeds import derive_seed
from spo_core.runs.directory import COMPLETE, SECONDS
from spo_core.system.files import write_json, write_text
from spo_core.system.progress import Progress
from spo_core.train.checkpoints import keep_if_best, save
from spo_core.train.resampling import ask
from spo_core.train.session import Best, Session, UnderWay
from spo_core.tree import FinishReason, RolloutTree, read_trees, write_trees
from spo_core.verify import Outcome
from spo_core.verify.verifier import check_failures, failed_share

log = logging.getLogger(__name__)


def rollout_step(session: Session, iteration: int, progress: Progress | None = None) -> dict[str, float]:
    """Sample and grade one tree a question; writes questions.json, trees.parquet and seconds.json. Metrics are of all
    that was sampled, trees that gave way to others too."""
    started = time.perf_counter()
    params = session.params
    folder = session.run.start_iteration(iteration)
    asked = ask(session, iteration, progress)
    trees, sampled, counts = asked.trees, asked.sampled.trees, asked.sampled.counts
    write_trees(folder / "trees.parquet", trees)
    write_json(folder / "questions.json", [asdict(row) for row in asked.rows])
    write_json(folder / SECONDS, [asdict(own) for own in asked.seconds])
    failed = check_graded(session, iteration, sampled)
    seconds = time.perf_counter() - started
    metrics = (
        rollout_metrics(sampled)
        | metrics_by_set(session, sampled)
        | asked.metrics
        | {
            "sync/logprob_gap_mean": counts.gap_mean,
            "sync/logprob_gap_max": counts.gap_max,
            "timing/sync": counts.sync,
            "timing/probe": counts.probe,
            "rollout/failed_share": failed,
            "timing/rollout": seconds,
            "timing/grading": counts.grading,
            "timing/generated_tokens_per_second": counts.generated_tokens / seconds,
        }
    )
    if isinstance(params.rollout.engine, VllmEngineParams):  # transformers' engine is never restarted
        metrics["rollout/engine_restarts"] = counts.engine_restarts
    if caches_prefixes(params.rollout.engine):
        metrics["rollout/cache_hit_rate"] = counts.cached_tokens / counts.prefix_tokens
    write_json(folder / "rollout.json", metrics)  # a replay samples nothing and reports these
    session.under_way = UnderWay(trees, metrics=metrics)
    return metrics


def caches_prefixes(engine: EngineParams) -> bool:
    """Whether an engine caches prefixes: each does, unless options tell vLLM not to."""
    options = engine.options if isinstance(engine, VllmEngineParams) else {}
    return all(value for name, value in options.items() if name.replace("-", "_") == "enable_prefix_caching")


def _under_way(session: Session, iteration: int) -> UnderWay:
    if session.under_way is None or session.iteration + 1 != iteration:
        raise RunError(f"{session.run.path}: iteration {iteration} has no trees yet; sample them first")
    return session.under_way


def check_graded(session: Session, iteration: int, trees: Sequence[RolloutTree]) -> float:
    """Compute the share of graded responses, value rollouts included, whose comparison failed.

    Raises GradingError where it is too large; trees are written before that, so that their answers can be read.
    """
    outcomes = [Outcome(tree.nodes[leaf].outcome) for tree in trees for leaf in tree.leaves]
    where = session.run.iteration(iteration) / "trees.parquet"
    check_failures(outcomes, session.params.verify.max_failed_share, f"{where}, iteration {iteration}")
    return failed_share(outcomes)


def replay_step(session: Session, iteration: int) -> dict[str, float]:
    """Take recorded trees instead of sampling; writes what ``rollout_step`` does."""
    if session.recorded is None:
        raise RunError(f"{session.run.path}: no recorded rollouts belong to this run; sample them")
    started = time.perf_counter()
    folder = session.run.start_iteration(iteration)
    metrics = session.recorded.publish(iteration, folder)
    trees = read_trees(folder / "trees.parquet")
    metrics = metrics or rollout_metrics(trees)
    check_graded(session, iteration, trees)
    metrics |= {"timing/rollout": time.perf_counter() - started}
    write_json(folder / "rollout.json", metrics)
    session.under_way = UnderWay(trees, metrics=metrics)
    return metrics


def keep_step(session: Session, iteration: int) -> dict[str, Any]:
    """Complete an iteration without an update; returns its row of metrics."""
    row = _count(session, _under_way(session, iteration))
    write_json(session.run.iteration(iteration) / "order.json", session.order.state)
    warn_of_gap(session, row)
    _complete(session, row)
    return row


def _count(session: Session, under_way: UnderWay) -> dict[str, Any]:
    """Count the iteration under way as finished; returns its row of metrics so far."""
    session.iteration += 1
    session.generated_tokens += int(under_way.metrics["rollout/generated_tokens"])
    session.tick()
    row = {"iteration": session.iteration, "generated_tokens": session.generated_tokens, **under_way.metrics}
    return row | {"timing/run": session.seconds}


def _complete(session: Session, row: dict[str, Any]) -> None:
    folder = session.run.iteration(session.iteration)
    write_json(folder / "metrics.json", row)
    session.run.append_metrics(row)
    write_text(folder / COMPLETE, "")  # written last: it marks the iteration as complete


def validate(session: Session, iteration: int) -> dict[str, float]:
    """Measure the accuracy on the validation split at the training temperature, with one response a question; of a
    mixture by set, and in all by the sets' weights."""
    started = time.perf_counter()
    graded = session.sample(session.validation, iteration, validation=True).trees
    outcomes = [Outcome(tree.nodes[tree.leaves[0]].outcome) for tree in graded]
    correct = np.array([outcome is Outcome.CORRECT for outcome in outcomes], float)
    accuracy, variance, by_set = 0.0, 0.0, {}
    for name, weight in weights_of(session.params.data).items():
        own = correct[[set_of(session.problem, row.question_id).name == name for row in session.validation]]
        accuracy += weight * own.mean()
        variance += weight**2 * (own.var(ddof=1) / len(own) if len(own) > 1 else np.nan)
        by_set[f"eval/{name}/validation_accuracy"] = float(own.mean())
    error = {} if np.isnan(variance) else {"eval/validation_standard_error": float(variance**0.5)}
    return {
        "eval/validation_accuracy": float(accuracy),
        **error,
        **(by_set if len(by_set) > 1 else {}),
        "eval/validation_failed_share": failed_share(outcomes),
        "timing/validate": time.perf_counter() - started,
    }


def warn_of_gap(session: Session, row: dict[str, Any]) -> None:
    """Warn, once an iteration, where engine and trainer differ by more than rounding makes likely but may go on."""
    gap = max(row.get("sync/logprob_gap_mean", 0.0), row.get("train/logprob_gap", 0.0))
    if gap > WARNING * session.max_logprob_gap:
        log.warning(
            "iteration %d: engine and trainer differ by %.2g nats a token on average; above %.2g it is probably more "
            "than rounding, and %.2g (learn.max_logprob_gap) stops the run",
            row["iteration"],
            gap,
            WARNING * session.max_logprob_gap,
            session.max_logprob_gap,
        )


def find_best(session: Session) -> Best:
    """Return the best policy of a finished run. Where none was validated, as in a run told to end at its newest
    checkpoint, that is the last one, measured now."""
    if session.best is None:
        keep_if_best(session, validate(session, session.iteration)["eval/validation_accuracy"])
    assert session.best is not None
    return session.best


def rollout_metrics(trees: list[RolloutTree]) -> dict[str, float]:
    """Compute metrics of the responses that are trained on; value rollouts count as generated tokens only."""
    leaves = [(t, i) for t in trees for i in t.leaves if t.nodes[i].trainable]
    outcomes = Counter(t.nodes[i].outcome for t, i in leaves)
    metrics: dict[str, float] = {
        "rollout/reward": float(np.mean([response_means(t)[0] for t in trees])),
        "rollout/accuracy": float(np.mean([response_means(t, _right(t))[0] for t in trees])),
        "rollout/responses": len(leaves),
        "rollout/completion_tokens": float(np.mean([t.completion_lengths[i] for t, i in leaves])),
        "rollout/segments": sum(n.trainable for t in trees for n in t.nodes),
        "rollout/generated_tokens": sum(t.generated_tokens for t in trees),
    }
    metrics |= {f"rollout/{o}_share": outcomes[o] / len(leaves) for o in Outcome if o is not Outcome.CORRECT}
    # truncated responses count whether or not they are graded
    cut_off = sum(t.nodes[i].finish is FinishReason.LENGTH for t, i in leaves)
    return metrics | {f"rollout/{Outcome.TRUNCATED}_share": cut_off / len(leaves)}


def metrics_by_set(session: Session, trees: list[RolloutTree]) -> dict[str, float]:
    """Compute the metrics of each set of a mixture, as ``rollout/gsm8k/reward``; none where there is one set alone."""
    found: dict[str, float] = {}
    for part in parts_of(session.problem) if isinstance(session.problem, Mixture) else ():
        own = [tree for tree in trees if set_of(session.problem, tree.question_id) is part]
        found[f"rollout/{part.name}/questions"] = len(own)
        for name, value in rollout_metrics(own).items() if own else ():
            found[name.replace("rollout/", f"rollout/{part.name}/", 1)] = value
    return found


def _right(tree: RolloutTree) -> list[float]:
    return [float(node.outcome == Outcome.CORRECT) for node in tree.nodes]


def credit_step(session: Session, iteration: int) -> dict[str, float]:
    """Compute values, advantages and masks of the iteration's trees; writes credits.parquet."""
    started = time.perf_counter()
    under_way = _under_way(session, iteration)
    trees = under_way.trees
    before, critic = _given_values(session, iteration, trees)
    credits = [assign_credit(tree, session.params.credit, own) for tree, own in zip(trees, before, strict=True)]
    write_credits(session.run.iteration(iteration) / "credits.parquet", trees, credits)
    trainable = [(c, i) for t, c in zip(trees, credits, strict=True) for i, n in enumerate(t.nodes) if n.trainable]
    metrics = {
        "credit/segments_with_advantage": float(np.mean([credit.trains(i) for credit, i in trainable])),
        "credit/mask_share": float(np.concatenate([credit.masks[i] for credit, i in trainable]).mean()),
        **{f"critic/{name}": value for name, value in critic.items()},
        "timing/advantage": time.perf_counter() - started,
    }
    write_json(session.run.iteration(iteration) / "credit.json", metrics)
    under_way.credits = credits
    under_way.metrics |= metrics
    return metrics


def _given_values(
    session: Session, iteration: int, trees: Sequence[RolloutTree]
) -> tuple[Sequence[StateValues | None], dict[str, float]]:
    """Values of the states before every token, as a critic gives them that was not trained on these trees, with how
    good they are; or of the states before every node, by the right answer's probability. Without either None for each.

    Raises TrainingError where they are to be used for the first time and are worse than ``min_explained_variance``.
    """
    if session.answers is not None:
        return session.answers.values(trees, session.params.rollout.context_at(iteration)), {}
    if session.critic is None:
        return [None] * len(trees), {}
    before = session.critic.values(trees)
    found = quality(trees, before)
    least, explained = session.critic.params.min_explained_variance, found["explained_variance"]
    if iteration == session.warmup_iterations + 1 and least is not None and not explained >= least:
        raise TrainingError(
            f"the critic explains {explained:.3f} of the variance of returns after {session.warmup_iterations} "
            f"iterations, less than credit.value.min_explained_variance {least:g}: raise credit.value."
            "warmup_iterations or epochs, or set min_explained_variance to null to use it all the same"
        )
    return before, {name: value for name, value in found.items() if math.isfinite(value)}


def train_step(session: Session, iteration: int, progress: Progress | None = None) -> dict[str, Any]:
    """Update the policy; completes the iteration, and returns its whole row of metrics."""
    started = time.perf_counter()
    under_way = _under_way(session, iteration)
    if any(s.from_iteration == iteration and s.restart_learning_rate for s in session.params.rollout.context_schedule):
        session.trainer.restart_learning_rate()
    warm = iteration > session.warmup_iterations
    added = session.replay.add(under_way.trees, under_way.credits) if warm else 0
    rng = np.random.default_rng(derive_seed(session.params.run.seed, "replay", iteration))
    pairs, replay = session.replay.draw(iteration, rng)
    update = session.trainer.train_iteration(pairs, iteration=iteration, progress=progress)
    if update["skipped"] and warm:
        log.warning("iteration %d: no segment has an advantage, so the policy stays as it is", iteration)
    row = _count(session, under_way)
    row |= {f"replay/{name}": value for name, value in ({"added": added} | replay).items()}
    row |= {f"train/{name}": value for name, value in update.items()}
    if session.critic is not None:
        row |= {f"critic/{name}": value for name, value in session.critic.update(under_way.trees, iteration).items()}
    warn_of_gap(session, row)
    row["timing/train"] = time.perf_counter() - started
    if (peak := peak_bytes(session.model.device)) is not None:
        row["memory/gpu_peak_bytes"] = peak
    if iteration % session.params.run.validate_every == 0 or session.finished:
        row |= validate(session, iteration)
        keep_if_best(session, row["eval/validation_accuracy"])
    _complete(session, row)
    if session.checkpoint_due:
        save(session)
    session.run.keep_rollouts(iteration, session.params.run.keep_rollouts)
    return row
