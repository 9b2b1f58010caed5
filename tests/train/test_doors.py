"""What a project brings itself: docs/extending.md's examples train, what does not fit is refused, and digests count."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from spo_core.config import load_params
from spo_core.errors import ConfigError, GradingError, RunError, TrainingError
from spo_core.observe.trackers import Trackers, check_trackers
from spo_core.system.plugins import open_project, project
from spo_core.train.doors import sources
from spo_core.train.identity import check_training, training_identity
from spo_core.train.opening import open_session
from spo_core.train.shards import close_worker, sample_shard
from spo_core.train.steps import rollout_step
from spo_core.tree import read_trees
from tests.conftest import ROOT
from tests.invariants.test_training_runs import prepared, same_bits, small, train

PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


EXAMPLES = [name for name in SECTIONS if blocks(name, "python")]


def overrides(params: dict) -> list[str]:
    return [f"{space}.{key}={json.dumps(value)}" for space, keys in params.items() for key, value in keys.items()]


def example(section: str, root: Path) -> list[str]:
    """Write a section's module into a project; the overrides that choose it."""
    (code,), (chosen,) = blocks(section, "python"), blocks(section, "yaml")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 15, "an example has at most 15 lines"
    name = re.match(r"# (\w+\.py)", code)[1]
    (root / name).write_text(code)
    return overrides(yaml.safe_load(chosen))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    before = project()
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    open_project(before)


@pytest.fixture
def mine(tmp_path, policy, tokenizer, monkeypatch):
    """A prepared project, with what is written as its module ``mine``."""
    paths = prepared(tmp_path, policy, tokenizer, monkeypatch)

    def write(text: str, name: str = "mine") -> None:
        (tmp_path / f"{name}.py").write_text(text)

    return paths, write


def custom(key: str, path: str, **options: object) -> str:
    if key == "verify.reward.1":
        return (
            f"verify.reward={json.dumps([{'type': 'outcome'}, {'type': 'custom', 'path': path, 'options': options}])}"
        )
    return f"{key}={json.dumps({'type': 'custom', 'path': path, 'options': options})}"


ADVANTAGE = "import numpy as np\ndef f(tree, values):\n    return {0}\n"
LOSS = """
import torch
from spo_core.config import LearnParams
from spo_core.learn.loss import LossInputs, LossOutputs, ppo_clip
P = LearnParams(learning_rate=1.0)
def f(inputs):
    loss = inputs.logprobs * inputs.advantages
    return {0}
"""
VALUE = "import numpy as np\nfrom spo_core.credit.value import tree_mean\ndef f(tree):\n    return {0}\n"


def test_every_door_has_an_example():
    assert re.findall(r"^\| \[(\w+)\]\(#", PAGE, re.MULTILINE) == EXAMPLES, "in the order of the table"
    for key in re.findall(r"^\| \[.*?\| `([\w.]+)`", PAGE, re.MULTILINE):
        assert any(o.startswith(key) for s in EXAMPLES for b in blocks(s, "yaml") for o in overrides(yaml.safe_load(b)))


@pytest.mark.slow
@pytest.mark.parametrize("section", [name for name in EXAMPLES if name != "Tracker"])
def test_the_examples_of_the_page_train(mine, section):
    """And change what is learnt, or they would show nothing."""
    paths, _ = mine
    chosen = small(*example(section, paths.root), "run.iterations=2")
    plain, _, _ = train(small("run.iterations=2"), paths)
    weights, rows, _ = train(chosen, paths)
    assert len(rows) == 2 and not rows[0]["train/skipped"]
    assert not same_bits(weights, plain)


def test_the_tracker_of_the_page_is_told_a_training(mine, monkeypatch):
    """As the flow tells it; that it is another run's tracker makes no other run."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    paths, _ = mine
    params = small(*example("Tracker", paths.root), "run.iterations=2")
    _, rows, path = train(params, paths)
    check_trackers(params)
    with Trackers(params, path, paths.root, "run", rows[:1]) as trackers:
        trackers.log(rows[1])
    told = [line.split() for line in (path / "lines.txt").read_text().splitlines()]
    assert told == [[str(row["iteration"]), str(row["rollout/reward"])] for row in rows]
    assert training_identity(params, paths) == training_identity(small("run.iterations=2"), paths)


OURS = """
import json, sys
from pathlib import Path
from spo_core.config import load_params
from spo_core.errors import ConfigError
from spo_core.observe.trackers import check_trackers
from spo_core.system.plugins import open_project
from spo_core.train.doors import sources
open_project(Path.cwd())
named, by_path, wrong = (tuple(given) for given in json.loads(sys.argv[1]))
params = load_params(Path.cwd(), None, named)
check_trackers(params)
assert len(sources(params)) == 4 and params.run.trackers == ("lines",)
other = load_params(Path.cwd(), None, by_path)
assert (params.credit, params.learn, params.verify) == (other.credit, other.learn, other.verify)
try:
    sources(load_params(Path.cwd(), None, wrong))
