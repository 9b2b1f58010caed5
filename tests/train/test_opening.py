"""A training that is refused while it opens leaves nothing running, whichever step refuses it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import wraps
from types import ModuleType

import pytest

import spo_core.rollout.engines as engines
import spo_core.train.opening as opening
from spo_core.learn.trainer import Trainer
from tests.invariants.test_training_runs import project, small  # noqa: F401

WHOLE = ("rollout.branch_factors=[3]", "rollout.questions=4")
KINDS = {  # overrides and preset of trainings that open in other steps, and the step that only this one has
    "reference": (("learn.kl={type: penalty}",), None, "load_policy"),
    "critic": ((*WHOLE, "run.iterations=9"), "ppo", "Critic"),
    "prover": (WHOLE, "pav", "load_prover"),
}
AFTER = {opening.open_session: "_load", opening._load: "make_engine"}  # nothing is running before these


class Fault(Exception):
    pass


def steps() -> list[tuple[ModuleType, str]]:
    """Every function or class of a module that opening calls by its name, from the first engine's start on."""
    found = []
    for function in (*AFTER, opening._learner, opening._critic, engines.make_engine):
        module = inspect.getmodule(function)
        assert module is not None
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        named = sorted((call.lineno, call.func.id) for call in calls if isinstance(call.func, ast.Name))
        first = min(line for line, name in named if name == AFTER.get(function, name))
        names = dict.fromkeys(name for line, name in named if line >= first)
        found += [(module, name) for name in names if _ours(vars(module).get(name))]
    return found


def _ours(thing: object) -> bool:
    return callable(thing) and str(getattr(thing, "__module__", "")).startswith("spo_core.")


@pytest.fixture
def started(monkeypatch) -> dict[str, int]:
    """How many engines, verifiers and trainers were started and not closed since."""
    running: dict[str, int] = {"engines": 0, "verifiers": 0, "trainers": 0, "in all": 0}

    def count(kind: str, thing) -> None:
        close, closed = thing.close, []
        running[kind] += 1
        running["in all"] += 1

        def counted() -> None:
            running[kind] -= not closed
            closed.append(True)
            close()

        thing.close = counted

    def watch(owner, name: str, kind: str) -> None:
        make = getattr(owner, name)

        @wraps(make)
        def made(*arguments, **options):
            thing = make(*arguments, **options)
            count(kind, thing)
            return thing

        monkeypatch.setattr(owner, name, made)

    watch(engines, "checked_engine", "engines")
    watch(opening, "Verifier", "verifiers")
    make = Trainer.__init__

    def trained(self, *arguments, **options) -> None:
        make(self, *arguments, **options)
        count("trainers", self)

    monkeypatch.setattr(Trainer, "__init__", trained)
    return running


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [k if k == "reference" else pytest.param(k, marks=pytest.mark.exhaustive) for k in KINDS]
)
def test_whatever_was_started_is_closed_where_a_later_step_fails(kind, project, started, monkeypatch):  # noqa: F811
    overrides, preset, own = KINDS[kind]
    params = small(*overrides, preset=preset)
    reached, with_engine = set(), set()
    for module, name in steps():
        before: list[int] = []

        def fails(*_, name=name, before=before, **__):
            before.append(started["in all"])
            raise Fault(name)

        started["in all"] = 0
        with monkeypatch.context() as patch:
            is_class = isinstance(getattr(module, name), type)  # which others may ask isinstance about
            patch.setattr(module, name, type(name, (), {"__new__": fails}) if is_class else fails)
            try:
                with opening.open_session(params, project):
                    assert not before
            except Fault:
                reached.add(name)
                if before[0]:
                    with_engine.add(name)
        assert (started["engines"], started["verifiers"], started["trainers"]) == (0, 0, 0), f"{name} failed"
    assert {"make_engine", "Verifier", "_learner", "Session", own} <= reached
    assert {"Verifier", "_learner", "Session", own} <= with_engine
    with opening.open_session(params, project) as session:  # and the run's directory is free
        assert session.iteration == 0
