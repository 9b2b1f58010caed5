"""The chain from a policy to what made it, over run directories as the pipeline leaves them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from flows import provenance as command
from spo_core.config import load_params
from spo_core.errors import DataError
from spo_core.paths import Paths
from spo_core.problems.prepare import prepare_splits
from spo_core.runs.directory import open_run
from spo_core.runs.lineage import Asked, UnknownPolicy, asked_folder, asked_score, lines, params_now, trace
from spo_core.runs.provenance import (
    ATTEMPTS,
    PUBLISHED,
    Caller,
    Policy,
    known_policies,
    publish_record,
    read_published,
    read_run,
    record_attempt,
    record_policy,
)
from spo_core.system.files import folder_digest, write_json
from spo_core.train.identity import training_identity
from spo_core.train.warmup import warm_up
from tests.conftest import ROOT

CALLER = Caller(None, (), "11111111-2222-3333-4444-555555555555", "brave-otter", "train/nightly")
WANDB = {"project": "spo", "id": "abcd1234", "mode": "offline"}
SMALL = {"data": {"train": 12, "validation": 4, "test": 4}, "policy": {"warmup": {"steps": 1, "batch_size": 2}}}


def change(root: Path, namespace: str, **values) -> None:
    path = root / "params" / f"{namespace}.yaml"
    content = yaml.safe_load(path.read_text())
    content[namespace] |= values
    path.write_text(yaml.safe_dump(content))


def new_policy(source: Path, target: Path, by: float) -> Path:
    """One with other weights."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    save_file({k: v + by for k, v in weights.items()}, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project with a warm-up, and a training run of 6 iterations in two starts, with a milestone; all published."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "params", root / "params")
    change(root, "data", **SMALL["data"])
    policy = yaml.safe_load((root / "params" / "policy.yaml").read_text())["policy"]
    change(root, "policy", warmup=policy["warmup"] | SMALL["policy"]["warmup"])
    params, paths = load_params(root), Paths(root)
    prepare_splits(params, paths)
    warm_up(params, paths, caller=replace(CALLER, flow_run_name="warm-hare"))
    identity = training_identity(params, paths)
    with open_run(paths.work, "train", identity, root) as run:
        record_attempt(run.path, root, 1, CALLER, WANDB)
        record_attempt(run.path, root, 4, replace(CALLER, flow_run_name="late-owl", deployment=None), WANDB)
        final = new_policy(paths.checkpoint("warmup"), paths.checkpoint("final"), 0.1)
        best = new_policy(paths.checkpoint("warmup"), paths.checkpoint("best"), 0.2)
        record_policy(run.path, "final", 6, final)
        record_policy(run.path, "best", 5, best)
        milestone = new_policy(final, paths.milestone(run.path.name, 3), 0.3)
        record_policy(run.path, "milestones/000003", 3, milestone)
        publish_record(run.path, 3, paths.work, milestone.with_suffix(".json"))
        kept = new_policy(final, run.checkpoint(4) / "policy", 0.4)
        publish_record(run.path, 6, paths.work, paths.training / PUBLISHED)
    score = {"cell": "arithmetic-long", "accuracy": 0.5, "standard_error": 0.1}
    write_json(paths.evaluation("final", "arithmetic-long"), score | {"model_digest": folder_digest(final)})
    assert len({folder_digest(one) for one in (final, best, milestone, kept)}) == 4
    return root


