"""A project with a trained run, evaluations and a run of hostile texts; its pages on loopback; a Chromium."""

from __future__ import annotations

import json
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import uvicorn

from spo_core.config import load_params
from spo_core.credit import assign_credit
from spo_core.credit.pairs import write_pairs
from spo_core.evaluate.lighteval.details import Sample, write_details
from spo_core.observe.formatting import visible
from spo_core.paths import Paths
from spo_core.policy.checkpoint import initial_policy, save_policy
from spo_core.problems import problem_set
from spo_core.problems.prepare import prepare_splits
from spo_core.runs.directory import RunDirectory
from spo_core.runs.provenance import Caller, publish_record, record_attempt, record_policy
from spo_core.system.files import publish, write_json
from spo_core.tree import FinishReason, Node, RolloutTree
from spo_core.verify import Outcome
from spo_core.view.app import make_app
from spo_core.view.iterations import question_rows
from tests.conftest import ROOT, SHORT
from tests.invariants.test_training_runs import GRADE, grade_by_length, train
from tests.observe.examples import TREE, cell

SMALL = (
    *SHORT,
    *("run.threads=1", "run.iterations=3", "run.checkpoint_every=1", "run.validate_every=2"),
    *("data.train=40", "data.validation=6", "data.test=20", "rollout.context_length=64", "rollout.truncated=grade"),
    *("rollout.questions=6", "rollout.branch_factors=[3, 2, 2]", "learn.optimizer_steps=2"),
    "data.arithmetic.steps=[2, 3]",
)
HOSTILE = (
    "<script>window.taken = 1</script>",
    "<img src=x onerror='window.taken = 2'>",
    "</span></td></table><iframe srcdoc='<script>parent.taken = 3</script>'></iframe>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:window.taken=4",
    "\x1b[31mred\x1b]0;title\x07\x1b[2J\x9b1m",
    "user\u202egnp.exe\u2066hidden\u2069\u200f\ufeff\u2028",
    "\"' onmouseover='window.taken = 5' x='",
    '=HYPERLINK("http://127.0.0.1/")',
    "&lt;b&gt;not bold&lt;/b&gt; &amp; so on",
)


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Paths:
    """A run of the embedded problem, trained, published, evaluated; and ``train-<b>hostile``. Its policy is random, so
    that it takes no warm-up, and rewarded for completions of an even length."""
    root = tmp_path_factory.mktemp("viewed")
    shutil.copytree(ROOT / "params", root / "params")
    paths, params = Paths(root), load_params(ROOT, None, SMALL)
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("SPO_WORK_DIR", raising=False)
        patched.setattr(GRADE, grade_by_length)
        prepare_splits(params, paths)
        save_policy(*initial_policy(params.policy, problem_set(params.data)), paths.checkpoint("warmup"))
        _, _, run = train(params, paths)
    record_attempt(run, root, 1, Caller(overrides=SMALL))
    directory = RunDirectory(run)
    publish(directory.checkpoint(3) / "policy", paths.checkpoint("final"))
    record_policy(run, "final", 3, paths.checkpoint("final"))
    for source in directory.records(3):
        publish(source, paths.training / source.name)
    publish_record(run, 3, paths.work, paths.training / "provenance.json")
    write_evaluations(paths)
    write_hostile_run(paths)
    return paths


def write_evaluations(paths: Paths) -> None:
    """Two policies in one cell of the embedded test split; every second completion is hostile."""
    lines = (paths.data("arithmetic") / "test.jsonl").read_text().splitlines()
    asked = [json.loads(line) for line in lines]
    for policy, right in (("warmup", 3), ("final", 2)):
        samples = []
        for i, row in enumerate(asked):
            for k in range(2):
                correct = (i + k) % right == 0
                text = HOSTILE[(i + k) % len(HOSTILE)] if k else row["solution"]
                outcome = Outcome.CORRECT if correct else Outcome.WRONG
                lighteval = "correct" if correct or i == 1 else "wrong"
                given = row["answer"] if correct else HOSTILE[i % len(HOSTILE)]
                samples.append(Sample(row["question_id"], k, text, row["answer"], given, outcome, lighteval, 9))
        score = cell(samples, policy).score
        target = paths.evaluation(policy, "arithmetic-long")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(score.to_json())
        write_details(target.with_suffix(".parquet"), samples)