except ConfigError as error:
    print(error)
"""


def test_one_of_ours_is_a_module_and_a_line(tmp_path):
    """The page's examples as modules of the core, each with its line in OURS."""
    for folder in ("spo_core", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    lines, named, by_path = [], [], []
    rooms = {"Advantage": "credit", "Value": "credit", "Loss": "learn", "Reward": "verify"}
    for section in EXAMPLES:
        room = rooms.get(section, "observe/trackers")
        (override,) = example(section, tmp_path / "spo_core" / room)
        key, _, chosen = override.partition("=")
        choice = json.loads(chosen)
        one = choice if isinstance(choice, dict) else choice[-1]
        path, name = f"spo_core.{room.replace('/', '.')}.{one['path']}", one["path"].partition(":")[2].lower()
        lines.append(f'    "{key}.{name}": "{path}",\n')
        options = one.get("options", {})
        for given, member in ((named, {"type": name, **options}), (by_path, {**one, "path": path})):
            member = name if section == "Tracker" and given is named else member
            given.append(f"{key}={json.dumps(member if isinstance(choice, dict) else [*choice[:-1], member])}")
    named[-1] = "run.trackers=lines"
    config = tmp_path / "spo_core" / "config" / "custom.py"
    config.write_text(config.read_text().replace("OURS = {", "OURS = {\n" + "".join(lines)))
    wrong = [f"credit.advantage={json.dumps({'type': 'decayed', 'half': 1})}"]
    command = [sys.executable, "-c", OURS, json.dumps([named, by_path, wrong])]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert not done.stderr, done.stderr
    assert "takes no option half; it takes decay" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("preset", [None, "grpo"])
def test_our_own_estimators_through_the_door_give_the_same_bits(mine, preset):
    paths, write = mine
    write("from spo_core.credit.value import tree_mean, rewards_only\n"
          "from spo_core.credit import advantage\n"
          "def value(tree, options): return globals()[options['name']](tree)\n"
          "def own(tree, values, options): return getattr(advantage, options['name'])(tree, values)\n")  # fmt: skip
    value, advantage = ("tree_mean", "difference") if preset is None else ("rewards_only", "group_normalized")
    shape = ["rollout.branch_factors=[3]"] if preset else []
    ours, rows, _ = train(small(*shape, "run.iterations=2", preset=preset), paths)
    through, same, _ = train(
        small(
            *shape,
            custom("credit.value", "mine:value", name=value),
            custom("credit.advantage", "mine:own", name=advantage),
            "run.iterations=2",
            preset=preset,
        ),
        paths,
    )
    assert same_bits(ours, through) and rows == same


def test_a_value_of_ones_own_goes_with_responses_that_are_cut(mine):
    """No value rollouts are sampled for it."""
    paths, write = mine
    write(VALUE.format("tree_mean(tree)"))
    params = small(
        "rollout.branch_factors=[3]", custom("credit.value", "mine:f"), "run.iterations=1", preset="spo-chain"
    )
    _, rows, path = train(params, paths)
    trees = read_trees(path / "iterations" / "000001" / "trees.parquet")
    assert rows[0]["rollout/segments"] > rows[0]["rollout/responses"]
    assert all(node.trainable for tree in trees for node in tree.nodes[1:])


@pytest.mark.parametrize(
    ("key", "result", "says"),
    [
        ("credit.advantage", "1 / 0", "failed on the tree of question "),
        ("credit.advantage", "np.zeros(3)", "gave an array of shape (3,) for "),
        ("credit.advantage", "0.0", "gave an array of shape () for "),
        ("credit.advantage", "None", "gave an array of shape () for "),
        ("credit.advantage", "['a'] * len(values)", "failed on the tree of question "),
        ("credit.advantage", "values * np.nan", "the advantage nan; it must be finite"),
        ("credit.advantage", "values + np.inf", "inf; it must be finite"),
        ("credit.value", "tree_mean(tree)[1:]", "it must give one number for each of its "),
        ("credit.value", "tree_mean(tree) * np.nan", "the value nan; an advantage needs a finite one"),
        ("credit.value", "tree_mean(tree) / 0", "it must be finite"),
    ],
)
def test_results_that_are_no_number_a_node_stop_the_run(mine, key, result, says):
    paths, write = mine
    write((ADVANTAGE if key == "credit.advantage" else VALUE).format(result))
    with pytest.raises(TrainingError) as stopped, np.errstate(all="ignore"):
        train(small(custom(key, "mine:f"), "run.iterations=1"), paths)
    assert f"{key}: mine:f" in str(stopped.value) and says in str(stopped.value), str(stopped.value)


def test_what_it_is_handed_is_not_changed_by_it(mine):
    """An estimator that writes into ``values``; recorded values stay those of credit.value."""
    paths, write = mine
    write("def f(tree, values):\n    values[:] = 0.5\n    return values\n")
    _, _, path = train(small(custom("credit.advantage", "mine:f"), "run.iterations=1"), paths)
    from spo_core.credit import read_credits

    folder = path / "iterations" / "000001"
    credits = read_credits(folder / "credits.parquet", read_trees(folder / "trees.parquet"))
    assert any((credit.values != 0.5).any() for credit in credits)


@pytest.mark.parametrize("path", ["mine", "mine:", ":f", "mine.py:f", "a/b:f", "mine:f()", "mine:f.g", "1a:f", "a:b:c"])
def test_a_path_that_is_none_is_refused_when_params_are_read(path):
    for key in ("credit.advantage", "credit.value", "learn.loss", "verify.reward.1"):
        with pytest.raises(ConfigError, match=rf"{key}\.path: .* is no path of a function: write it as my_module:f"):
            load_params(ROOT, None, (custom(key, path),))


def test_another_path_takes_no_options_of_the_one_before():
    first = custom("credit.advantage", "a:f", x=1)
    params = load_params(ROOT, None, (first, custom("credit.advantage", "b:f", y=2)))
    assert params.credit.advantage.options == {"y": 2}
    assert load_params(ROOT, None, (first, "credit.advantage.options.z=3")).credit.advantage.options == {"x": 1, "z": 3}


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("credit.advantage", "", "no module mine in "),
        ("credit.advantage", "x = 1", "has no f"),
        ("credit.advantage", "def f(values, tree): pass", "must be (tree, values)"),
        ("credit.value", "def f(tree, values): pass", "must be (tree)"),
        ("credit.value", "import nowhere", "importing mine failed with ModuleNotFoundError"),
        ("learn.loss", LOSS.replace("{0}", "loss"), "gave Tensor; it must give LossOutputs(loss, metrics)"),
        ("learn.loss", LOSS.replace("{0}", "LossOutputs(loss.sum(), {})"), "the loss is (), not a tensor"),
        ("learn.loss", LOSS.replace("{0}", "LossOutputs(loss.detach(), {})"), "the loss has no gradient"),
        ("learn.loss", LOSS.replace("{0}", "LossOutputs(loss, {'a': 1.0})"), "a is float, not a tensor"),
        ("learn.loss", LOSS.replace("{0}", "LossOutputs(loss, {'a': loss[1:]})"), "a is (3,), not a tensor"),
        (
            "learn.loss",
            LOSS.replace("{0}", "LossOutputs(loss, {'kl': loss})"),
            "a metric 'kl'",
        ),
        (
            "learn.loss",
            LOSS.replace("{0}", "LossOutputs(loss, {'a/b': loss})"),
            "a metric 'a/b'",
        ),
        ("learn.loss", LOSS.replace("{0}", "LossOutputs(loss, {1: loss})"), "it must give LossOutputs"),
        ("learn.loss", LOSS.replace("{0}", "loss / 0 / None"), "failed with TypeError"),
        ("learn.loss", "def f(logprobs, advantages): pass", "must be (inputs)"),
        ("verify.reward.1", "def f(text, question): pass", "must be (completion, question, outcome, finish)"),
        ("verify.reward.1", "def f(completion, question, outcome): pass", "takes (completion, question, outcome)"),
        ("verify.reward.1", "raise OSError('no such model')", "importing mine failed with OSError: no such model"),
    ],
)
def test_refused_at_the_start_with_nothing_written(mine, key, text, says):
    paths, write = mine
    if text:
        write(text)
    for begin in (check_training, train):
        with pytest.raises(ConfigError) as refused:
            begin(small(custom(key, "mine:f")), paths)
        assert str(refused.value).startswith(f"{key}: mine:f") and says in str(refused.value)
    assert not paths.work.exists()


