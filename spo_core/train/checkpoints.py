"""Saving and restoring a session, and keeping its best policy."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors import SafetensorError

from spo_core.errors import DataError, RunError
from spo_core.policy.adapter import FOLDER, has_adapter, load_adapter
from spo_core.policy.checkpoint import load_policy, save_policy
from spo_core.system.files import read_json, write_json
from spo_core.train.recorded import complete_iterations
from spo_core.train.session import Best, Session

log = logging.getLogger(__name__)
UNREADABLE = (DataError, OSError, ValueError, SafetensorError, pa.ArrowException)


def keep_if_best(session: Session, accuracy: float) -> None:
    """Keep the present policy where its validation accuracy is higher than any before; count those that are not."""
    session.unraised += session.iteration > session.warmup_iterations  # before that the policy stays as it is
    if session.best is None or accuracy > session.best.accuracy:
        session.run.save_best(session.iteration, lambda folder: _write_policy(session, folder))
        session.best, session.unraised = Best(session.iteration, accuracy), 0


def save(session: Session) -> None:
    """Write a resumable checkpoint of the last finished iteration. Best policies that no checkpoint names are
    deleted."""
    run = session.params.run
    session.run.save_checkpoint(
        session.iteration, lambda folder: _write(session, folder), run.keep_checkpoints, run.milestone_every
    )
    try:
        states = [_state(session, number) for number in session.run.checkpoints()]
    except RunError as error:  # it may name any of the best policies: none is deleted
        log.warning("all best policies are kept: %s", error)
        return
    session.run.keep_bests({state["best"]["iteration"] for state in states if state.get("best")})


def restore(session: Session, number: int) -> None:
    """Go on after a checkpoint. Raises RunError where it, or the best policy that it names, cannot be read."""
    folder, state = session.run.checkpoint(number), _state(session, number)
    if state.get("best"):  # otherwise none was validated yet, or an older version wrote this
        session.best = Best(**state["best"])
        if not session.run.has_best(session.best.iteration):
            raise RunError(
                f"{session.run.best(session.best.iteration)}: the best policy so far is missing or damaged, and "
                f"{folder} names it; put it back, or delete {folder} to go on from the checkpoint before"
            )
    try:
        if has_adapter(session.model):
            load_adapter(session.model, folder / "policy" / FOLDER)
        else:
            session.model.load_state_dict(load_policy(folder / "policy")[0].state_dict())
        session.trainer.load(folder / "trainer")
        session.replay.load(folder / "replay")
        if session.critic is not None:
            session.critic.load(folder / "critic")
    except UNREADABLE as error:  # the file has its size, but other bytes than were written
        why = str(error).partition("\n")[0]
        raise RunError(f"{folder}: cannot be read ({why}); delete it to go on from the one before") from error
    session.order.restore(state["order"])
    session.generated_tokens = state["generated_tokens"]
    session.iteration = state["iteration"]
    log.info("resumed after iteration %d from %s", session.iteration, folder)


def restore_rollouts(session: Session) -> None:
    """Go on after the last complete iteration of a run that only samples: the policy has not changed."""
    session.iteration = complete_iterations(session.run.path)
    if session.iteration:
        folder = session.run.iteration(session.iteration)
        session.generated_tokens = read_json(folder / "metrics.json")["generated_tokens"]
        session.order.restore(read_json(folder / "order.json"))


def _write_policy(session: Session, folder: Path) -> None:
    save_policy(session.model, session.tokenizer, folder / "policy")


def _write(session: Session, folder: Path) -> None:
    _write_policy(session, folder)
    for name in ("trainer", "replay"):
        (folder / name).mkdir()
    session.trainer.save(folder / "trainer")
    session.replay.save(folder / "replay")
    if session.critic is not None:
        (folder / "critic").mkdir()
        session.critic.save(folder / "critic")
    best = None if session.best is None else asdict(session.best)
    state = {
        "iteration": session.iteration,
        "generated_tokens": session.generated_tokens,
        "best": best,
        "order": session.order.state,
    }
    write_json(folder / "state.json", state)


def _state(session: Session, number: int) -> dict[str, Any]:
    path = session.run.checkpoint(number) / "state.json"
    try:
        return read_json(path)
    except UNREADABLE as error:
        raise RunError(
            f"{path}: cannot be read ({error}); delete its folder to go on from the checkpoint before"
        ) from None