@pytest.fixture
def project(finished, tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("SPO_WORK_DIR", raising=False)
    root = tmp_path / "project"
    shutil.copytree(finished, root)
    monkeypatch.chdir(root)
    return root


def traced(root: Path, name: str) -> dict:
    path = root / name
    asked = asked_score(path) if path.suffix == ".json" else asked_folder(name, path)
    return trace(asked, root, root / "work", lambda run: f"page of {run}")


def test_records_are_read_as_they_were_written(project):
    (run,) = project.glob("work/train-*")
    record = read_run(run)
    assert [a.first_iteration for a in record.attempts] == [1, 4]
    assert [a.caller.flow_run_name for a in record.attempts] == ["brave-otter", "late-owl"]
    assert record.attempts[0].wandb == WANDB and record.attempts[0].caller == CALLER
    published = read_published(project / "metrics/train" / PUBLISHED)
    assert published.warmup.attempts[0].caller.flow_run_name == "warm-hare"
    assert replace(published, warmup=None) == record


def test_a_line_that_a_kill_cut_off_costs_that_line_alone(project):
    (run,) = project.glob("work/train-*")
    before = read_run(run)
    whole = (run / ATTEMPTS).read_text()
    (run / ATTEMPTS).write_text(whole[:-20])
    assert read_run(run).attempts == before.attempts[:1]
    added = record_attempt(run, project, 6, CALLER)
    assert read_run(run).attempts == (before.attempts[0], added)


def test_a_start_says_which_kernels_rounded_its_sums(project, caplog):
    (run,) = project.glob("work/train-*")
    record_attempt(run, project, 6, CALLER)
    assert caplog.text == ""
    assert read_run(run).attempts[-1].cpu == torch.backends.cpu.get_cpu_capability()
    code = (
        "import sys; from pathlib import Path; from spo_core.runs.provenance import Caller, record_attempt\n"
        "record_attempt(*map(Path, sys.argv[1:]), 6, Caller())"
    )
    plain = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([sys.executable, "-c", code, str(run), str(project)], env=plain, cwd=ROOT, check=True)
    assert read_run(run).attempts[-1].cpu == "DEFAULT"
    record_attempt(run, project, 6, CALLER)
    here = torch.backends.cpu.get_cpu_capability()
    assert f"{run} was on a CPU with DEFAULT, now on a CPU with {here}" in caplog.text


def test_a_start_says_which_device_rounded_its_sums(project, caplog):
    """On one GPU the kind of CPU does not matter; from CPU to GPU and from GPU to GPU bits change."""
    (run,) = project.glob("work/train-*")
    for device, warns in (("A", True), ("A", False), ("B", True), ("cpu", True), ("cpu", False)):
        caplog.clear()
        record_attempt(run, project, 6, CALLER, device=device)
        assert ("sums round otherwise" in caplog.text) == warns, device
        assert read_run(run).attempts[-1].device == device


def test_a_policy_is_recorded_once_and_again_where_it_changed(project):
    (run,) = project.glob("work/train-*")
    before = known_policies(run)
    record_policy(run, "final", 6, project / "checkpoints/final")
    assert known_policies(run) == before
    record_policy(run, "final", 8, project / "checkpoints/best")
    assert known_policies(run)[-1] == Policy("final", 8, folder_digest(project / "checkpoints/best"))


def test_starts_that_trained_nothing_leave_what_is_published_as_it_was(project):
    (run,) = project.glob("work/train-*")
    target = project / "metrics/train" / PUBLISHED
    before = target.read_bytes()
    (warmup,) = project.glob("work/warmup-*")
    record_attempt(run, project, 7, CALLER)  # the run has 6
    record_attempt(warmup, project, 2, CALLER)  # and the warm-up one step
    publish_record(run, 6, project / "work", target)
    assert target.read_bytes() == before


def test_the_chain_names_everything_that_made_the_policy(project):
    chain = traced(project, "checkpoints/final")
    (run,) = project.glob("work/train-*")
    (warmup,) = project.glob("work/warmup-*")
    assert chain["policy"] == {
        "digest": folder_digest(project / "checkpoints/final"),
        "iteration": 6,
        "names": ["final"],
        "by_name_alone": False,
    }
    assert chain["run"] == {"directory": run.name, "here": True}
    assert chain["data"] == {"digest": folder_digest(project / "data/arithmetic"), "here": "data/arithmetic"}
    assert chain["wandb"] == WANDB and chain["code"]["same_now"] is True and chain["params_now"] == {}
    assert [a["page"] for a in chain["attempts"]] == [f"page of {CALLER.flow_run_id}"] * 2
    assert chain["first_policy"]["digest"] == folder_digest(project / "checkpoints/warmup")
    assert chain["first_policy"]["warmup"]["run"]["directory"] == warmup.name
    assert [s["file"] for s in chain["scores"]] == ["metrics/evaluate/final/arithmetic-long.json"]
    text = "\n".join(lines(chain))
    for fact in (run.name, warmup.name, "iteration 6", "brave-otter", "train/nightly", "abcd1234", "0.5000 ± 0.1000"):
        assert fact in text
    assert traced(project, "checkpoints/warmup")["run"]["directory"] == warmup.name


def test_a_score_s_file_leads_where_its_policy_does(project):
    by_score = traced(project, "metrics/evaluate/final/arithmetic-long.json")
    by_folder = traced(project, "checkpoints/final")
    assert {**by_score, "asked": ""} == {**by_folder, "asked": ""}
    with pytest.raises(DataError, match="neither"):
        asked_score(project / "work/none.json")


@pytest.mark.parametrize("where", ["outputs/milestones/{run}/000003", "work/{run}/checkpoints/000004/policy"])
def test_milestones_and_checkpoints_of_a_run_under_way_are_known(project, where):
    (run,) = project.glob("work/train-*")
    shutil.rmtree(project / "metrics")
    (run / "checkpoints" / ".000005.tmp" / "policy").mkdir(parents=True)  # of a kill
    chain = traced(project, where.format(run=run.name))
    assert chain["run"]["directory"] == run.name and chain["policy"]["iteration"] == (3 if "000003" in where else 4)
    assert len(chain["attempts"]) == (1 if "000003" in where else 2), "a start that came later made nothing of it"


def test_of_two_runs_that_made_the_same_bits_the_published_one_is_named_else_the_later(project):
    """As after a change of the code that changes no weights."""
    (run,) = project.glob("work/train-*")
    for name in ("train-000", "train-zzz"):
        twin = shutil.copytree(run, run.with_name(name))
        later = (twin / ATTEMPTS).read_text().replace('"started": "2', '"started": "3')
        (twin / ATTEMPTS).write_text(later)
    assert traced(project, "checkpoints/final")["run"]["directory"] == run.name
    shutil.rmtree(project / "metrics/train")
    shutil.rmtree(project / "outputs")
    (run / ATTEMPTS).write_text((twin / ATTEMPTS).read_text().replace('"started": "3', '"started": "4'))
    assert traced(project, "checkpoints/final")["run"]["directory"] == run.name


def test_a_folder_leads_to_its_own_run_where_another_made_the_same_bits(project):
    """Twice the same training, the later one published last: each folder names the run that it belongs to."""
    (first,) = project.glob("work/train-*")
    second = Path(shutil.copytree(first, first.with_name("train-second")))
    lines = (second / "attempts.jsonl").read_text().splitlines()
    row = json.loads(lines[-1]) | {"started": "2100-01-01T00:00:00+00:00"}
    (second / "attempts.jsonl").write_text("\n".join([*lines[:-1], json.dumps(row)]) + "\n")
    for run in (first, second):
        (folder, *_) = sorted((run / "checkpoints").glob("[0-9]*/policy"))
        assert traced(project, str(folder.relative_to(project)))["run"]["directory"] == run.name
    assert traced(project, "checkpoints/final")["run"]["directory"] == first.name


def test_a_nightly_report_leads_to_a_checkpoint_that_was_deleted_since(project):
    (run,) = project.glob("work/train-*")
    chain = trace(Asked("report", "0" * 64, run.name, 2), project, project / "work")
    assert chain["run"]["directory"] == run.name and chain["policy"]["iteration"] == 2
    assert "not here; the report names this run" in "\n".join(lines(chain))


def test_what_was_published_is_enough(project):
    """A clean clone after dvc pull has no work/."""
    before = {name: traced(project, name) for name in ("checkpoints/final", "checkpoints/best", "checkpoints/warmup")}
    (run,) = project.glob("work/train-*")
    shutil.rmtree(project / "work")
    for name, chain in before.items():
        after = traced(project, name)
        assert after["run"] == {"directory": chain["run"]["directory"], "here": False}
        for key in ("policy", "params", "data", "code", "attempts", "wandb", "scores"):
            assert after[key] == chain[key], key
        if "first_policy" in chain:
            assert after["first_policy"]["warmup"]["attempts"] == chain["first_policy"]["warmup"]["attempts"]
    assert traced(project, f"outputs/milestones/{run.name}/000003")["policy"]["iteration"] == 3


def test_params_that_differ_now_are_named_and_no_others(project):
    assert traced(project, "checkpoints/final")["params_now"] == {}
    seed = load_params(project).run.seed
    change(project, "run", seed=seed + 1, iterations=999)  # how long a run goes on is no part of what it is
    change(project, "policy", seed=77)  # the warm-up's
    chain = traced(project, "checkpoints/final")
    assert chain["params_now"] == {"run.seed": {"was": seed, "now": seed + 1}}
    assert list(chain["first_policy"]["warmup"]["params_now"]) == ["policy.seed"]


CUSTOM = "credit.advantage={type: custom, path: 'traced_own:advantage'}"
MINE = """def advantage(tree, values):
    return values


def reward(completion, question, outcome, finish):
    return 0.0
"""
RUNS = {  # preset and overrides
    "plain": (None, ()),
    "lora": (None, ("policy.lora={rank: 8}",)),
    "lora of some layers": (None, ("policy.lora={rank: 4, alpha: 9, targets: [q_proj]}",)),
    "a prover": ("pav", ()),
    "a critic": ("ppo", ()),
    "an advantage of its own": (None, (CUSTOM,)),
    "a term of the reward of its own": ("grpo", ("verify.reward=[{type: custom, path: 'traced_own:reward'}]",)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_whose_params_are_as_they_were_has_no_differences(project, name):
    """Whatever its identity holds beside them: adapters, a prover's digest, digests of modules of its own."""
    preset, overrides = RUNS[name]
    (project / "traced_own.py").write_text(MINE)
    params = load_params(project, preset, overrides)
    identity = training_identity(params, Paths(project))
    with open_run(project / "work", "train", identity, project) as run:
        record_attempt(run.path, project, 1, Caller(preset, overrides))
        record_policy(run.path, "final", 6, new_policy(project / "checkpoints/final", project / "made", 0.7))
    chain = traced(project, "made")
    assert chain["run"]["directory"] == run.path.name and chain["params_now"] == {}
    if params.policy.lora:
        assert chain["params"]["policy.lora.rank"] == params.policy.lora.rank
    assert not [key for key in chain["params"] if key.split(".")[0] in ("lora", "prover", "custom")]


CHOICES = (  # each may be what a run had, and what params/ now say
    (),
    *(("run.iterations=7",), ("run.seed=5",)),
    *(("policy.lora={}",), ("policy.lora={rank: 4, targets: [q_proj]}",)),
    *(("rollout.resample={max_tokens: 9000}",), ("rollout.engine={type: vllm, options: {block_size: 64}}",)),
    *(("learn.replay.segments=16",), (CUSTOM,)),
)


def test_params_are_said_to_be_the_same_where_the_run_would_be_and_nowhere_else(project):
    """Each choice as it was against each as it is, whether it has a section more, one less or another."""
    (project / "traced_own.py").write_text(MINE)
    identities = [training_identity(load_params(project, None, chosen), Paths(project)) for chosen in CHOICES]
    (run,) = project.glob("work/train-*")
    record, chain = read_run(run), traced(project, "checkpoints/final")
    for was, identity in zip(CHOICES, identities, strict=True):
        for now, other in zip(CHOICES, identities, strict=True):
            attempts = (replace(record.attempts[0], caller=Caller(None, now)),)
            made = replace(record, identity=identity, attempts=attempts)
            found = params_now(made, project)
            assert "unknown" not in found, found
            assert (found == {}) == (identity == other), (was, now, found)
            written = list(lines(chain | {"params_now": found}))
            assert ("params now    the same" in written) == (found == {})


def test_changed_data_are_said_to_be_gone(project):
    with (project / "data/arithmetic/train.jsonl").open("a") as file:
        file.write("\n")
    assert traced(project, "checkpoints/final")["data"]["here"] is None


def test_a_policy_that_no_run_made_is_unknown(project):
    new_policy(project / "checkpoints/final", project / "foreign", 0.9)
    with pytest.raises(UnknownPolicy, match="unknown"):
        traced(project, "foreign")


def trace_of_final(project: Path) -> dict:
    chain = trace(asked_folder("final", project / "checkpoints/final"), project, project / "work", command.page)
    return json.loads(json.dumps(chain))


def call(*arguments: str):
    app = typer.Typer()
    app.command()(command.command)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_prints_the_chain_and_ends_with_1_for_what_is_unknown(project):
    printed = call("final")
    assert printed.exit_code == 0 and "brave-otter" in printed.output
    chain = json.loads(call("final", "--json").output)
    assert {**chain, "asked": ""} == {**trace_of_final(project), "asked": ""}
    new_policy(project / "checkpoints/final", project / "foreign", 0.9)
    for name in ("foreign", "someone/model"):
        unknown = call(name)
        assert unknown.exit_code == 1 and unknown.output.count("\n") == 1 and "unknown" in unknown.output