def test_the_built_in_loss_through_the_door_gives_the_same_bits_and_its_metrics_beside(mine):
    paths, write = mine
    write(LOSS.replace("{0}", "ppo_clip(inputs, P)"))
    ours, rows, _ = train(small("run.iterations=2"), paths)
    through, same, _ = train(small(custom("learn.loss", "mine:f"), "run.iterations=2"), paths)
    assert same_bits(ours, through) and rows == same and "train/clip_fraction" in rows[0]
    assert list(rows[0]) == list(same[0])


def test_a_metric_is_a_mean_over_trained_tokens(mine):
    """Over passes of different sizes: 1 at each token is 1, and the log-prob's mean is the one reported anyway."""
    paths, write = mine
    write(LOSS.replace("{0}", "LossOutputs(loss, {'one': torch.ones_like(loss), 'own': -inputs.logprobs.detach()})"))
    params = small(custom("learn.loss", "mine:f"), "run.iterations=1", "learn.max_tokens_per_forward=60")
    _, rows, path = train(params, paths)
    assert rows[0]["train/one"] == 1 and rows[0]["train/own"] == pytest.approx(rows[0]["train/nll"], rel=1e-6)
    assert not {"train/ratio", "train/clip_fraction"} & set(rows[0])
    assert json.loads((path / "metrics.jsonl").read_text())["train/one"] == 1


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ("LossOutputs(loss, {'a': loss} if len(loss) == 4 else {'b': loss})", "gave metrics ['b'], before ['a']"),
        ("LossOutputs(loss if len(loss) == 4 else loss[1:], {})", "the loss is ("),
        ("LossOutputs(loss, {'a': loss * (1 if len(loss) == 4 else torch.nan)})", "metric a of learn.loss is nan"),
        ("LossOutputs(loss * (1 if len(loss) == 4 else torch.nan), {})", "loss is nan at optimizer step 0"),
        ("LossOutputs(loss, {}) if len(loss) == 4 else 1 / 0", "mine:f failed with ZeroDivisionError"),
    ],
)
def test_a_loss_that_goes_wrong_later_stops_the_run(mine, result, says):
    paths, write = mine
    write(LOSS.replace("{0}", result))
    with pytest.raises(TrainingError) as stopped:
        train(small(custom("learn.loss", "mine:f"), "run.iterations=1"), paths)
    assert says in str(stopped.value)


