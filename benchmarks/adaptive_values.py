"""Adaptive Monte Carlo against a fixed number of value rollouts: error of the values, and tokens decoded for them.

Responses to the last training questions are sampled from the warmed-up policy and cut as preset ``spo-chain`` cuts
them. The true value of a cut state is taken to be the mean of many fresh rollouts; its variance, p (1 - p) / rollouts,
is part of every row's error. Each repeat values the same states with other seeds, through the sampler that training
uses. The defaults of ``adaptive_monte_carlo`` were chosen on other questions and seeds. Writes
benchmarks/results/adaptive_values.json.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import RESULTS, describe_machine
from benchmarks.warmed import warmed_policy
from spo_core.config import AdaptiveMonteCarlo, MonteCarlo, Params, load_params
from spo_core.credit.value import monte_carlo, shared_monte_carlo
from spo_core.policy.checkpoint import load_policy, stop_ids
from spo_core.problems import problem_set
from spo_core.problems.base import ProblemSet
from spo_core.rollout.engine import Request
from spo_core.rollout.sampler import Prompt, Sampler
from spo_core.rollout.seeds import derive_seed
from spo_core.rollout.transformers_engine import TransformersEngine
from spo_core.system.files import write_json
from spo_core.tree import FinishReason, RolloutTree
from spo_core.verify.verifier import Verifier

FIXED, FEW = 9, 3  # rollouts a state: the published number, and one that costs about as much as adaptive
State = tuple[str, bytes]  # question, tokens of the response so far
Values = dict[State, float]


class Reseeded:
    """An engine with the same responses in every repeat, but fresh value rollouts (requests without ``keep``)."""

    def __init__(self, engine: TransformersEngine, repeat: int) -> None:
        self.engine, self.repeat = engine, repeat

    def submit(self, requests: Iterable[Request]) -> None:
        self.engine.submit(
            r if r.keep else replace(r, seed=derive_seed("adaptive values", self.repeat, r.seed)) for r in requests
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


@dataclass(frozen=True, slots=True)
class Bench:
    params: Params
    questions: dict[str, Any]
    prompts: list[Prompt]
    engine: TransformersEngine
    tokenizer: Any
    problem: ProblemSet
    verifier: Verifier

    def reward(self, question: str, token_ids: np.ndarray, finish: FinishReason) -> float:
        if finish is FinishReason.LENGTH:
            return 0.0
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        (verdict,) = self.verifier.grade(self.problem, [(text, self.questions[question].answer)])
        return self.verifier.rewards.of_outcome(verdict.outcome)

    def grow(self, value: MonteCarlo | AdaptiveMonteCarlo, repeat: int) -> list[RolloutTree]:
        """Grow and grade one tree a question; the responses are the same in every call."""
        credit = self.params.credit.model_copy(update={"value": value})
        engine = Reseeded(self.engine, repeat)
        sampler = Sampler(
            engine,
            self.params.rollout,
            credit,
            seed=0,
            iteration=1,
            version=0,
            grade=lambda ended: [(self.reward(*response), "") for response in ended],
        )
        return sampler.grow(self.prompts)

    def truth(self, states: list[State], rollouts: int) -> Values:
        """Mean reward of ``rollouts`` fresh rollouts from every state."""
        prompts = {p.question_id: np.asarray(p.token_ids, np.int32) for p in self.prompts}
        prefixes = [np.concatenate([prompts[q], np.frombuffer(tokens, np.int32)]) for q, tokens in states]
        room = self.params.rollout.context_length
        self.engine.submit(
            Request(i * rollouts + k, prefix, room - len(prefix), derive_seed("truth", i, k))
            for i, prefix in enumerate(prefixes)
            for k in range(rollouts)
        )
        totals = np.zeros(len(states))
        while self.engine.busy:
            for done in self.engine.step():
                i = done.request_id // rollouts
                response = np.concatenate([np.frombuffer(states[i][1], np.int32), done.token_ids])
                totals[i] += self.reward(
                    states[i][0], response, FinishReason.STOP if done.stopped else FinishReason.LENGTH
                )
        return dict(zip(states, (totals / rollouts).tolist(), strict=True))


def cut_states(tree: RolloutTree) -> dict[int, State]:
    """The valued state at the end of every segment but the last of its response, by node."""
    return {
        i: (tree.question_id, tree.completion(i).tobytes())
        for i, children in enumerate(tree.children)
        if children and (i or not all(tree.nodes[c].trainable for c in children))
    }


def fans(tree: RolloutTree, node: int, most: int | None = None) -> list[int]:
    return [c for c in tree.children[node] if not tree.nodes[c].trainable][:most]


def measure(trees: list[RolloutTree], truth: Values, how: str) -> tuple[float, int]:
    """Mean squared error over all cut states, and tokens of the value rollouts that were used."""
    errors, used = [], 0
    for tree in trees:
        states = cut_states(tree)
        values = shared_monte_carlo(tree) if how == "adaptive" else monte_carlo(tree)
        first: dict[State, int] = {}
        for node, state in states.items():
            own = first.setdefault(state, node)  # equal states have one fan, at the first of them
            kept = fans(tree, own, FEW if how == "few" else None)
            value = np.mean([tree.nodes[c].reward for c in kept]) if how == "few" else values[own]
            errors.append((value - truth[state]) ** 2)
            if own == node:
                used += sum(len(tree.nodes[c].token_ids) for c in kept)
    return float(np.mean(errors)), used


def make_bench(folder: Path, questions: int, threads: int | None) -> Bench:
    params = load_params(Path.cwd(), "spo-chain")
    torch.set_num_threads(threads or params.run.threads)
    model, tokenizer = load_policy(folder)
    rollout = params.rollout
    engine = TransformersEngine(
        model,
        stop_ids=stop_ids(model, tokenizer),
        context_length=rollout.context_length,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        max_concurrency=rollout.max_concurrency,
    )
    problem = problem_set(params.data)
    rows = problem.build()["train"][-questions:]
    texts = [problem.prompt(row.question) for row in rows]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    prompts = [Prompt(row.question_id, tuple(i)) for row, i in zip(rows, ids, strict=True)]
    asked = {row.question_id: row for row in rows}
    return Bench(params, asked, prompts, engine, tokenizer, problem, Verifier(params.verify))


def command(
    questions: Annotated[int, typer.Option(help="Questions whose responses are cut.")] = 16,
    repeats: Annotated[int, typer.Option(help="Times that all states are valued, with other seeds.")] = 16,
    rollouts: Annotated[int, typer.Option(help="Rollouts of the truth of a state.")] = 256,
    policy: Annotated[Path | None, typer.Option(help="Another folder with a warmed-up policy.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch; by default run.threads.")] = None,
) -> None:
    """Compare values of adaptive Monte Carlo with those of a fixed number of rollouts."""
    bench = make_bench(policy or warmed_policy(), questions, threads)
    adaptive = AdaptiveMonteCarlo(type="adaptive_monte_carlo")
    sampled: tuple[MonteCarlo | AdaptiveMonteCarlo, ...] = (MonteCarlo(type="monte_carlo", rollouts=FIXED), adaptive)
    names = {
        "fixed": f"fixed k = {FIXED}",
        "few": f"fixed k = {FEW}",
        "adaptive": "adaptive",
    }
    truth: Values = {}
    results: dict[str, list[tuple[float, int]]] = {how: [] for how in names}
    seconds = {"fixed": 0.0, "adaptive": 0.0}
    for repeat in range(repeats):
        for value, hows in zip(sampled, (("fixed", "few"), ("adaptive",)), strict=True):
            started = time.perf_counter()
            trees = bench.grow(value, repeat)
            seconds[hows[0]] += (time.perf_counter() - started) / repeats
            if not truth:
                states = [s for tree in trees for s in cut_states(tree).values()]
                truth = bench.truth(sorted(set(states)), rollouts)
            for how in hows:
                results[how].append(measure(trees, truth, how))
    baseline = np.mean([tokens for _, tokens in results["fixed"]])
    rows = []
    for how, name in names.items():
        errors, tokens = np.array(results[how], np.float64).T
        row = {
            "values": name,
            "mean_squared_error": float(errors.mean()),
            "standard_error": float(errors.std(ddof=1) / repeats**0.5) if repeats > 1 else 0.0,
            "decoded_tokens": float(tokens.mean()),
            "share_of_tokens": float(tokens.mean() / baseline),
            "seconds": round(seconds[how], 2) if how in seconds else None,
        }
        rows.append(row)
    p = np.array([truth[s] for s in states])
    report = {
        "machine": describe_machine(),
        "questions": questions,
        "states": len(states),
        "distinct_states": len(truth),
        "truth_rollouts": rollouts,
        "variance_of_truth": float((p * (1 - p)).mean() / rollouts),
        "repeats": repeats,
        "adaptive": adaptive.model_dump(),
        "rows": rows,
    }
    write_json(RESULTS / "adaptive_values.json", report)
    Console(highlight=False).print(table(report))


def table(report: dict[str, Any]) -> Table:
    result = Table(
        title=f"{report['states']} cut states, {report['distinct_states']} different, {report['repeats']} repeats"
    )
    result.add_column("values")
    for column in ("mean squared error", "decoded tokens", "share", "seconds with responses"):
        result.add_column(column, justify="right")
    for row in report["rows"]:
        result.add_row(
            row["values"],
            f"{row['mean_squared_error']:.5f} ± {row['standard_error']:.5f}",
            f"{row['decoded_tokens']:,.0f}",
            f"{row['share_of_tokens']:.1%}",
            f"{row['seconds']:.1f}" if row["seconds"] is not None else "",
        )
    return result


if __name__ == "__main__":
    typer.run(command)