PIECES = (
    *("<script>window.taken=1</script>", "<img src=x onerror=window.taken=1>", "<svg onload=window.taken=1>", "<b>"),
    *("<!--", "-->", "]]>", "</textarea>", "</title>", "</style>", "<math><mtext></mtext>", "<a href=javascript:a>"),
    *("&#60;img src=x&#62;", "&lt", "&amp;lt;", "&nbsp;", "{{ 7*7 }}", "{% raw %}", "${7*7}", "%3Cimg%3E", "\\u003c"),
    *('"', "'", "`", "=1+1", "@SUM(A1)", "+1", "-1", "\t=1", "\r\n", "\n\n", "\u00e9", "\U0001f600"),
    *("a", "7 + 5 = 12"),
    *(
        "\x1b[2J",
        "\x9b1m",
        "\x00",
        "\x07",
        "\x7f",
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\u00ad",
        "\U000e0041",
    ),
)


def hostile_texts(count: int, seed: int) -> list[str]:
    """Texts of some pieces each, in any order, that differ from one another as pages show them."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
        found.setdefault(visible(text), text)
    return list(found.values())


def write_hostile_run(paths: Paths, name: str = "train-<b>hostile", texts: Sequence[str] = HOSTILE) -> Path:
    """A run whose name, params, questions and completions are hostile, sampled in bytes."""
    run = paths.work / name
    folder = run / "iterations" / "000001"
    folder.mkdir(parents=True)
    params = load_params(
        ROOT,
        None,
        (
            "policy.init={type: scratch, tokenizer: bytes, hidden_size: 16, layers: 1, "
            "heads: 1, intermediate_size: 16, max_positions: 192}",
        ),
    )
    policy, tokenizer = initial_policy(params.policy, problem_set(params.data))
    save_policy(policy, tokenizer, run / "checkpoints" / "000001" / "policy")
    prompt = Node.prompt(tokenizer("Q")["input_ids"])
    trees, rows = [], []
    for number, text in enumerate(texts):
        nodes = [prompt]
        for k, completion in enumerate((text, f"{text} again", "plain\nlines\tand tabs")):
            ids = tokenizer(completion)["input_ids"]
            right = k == 1
            nodes.append(
                Node.sampled(
                    0, ids, [-0.01 if i % 3 == 0 else -0.5 for i in range(len(ids))], FinishReason.STOP
                ).graded(float(right), "correct" if right else "wrong")
            )
        trees.append(RolloutTree(f"{text}-{number}", tuple(nodes), 1, 1))
        rows.append({"question_id": f"{text}-{number}", "question": text, "answer": text, "solution": ""})
    write_pairs(folder, [(tree, assign_credit(tree, TREE)) for tree in trees])
    write_json(folder / "questions.json", rows)
    write_json(
        run / "manifest.json",
        {
            "identity": {"problem_set": HOSTILE[0], "run": {"seed": 0}, "verify": {"grader": HOSTILE[1]}},
            "provenance": {"code_revision": HOSTILE[2]},
        },
    )
    row = {"iteration": 1, "generated_tokens": 10, "rollout/reward": 0.3, f"train/{HOSTILE[1]}": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n" + '{"iteration": 2, "gen')
    return run


@pytest.fixture(scope="session")
def origin(project) -> Iterator[str]:
    """Origin of the project's pages."""
    with serving(project) as found:
        yield found


class serving:
    """Serves a project's pages while the context lasts; gives their origin."""

    def __init__(self, paths: Paths) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        config = uvicorn.Config(make_app(paths, self.port), log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        limit = time.monotonic() + 60
        while not self.server.started and time.monotonic() < limit:
            time.sleep(0.02)
        assert self.server.started
        return f"http://127.0.0.1:{self.port}"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.socket.close()


@pytest.fixture(scope="session")
def chromium():
    """A Chromium of the system; nothing is downloaded."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium (Debian), then these tests run")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing; make test installs it")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, origin):
    """A page of its own; an error of its script, or anything that the policy of contents stopped, fails the test."""
    context = chromium.new_context(base_url=origin, viewport={"width": 1200, "height": 900})
    found, wrong = context.new_page(), []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    found.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    found.set_default_timeout(20_000)
    yield found
    context.close()
    assert wrong == []


def trained(paths: Paths) -> Path:
    """Working directory of the run that was trained."""
    return next(path for path in paths.work.glob("train-*") if "hostile" not in path.name)


def first_question(paths: Paths, iteration: int = 1) -> str:
    """The first question of an iteration that has right and wrong responses."""
    rows = question_rows(trained(paths) / "iterations" / f"{iteration:06d}")
    return next(row.asked.question_id for row in rows if 0 < row.correct < 1 and row.signal)
