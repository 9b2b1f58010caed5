"""No pickle and no foreign code is run, and params have no place for a secret."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from spo_core.config import load_params
from spo_core.errors import ConfigError, DataError
from spo_core.evaluate.cell import check_contexts
from spo_core.evaluate.models import folder_model
from spo_core.policy.checkpoint import load_policy, save_policy
from spo_core.train.opening import open_session
from spo_core.train.steps import credit_step, rollout_step, train_step
from tests.conftest import ROOT
from tests.invariants.test_training_runs import prepared, small

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "np.lib.format.read_array",
    "pd.read_pickle",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
}
SOURCES = sorted(p for room in ("flows", "tasks", "spo_core", "benchmarks") for p in (ROOT / room).rglob("*.py"))


def findings(source: str) -> Iterator[str]:
    """What in a module could run code that a file holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            yield from (f"{node.lineno}: {m}" for m in modules if m.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (
                name in FORBIDDEN_CALLS
                or given.get("allow_pickle", "False") != "False"
                or given.get("trust_remote_code", "False") != "False"
                or (
                    re.fullmatch(r"Auto\w+\.from_pretrained", name) and "trust_remote_code" not in given
                )  # asks, where there is a terminal
                or (name.startswith("AutoModel") and given.get("use_safetensors") != "True")
            ):
                yield f"{node.lineno}: {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_module_runs_what_a_file_holds(path):
    assert list(findings(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.SafeLoader)",
        "exec(text)",
        "AutoConfig.from_pretrained(path, trust_remote_code=params.trust)",
        "AutoModelForCausalLM.from_pretrained(path)",
        "AutoTokenizer.from_pretrained(path)",
    ],
)
def test_the_search_finds(line):
    assert list(findings(line))
    assert not list(findings("np.load(path); model.eval(); yaml.safe_load(text)"))


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path, policy, tokenizer) -> Path:
    save_policy(policy, tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


def test_weights_in_a_pickle_are_refused_unread(folder, tmp_path):
    for name in ("pytorch_model.bin", "model.bin", "consolidated.pth"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    pickle.loads((folder / "model.bin").read_bytes())
    assert (tmp_path / "ran").exists(), "the bomb is none"
    (tmp_path / "ran").unlink()
    load_policy(folder)  # there are safetensors too
    (folder / "model.safetensors").unlink()
    for load in (load_policy, lambda place: folder_model("policy", place)):
        with pytest.raises(DataError, match="safetensors") as refused:
            load(folder)
        assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
    assert not (tmp_path / "ran").exists()


def bring_code(folder: Path, marker: Path, **changes: str) -> None:
    """Name modules of the folder's own in its configuration, as a hub's repository may."""
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    mapped = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    (folder / "config.json").write_text(json.dumps(config | changes | {"auto_map": mapped}))


def test_a_policys_own_code_is_not_run(folder, tmp_path, monkeypatch):
    """It is not asked about either: of a type that transformers knows its own classes are taken."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    before = load_policy(folder)[0].state_dict()
    bring_code(folder, tmp_path / "ran")
    after = load_policy(folder)[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    bring_code(folder, tmp_path / "ran", model_type="own", architectures=["Own"])
    found = folder_model("policy", folder)
    for load, says in (
        (lambda: load_policy(folder), "cannot be loaded as a policy: it needs code of its own"),
        (lambda: check_contexts(found, []), r"config\.json: it needs code of its own"),
    ):
        with pytest.raises(DataError, match=says) as refused:
            load()
        assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_hold_no_pickle(tmp_path, policy, tokenizer, monkeypatch):
    monkeypatch.setenv("SPO_WORK_DIR", str(tmp_path / "work"))
    params = small("run.iterations=1", "run.checkpoint_every=1", "learn.replay={max_age: 2}")
    paths = prepared(tmp_path, policy, tokenizer, monkeypatch)
    with open_session(params, paths) as session:
        for step in (rollout_step, credit_step, train_step):
            step(session, 1)
        files = [p for p in session.run.path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} >= {".safetensors", ".json"} and any("checkpoints" in p.parts for p in files)
    pickles = [p for p in files if p.read_bytes()[:1] == b"\x80" or p.suffix in (".pt", ".bin", ".pkl", ".pth")]
    assert pickles == [], pickles


@pytest.mark.parametrize("name", ["hf_token", "api-key", "ssl_keyfile_password", "secret"])
def test_options_of_the_engine_are_no_place_for_a_secret(tmp_path, name):
    shutil.copytree(ROOT / "params", tmp_path / "params")
    file = tmp_path / "params" / "rollout.yaml"
    content = yaml.safe_load(file.read_text())
    content["rollout"]["engine"] = {"type": "vllm", "options": {name: "hush"}}
    file.write_text(yaml.safe_dump(content))
    override = f"rollout.engine={{type: vllm, options: {{{name}: hush}}}}"
    for overrides in ((), (override,)):
        with pytest.raises(ConfigError, match=rf"rollout\.engine\.options\.{name}: {name} is a secret") as refused:
            load_params(tmp_path, None, overrides)
        assert "hush" not in str(refused.value)


@pytest.mark.parametrize("option", ["load_format: pt", "load-format: auto", "trust_remote_code: true"])
def test_no_option_of_the_engine_reads_pickles_or_runs_a_policys_code(option):
    with pytest.raises(ConfigError, match="cannot be chosen"):
        load_params(ROOT, None, (f"rollout.engine={{type: vllm, options: {{{option}}}}}",))


@pytest.mark.parametrize(
    "option",
    [
        "dtype: float16",
        "logprobs-mode: processed_logprobs",
        "seed: 3",
        "generation_config: auto",
        "model: other/policy",
    ],
)
def test_no_option_of_the_engine_changes_what_is_sampled_behind_its_keys(option):
    for engine in ("rollout", "evaluate"):
        with pytest.raises(ConfigError, match="cannot be chosen"):
            load_params(ROOT, None, (f"{engine}.engine={{type: vllm, options: {{{option}}}}}",))


def test_params_have_no_field_for_a_secret():
    engine = "rollout.engine={type: vllm, options: {max_num_batched_tokens: 64, disable_log_stats: true}}"
    fields = json.dumps(load_params(ROOT, None, (engine,)).model_dump(mode="json")).lower()
    assert not [word for word in ("api_key", "hf_token", '"token"', "password", "secret") if word in fields]
    for override, says in (
        ("run.wandb.api_key=hush", r"unknown key run\.wandb\.api_key"),
        ("run.wandb.api_key={hush", r"--set run\.wandb\.api_key: not valid YAML"),
    ):
        with pytest.raises(ConfigError, match=says) as refused:
            load_params(ROOT, None, (override,))
        assert "hush" not in str(refused.value)
