"""Measuring candidates at one policy, and publishing the comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from spo_core.analysis.bench import bench, opened
from spo_core.analysis.candidates import NAME, Candidate, identity, read_candidates, reference_of
from spo_core.analysis.drift import check_start, drift
from spo_core.analysis.findings import Measured, as_json, compare, recommend
from spo_core.analysis.measure import measure, read_credited, read_gradients, read_values
from spo_core.analysis.sketch import WIDTH, relative_error
from spo_core.analysis.truth import State, cut_within, measure_states
from spo_core.analysis.warmed import CriticFound, critic_found, read_warming
from spo_core.config import digest, flatten
from spo_core.errors import ConfigError
from spo_core.evaluate.models import Model, Reference, refer
from spo_core.observe.analysis_models import print_checkpoints, write_checkpoints
from spo_core.observe.analysis_page import print_analysis, write_analysis
from spo_core.observe.bars import bar
from spo_core.observe.view_link import analysis_address
from spo_core.problems.base import read_split
from spo_core.rollout.prover import prover_folder
from spo_core.runs.directory import check_run, open_run, provenance
from spo_core.runs.fingerprint import ANALYSIS, code_digest
from spo_core.system.files import folder_digest, write_json
from spo_core.system.plugins import open_project
from spo_core.train.doors import sources
from tasks.links import link_view
from tasks.records import RunSpec


@dataclass(frozen=True)
class AnalysisSpec:
    """What to measure. ``tokens`` are generated for each candidate and the reference; ``states`` of each candidate are
    valued by ``rollouts`` responses from each, or by none where it is 0. ``start`` is the policy that training began
    with, which ``model`` is compared with, if it is another one; ``name`` that of the report."""

    run: RunSpec
    candidates: tuple[Candidate, ...]
    model: Model
    start: Model | None
    tokens: int
    states: int
    rollouts: int
    name: str

    @cached_property
    def all(self) -> tuple[Candidate, ...]:
        """The candidates and the reference, told which other policies they are measured with. Raises ConfigError where
        a prover is missing."""
        return tuple(map(self._placed, (*self.candidates, reference_of(self.candidates[0]))))

    def _placed(self, candidate: Candidate) -> Candidate:
        first, name = self.start or self.model, candidate.prover_name
        prover, reference = None, first.digest if candidate.needs_reference else None
        if name is not None:
            folder = prover_folder(name, first.folder)
            prover = first.digest if folder == first.folder else folder_digest(folder)
        own = self.model.digest
        return replace(
            candidate,
            prover=None if prover == own else prover,
            reference=None if reference == own else reference,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What measurements in one folder have in common; candidates and amounts may be added to it."""
        params = self.candidates[0].params
        return {
            "shared": identity(self.candidates[0])["shared"],
            "data": folder_digest(self.run.inputs.data(params.data.problem_set)),
            "policy": self.model.digest,
            "code": code_digest(*ANALYSIS),
        }


def read_spec(
    root: Path, presets: tuple[str, ...], grid: str | None, overrides: tuple[str, ...], name: str | None
) -> tuple[RunSpec, tuple[Candidate, ...]]:
    """The run whose checkpoints and data are used, that of the first candidate's preset, and the candidates.

    Raises ConfigError for a ``name`` that names no folder and where candidates ask for other data than the run has, and
    DataError where it has none.
    """
    if name is not None and not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r} names a folder: letters, digits, dot, dash and underscore only")
    candidates = read_candidates(root, presets, root / grid if grid else None, overrides)
    run = RunSpec.here(candidates[0].preset)
    has, asked = (flatten(params.data.model_dump(mode="json")) for params in (run.params, candidates[0].params))
    for key in sorted(has.keys() | asked.keys()):
        if has.get(key) != asked.get(key) and key != "max_question_tokens":
            raise ConfigError(
                f"data.{key} is {asked.get(key)!r}, and the data of {run.run_name or 'the main run'} were prepared "
                f"with {has.get(key)!r}; put it into params/ or a preset, and prepare again"
            )
    read_split(run.inputs.data(run.params.data.problem_set), "train")
    return run, tuple(candidates)


def refer_model(run: RunSpec, name: str) -> Reference:
    """The policy of that name; the warm-up is the one that the run trains from. Raises SPOError as ``refer`` does."""
    return refer(name, run.inputs if name == "warmup" else run.paths)


def refer_models(run: RunSpec, names: Sequence[str]) -> list[Reference]:
    """The policies of those names. Raises SPOError as ``refer_model`` does, and for a name that is given twice."""
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    if twice:
        raise ConfigError(f"--model {twice[0]} is given twice; each policy is measured once")
    return [refer_model(run, name) for name in names]


def report_names(name: str | None, models: Sequence[Model]) -> list[str]:
    """Names of the reports of ``models``: with several, folders in one."""
    labels = [model.label for model in models]
    if len(labels) == 1:
        return [name or labels[0]]
    return [f"{name or f'{labels[0]}-to-{labels[-1]}'}/{label}" for label in labels]


