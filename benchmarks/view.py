"""How quickly the view's pages are there, in a real Chromium: the list of 100 runs, and a tree of 258 long responses.

Times are of the browser's own clock, from the start of navigation until the list is laid out, and until the tokens that
are in sight are drawn in their colours. The server reads everything anew for the first of each; the median is of the
others. Writes benchmarks/results/view.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from playwright.sync_api import Browser, sync_playwright
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.machine import RESULTS, describe_machine
from spo_core.config import CreditParams
from spo_core.credit import assign_credit
from spo_core.credit.pairs import write_pairs
from spo_core.paths import Paths
from spo_core.system.files import write_json
from spo_core.tree import FinishReason, Node, RolloutTree
from tests.view.conftest import serving

RUNS, ITERATIONS = 100, 200
RESPONSES, TOKENS, QUESTIONS = 258, 4000, 4
VOCABULARY = 32_000
WHOLE = CreditParams.model_validate(
    {
        "partition": {"type": "whole"},
        "value": {"type": "none"},
        "advantage": {"type": "group_normalized"},
        "mask": {"type": "low_probability", "threshold": 0.9},
    }
)


def long_tree(question: int) -> RolloutTree:
    """One question's whole responses, of random words."""
    rng = np.random.default_rng(question)
    nodes = [Node.prompt(rng.integers(3, VOCABULARY, 100))]
    for _ in range(RESPONSES):
        ids, logprobs = rng.integers(3, VOCABULARY, TOKENS), -rng.exponential(0.3, TOKENS)
        right = bool(rng.integers(0, 2))
        node = Node.sampled(0, ids, logprobs, FinishReason.STOP)
        nodes.append(node.graded(float(right), "correct" if right else "wrong"))
    return RolloutTree(f"question-{question}", tuple(nodes), 1, 1)


def make_runs(paths: Paths) -> None:
    """RUNS runs of ITERATIONS iterations; the first keeps an iteration of long trees."""
    rng = np.random.default_rng(0)
    for number in range(RUNS):
        run = paths.work / f"train-{number:03d}"
        run.mkdir(parents=True)
        identity = {"run": {"seed": number % 5}, "learn": {"learning_rate": 10.0 ** -(number % 7)}, "rollout": {}}
        identity["rollout"] = {f"param_{k}": k for k in range(60)}
        write_json(run / "manifest.json", {"identity": identity, "provenance": {}})
        names = [f"{kind}/metric_{k}" for kind in ("rollout", "train", "timing") for k in range(15)]
        rows = [
            {"iteration": i, "generated_tokens": 1000 * i, "rollout/reward": float(rng.random())}
            | dict(zip(names, rng.random(len(names)).tolist(), strict=True))
            for i in range(1, ITERATIONS + 1)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = paths.work / "train-000" / "iterations" / f"{ITERATIONS:06d}"
    folder.mkdir(parents=True)
    trees = [long_tree(question) for question in range(QUESTIONS)]
    write_pairs(folder, [(tree, assign_credit(tree, WHOLE)) for tree in trees])
    asked = [{"question_id": t.question_id, "question": t.question_id, "answer": "1", "solution": ""} for t in trees]
    write_json(folder / "questions.json", asked)
    policy = paths.work / "train-000" / "checkpoints" / "000200" / "policy"
    policy.mkdir(parents=True)
    write_json(policy / "config.json", {})
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"word{i} ": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer.save(str(policy / "tokenizer.json"))


def seconds(browser: Browser, address: str, there: str) -> float:
    """Time from the start of navigation until an element is there and painted, by the browser's clock."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address, wait_until="commit")
    page.wait_for_selector(there)
    passed = page.evaluate("new Promise(done => requestAnimationFrame(() => done(performance.now())))")
    page.close()
    return round(float(passed) / 1000, 3)


def main(
    chromium: Annotated[str, typer.Option(help="Program of the browser.")] = "/usr/bin/chromium",
    repeats: Annotated[int, typer.Option(min=2)] = 6,
    write: Annotated[bool, typer.Option(help="Write the results' file.")] = True,
) -> None:
    """Measure both pages and print seconds."""
    with tempfile.TemporaryDirectory(prefix="view-") as folder, sync_playwright() as playwright:
        paths = Paths(Path(folder))
        (paths.root / "params").mkdir()
        make_runs(paths)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found: dict[str, Any] = {}
        with serving(paths) as origin:
            tree = f"{origin}/run/work/train-000/iteration/{ITERATIONS}/tree?question=question-2"
            for name, address, there in (
                (f"{RUNS} runs", f"{origin}/", "#list tbody tr:last-child"),
                (f"tree of {RESPONSES} responses of {TOKENS} tokens", tree, ".tokens > span[style]"),
            ):
                times = [seconds(browser, address, there) for _ in range(repeats)]
                found[name] = {"first": times[0], "median": statistics.median(times[1:]), "all": times}
                print(f"{name}: first {times[0]:.2f} s, then {found[name]['median']:.2f} s")
        browser.close()
    if write:
        write_json(RESULTS / "view.json", {"machine": describe_machine(), "seconds": found})


if __name__ == "__main__":
    typer.run(main)