REWARD = "import os, time\ndef f(completion, question, outcome, finish):\n    return {0}\n"
RESULTS = {
    "credit.advantage": (ADVANTAGE, "values"),
    "credit.value": (VALUE, "tree_mean(tree)"),
    "learn.loss": (LOSS, "LossOutputs(loss, {})"),
    "verify.reward.1": (REWARD, "len(completion)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("key", RESULTS)
def test_another_file_is_another_run_and_a_named_one_refuses_it(mine, key):
    paths, write = mine
    template, result = RESULTS[key]
    params = small(custom(key, "mine:f"), "run.name=a", "run.iterations=2")
    text = template.replace("{0}", result)
    write(text)
    train(params, paths, stop_after=1)
    write(text + "# a comment alone\n")
    train(params, paths, stop_after=2)
    write(text + "more = 1\n")
    with pytest.raises(RunError, match=rf"custom\.{key} \(was '.*', is '"):
        train(params, paths)
    with pytest.raises(RunError, match=rf"custom\.{key}"):
        check_training(params, paths)


def test_a_reward_is_called_for_every_response_and_recorded_beside_its_outcome(mine, tokenizer):
    """Far outside 0..1; those that were cut off too. Validation counts outcomes."""
    paths, write = mine
    write(REWARD.format("-100.0 * len(completion) + 10 * (outcome == 'correct') + (finish == 'length') + "
                        "(outcome == 'truncated') * 5"))  # fmt: skip
    params = small(
        custom("verify.reward.1", "mine:f"), "run.iterations=2", "rollout.truncated=zero", "verify.rewards.correct=2"
    )
    _, rows, path = train(params, paths)
    trees = read_trees(path / "iterations" / "000001" / "trees.parquet")
    seen = set()
    for tree in trees:
        for leaf in tree.leaves:
            node = tree.nodes[leaf]
            text = tokenizer.decode(tree.completion(leaf).tolist(), skip_special_tokens=True)
            own = -100.0 * len(text) + 10 * (node.outcome == "correct") + (node.finish == "length")
            assert node.reward == own + 5 * (node.outcome == "truncated") + 2 * (node.outcome == "correct")
            seen.add(node.outcome)
    assert len(seen) > 1 and rows[0]["rollout/reward"] < -10
    assert 0 <= rows[1]["eval/validation_accuracy"] <= 1


@pytest.mark.parametrize("preset", ["grpo", "spo-chain"])
def test_every_algorithm_takes_rewards_of_any_size(mine, preset):
    paths, write = mine
    write(REWARD.format("7.5 - 3 * len(completion)"))
    params = small(custom("verify.reward.1", "mine:f"), "rollout.branch_factors=[3]", "run.iterations=1", preset=preset)
    _, rows, _ = train(params, paths)
    assert not rows[0]["train/skipped"] and rows[0]["rollout/reward"] < 0


@pytest.mark.slow
@pytest.mark.parametrize("result", ["time.sleep(60)", "os._exit(1)", "bytearray(1 << 36)", "0.5 + time.sleep(60)"])
def test_a_reward_that_hangs_or_dies_is_a_timeout(mine, result):
    """For half of the responses; the others keep their reward, and the run goes on."""
    paths, write = mine
    write(REWARD.format(f"{result} if len(completion) % 2 else 3.0"))
    params = small(
        custom("verify.reward.1", "mine:f"),
        "run.iterations=1",
        "verify.seconds=0.3",
        "verify.max_failed_share=1",
        "verify.rewards.timeout=-4",
    )
    _, rows, path = train(params, paths)
    trees = read_trees(path / "iterations" / "000001" / "trees.parquet")
    leaves = [tree.nodes[leaf] for tree in trees for leaf in tree.leaves]
    assert {(n.outcome, n.reward) for n in leaves} == {("timeout", -4.0), ("correct", 4.0)}
    assert rows[0]["rollout/failed_share"] > 0
    with pytest.raises(GradingError, match=r"timed out .* more than verify\.max_failed_share"):
        train(small(custom("verify.reward.1", "mine:f"), "verify.seconds=0.3", "verify.max_failed_share=0.1"), paths)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ("1 / 0", "failed with ZeroDivisionError: division by zero (a response to question "),
        ("None", "failed with TypeError"),
        ("float('nan')", "gave nan; a reward is a finite number"),
        ("float('-inf')", "gave -inf; a reward is a finite number"),
        ("'3'", "gave '3'; a reward is a finite number"),
        ("[1]", "failed with TypeError"),
        ("exec('raise ValueError(chr(10).join([chr(120) * 9000, chr(121)]))')", "failed with ValueError: xxx"),
    ],
)
def test_a_reward_that_is_no_number_stops_the_run(mine, result, says):
    paths, write = mine
    write(REWARD.format(result))
    with pytest.raises(GradingError) as stopped:
        train(small(custom("verify.reward.1", "mine:f"), "run.iterations=1"), paths)
    assert str(stopped.value).startswith("verify.reward.1: mine:f ") and says in str(stopped.value)