def check_analysis(spec: AnalysisSpec) -> None:
    """Raise SPOError for what would refuse the analysis later; writes nothing."""
    open_project(spec.run.paths.root)
    for candidate in spec.all:
        sources(candidate.params)
    check_run(spec.run.paths.work, "analysis", spec.identity)


@contextmanager
def open_analysis(spec: AnalysisSpec) -> Iterator[str]:
    """Lock the working directory, load the policy and start its engine; yields the directory. Raises DataError for a
    ``start`` of another shape."""
    first = spec.start.folder if spec.start is not None else None
    with (
        open_run(spec.run.paths.work, "analysis", spec.identity, spec.run.paths.root) as run,
        opened(spec.all, spec.run.inputs, spec.model.folder, run.path, first),
    ):
        if spec.start is not None:
            check_start(bench(str(run.path)), spec.start.folder)
        yield str(run.path)


def _folder(directory: str, candidate: Candidate) -> Path:
    decides = identity(candidate) | {"custom": sources(candidate.params)}
    return Path(directory) / f"{candidate.name}-{digest(decides)[:8]}"


@task(name="gradients", cache_policy=NO_CACHE, persist_result=False)
def measure_gradients(directory: str, candidate: Candidate, tokens: int) -> None:
    """Sample a candidate's trees and take their gradients, until ``tokens`` were generated."""
    with bar(candidate.name, tokens, unit="tok") as progress:
        measure(
            bench(directory),
            candidate,
            _folder(directory, candidate),
            tokens,
            lambda done: progress.update(min(done, tokens) - progress.n),
        )


@task(name="values", cache_policy=NO_CACHE, persist_result=False)
def measure_values(directory: str, candidate: Candidate, states: int, rollouts: int) -> None:
    """Sample from states of a candidate's trees until their values are known."""
    _states(directory, candidate, states, rollouts)


def _states(directory: str, candidate: Candidate, states: int, rollouts: int) -> list[State]:
    folder = _folder(directory, candidate)
    with bar(candidate.name, states, unit="state", inner=True) as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        pairs, before = read_credited(candidate, folder), read_values(candidate, folder)
        if before is not None:
            seed = candidate.params.run.seed
            pairs = [cut_within(pair, own, seed) for pair, own in zip(pairs, before, strict=True)]
        return measure_states(
            bench(directory),
            candidate,
            pairs,
            folder / "states",
            states=states,
            rollouts=rollouts,
            progress=show,
        )


def _critic(candidate: Candidate, folder: Path) -> CriticFound | None:
    before = read_values(candidate, folder)
    if before is None:
        return None
    trees = [tree for tree, _ in read_credited(candidate, folder)]
    return critic_found(trees, before, read_warming(candidate, folder))


def publish_analysis(spec: AnalysisSpec, directory: str) -> dict[str, Any]:
    """Compare what was measured; writes reports/analysis/<name>/ and returns what analysis.json holds."""
    measured = [
        Measured(
            candidate,
            read_gradients(folder := _folder(directory, candidate)),
            read_credited(candidate, folder),
            _states(directory, candidate, spec.states, spec.rollouts) if spec.states else [],
            _critic(candidate, folder),
        )
        for candidate in spec.all
    ]
    rows = compare(bench(directory), measured, measured[-1].gradients)
    drifted = None
    if spec.start is not None:
        trees = [tree for tree, _ in measured[-1].trees]
        temperature = spec.candidates[0].params.rollout.temperature
        drifted = drift(bench(directory), spec.start.folder, trees, temperature)
    result = {
        "name": spec.name,
        "model": spec.model.name,
        "start": spec.start.name if spec.start else None,
        "drift": as_json(drifted),
        "recommendations": recommend(rows),
        "candidates": as_json(rows),
        "sketch": {"width": WIDTH, "relative_error": relative_error(WIDTH)},
        "amount": {"tokens": spec.tokens, "states": spec.states, "rollouts": spec.rollouts},
        "identity": spec.identity,
        "provenance": provenance(spec.run.paths.root),
    }
    target = spec.run.paths.analysis(spec.name)
    write_json(target / "analysis.json", result)
    write_analysis(result, target)
    print_analysis(result)
    address = analysis_address(spec.name)
    link_view(spec.run.paths, address, f"analysis-{spec.name}", f"Which credit pays at {spec.model.label}")
    return result


def publish_checkpoints(specs: Sequence[AnalysisSpec], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write the page over several policies' analyses, in the order they were named, above theirs."""
    name = specs[0].name.rpartition("/")[0]
    found = {"name": name, "models": [spec.model.label for spec in specs], "analyses": list(results)}
    target = specs[0].run.paths.analysis(name)
    write_json(target / "analysis.json", found)
    write_checkpoints(found, target)
    print_checkpoints(found)
    return found
