"""Checkpoints made odd in every file: loaded as they are, or refused in a line that names the folder; never made up."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spo_core.config import ScratchPolicy
from spo_core.errors import DataError, first_line
from spo_core.policy.checkpoint import load_policy, make_policy, make_tokenizer, save_policy, stop_ids
from spo_core.policy.checkpoint_files import check_files
from spo_core.problems import problem_set
from tests.conftest import SHORT_DATA

WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
SIZES = {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 8, "max_positions": 64}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "sound"
    tokenizer = make_tokenizer("characters", problem_set(SHORT_DATA))
    policy = ScratchPolicy(type="scratch", tokenizer="characters", **SIZES)
    save_policy(make_policy(policy, tokenizer, seed=0), tokenizer, folder)
    return folder


@pytest.fixture
def policy(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "policy"))


def keys(folder: Path, file: str, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    content = load_file(folder / WEIGHTS)
    change(content)
    save_file(content, folder / WEIGHTS, metadata={"format": "pt"})


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as refusal:
        load_policy(folder)
    message = str(refusal.value)
    assert len(message.splitlines()) == 1 and str(folder) in message and not message.rstrip().endswith(":")
    return message


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("content", [POINTER, b"", b"{", b"[]", b"\xff\xfe\x00", b"\0" * 64])
def test_a_pointer_or_damaged_file_is_refused_by_its_name(policy, file, content):
    (policy / file).write_bytes(content)
    message = refused(policy)
    assert str(policy / file) in message and (content != POINTER or "git lfs pull" in message)


def test_weights_cut_off_anywhere_are_refused_before_they_are_loaded(policy):
    whole, rng = (policy / WEIGHTS).read_bytes(), random.Random(0)
    for length in {0, 1, 7, 8, 9, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(30))}:
        (policy / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"{WEIGHTS}: damaged, or not all of it is here \({length:,} bytes"):
            check_files(policy)


def names(sound: Path) -> list[str]:
    return sorted(load_file(sound / WEIGHTS))


def test_every_missing_or_renamed_or_infinite_tensor_is_refused_by_name(sound, tmp_path):
    """Whatever is made up would be random, and training would go on with it."""
    for at, name in enumerate(names(sound)):
        folder = Path(shutil.copytree(sound, tmp_path / str(at)))
        kind = at % 4
        if kind == 0:
            tensors(folder, lambda t, name=name: t.pop(name))
            assert f"lacks {name}" in refused(folder)
        elif kind == 1:
            tensors(folder, lambda t, name=name: t.update({f"{name}x": t[name].clone()}))
            assert f"has, unknown to its config.json, {name}x" in refused(folder)
        elif kind == 2:
            tensors(
                folder, lambda t, name=name: t[name].view(-1)[-1:].fill_([float("nan"), float("inf")][len(name) % 2])
            )
            assert f"tensor {name} holds NaN or infinite" in refused(folder)
        else:
            tensors(folder, lambda t, name=name: t.update({name: torch.zeros(*t[name].shape, 2)}))
            assert f"tensor {name} has another shape" in refused(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "changes",
    [
        *({"vocab_size": 50}, {"vocab_size": 5}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}),
        *({"hidden_size": "x"}, {"hidden_size": 32}, {"eos_token_id": "x"}),
        *({"model_type": kind} for kind in (5, None, "bert")),
    ],
)
def test_a_configuration_of_another_policy_is_refused(policy, changes):
    keys(policy, "config.json", **changes)
    refused(policy)


def test_padding_falls_back_to_the_end_and_the_end_to_the_configuration(policy):
    end = load_policy(policy)[1].eos_token_id
    keys(policy, "tokenizer_config.json", pad_token=None)
    tokenizer = load_policy(policy)[1]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (end, end)
    keys(policy, "tokenizer_config.json", eos_token=None)
    keys(policy, "generation_config.json", eos_token_id=[end, 5])
    model, tokenizer = load_policy(policy)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, stop_ids(model, tokenizer)) == (end, end, (end, 5))
    keys(policy, "config.json", eos_token_id=None)
    keys(policy, "generation_config.json", eos_token_id=None)
    assert "its tokenizer has no end token; name one" in refused(policy)


def test_a_missing_tokenizer_says_what_is_missing(policy):
    (policy / "tokenizer.json").unlink()
    (policy / "tokenizer_config.json").unlink()
    assert "tokenizer" in refused(policy)
    assert first_line(ValueError("one of: \n(1) a\n(2) b")) == "one of: (1) a"