def test_rewards_that_may_leave_0_to_1_are_no_probabilities():
    for reward, ok in (
        (custom("verify.reward.1", "mine:f"), False),
        ("verify.reward=[{type: outcome}, {type: overlong, margin: 4}]", False),
        ("verify.reward=[{type: outcome}, {type: format, pattern: x, bonus: 0.1}]", False),
        ("verify.reward=[{type: format, pattern: x, bonus: 0.1}]", True),
        ("verify.reward=[{type: outcome}]", True),
    ):
        for key in ("credit.value={type: adaptive_monte_carlo}", "credit.advantage={type: best_of_k_progress}"):
            if ok:
                load_params(ROOT, "spo-chain", (reward, key))
            else:
                with pytest.raises(ConfigError, match=r"must lie in 0\.\.1; (they reach from|a custom one)"):
                    load_params(ROOT, "spo-chain", (reward, key))
    with pytest.raises(ConfigError, match=r"verify\.reward\.0\.pattern: no regular expression"):
        load_params(ROOT, None, ("verify.reward=[{type: format, pattern: '('}]",))


def test_runs_without_any_have_no_such_key(mine):
    paths, _ = mine
    assert "custom" not in training_identity(small(), paths) and sources(small()) == {}


def test_a_workers_share_is_refused_where_it_sees_another_file(mine):
    paths, write = mine
    write(ADVANTAGE.format("values"))
    params = small(custom("credit.advantage", "mine:f"), "run.task_runner={type: dask, workers: 2}")

    def elsewhere(shards):
        return [sample_shard(shard) for shard in shards]

    try:
        with open_session(params, paths, map_shards=elsewhere) as session:
            rollout_step(session, 1)
            close_worker()
            write(ADVANTAGE.format("-values"))
            with pytest.raises(RunError, match="a worker with other code than the flow"):
                rollout_step(session, 1)
    finally:
        close_worker()
