"""The warm-up run: from initial weights to the policy that reinforcement learning starts from; resumable."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spo_core.config import DataParams, Params, PretrainedPolicy, ScratchPolicy
from spo_core.errors import DataError
from spo_core.learn.state import load_optimizer, save_optimizer
from spo_core.learn.supervised import Warmup, encode_demonstrations
from spo_core.paths import Paths
from spo_core.policy.checkpoint import check_policy, initial_policy, load_policy, make_tokenizer, save_policy
from spo_core.policy.device import device_name, find_device, use_device
from spo_core.problems import problem_set
from spo_core.problems.base import read_split
from spo_core.problems.mixture import described
from spo_core.rollout.seeds import derive_seed
from spo_core.runs.directory import RunDirectory, open_run
from spo_core.runs.fingerprint import WARMUP, code_digest
from spo_core.runs.provenance import Caller, record_attempt, record_policy
from spo_core.system.files import file_digest, folder_digest, publish, read_json, write_json

CHECKPOINT_EVERY = 100  # optimizer steps


def warm_up(
    params: Params, paths: Paths, progress: Callable[[int, float], None] | None = None, caller: Caller | None = None
) -> list[dict[str, Any]]:
    """Train, or continue, and publish checkpoints/warmup; returns the loss of every step. Calls ``progress(step,
    loss)``."""
    folder = paths.data(params.data.problem_set)
    rows = read_split(folder, "train")
    problem = problem_set(params.data)
    identity = {
        "policy": params.policy.model_dump(mode="json", exclude={"lora"}),
        "pretrained": _pretrained_digest(params.policy.init),
        "arithmetic": _solver(params.data),
        "problem_set": params.data.problem_set,
        "template": described(problem),
        "mixture": [part.model_dump(mode="json") for part in params.data.mixture],
        "train": file_digest(folder / "train.jsonl"),
        "threads": params.run.threads,
        "code": code_digest(*WARMUP),
    }
    torch.set_num_threads(params.run.threads)
    device = find_device(params.run.device)
    use_device(device)
    with open_run(paths.work, "warmup", identity, paths.root) as run:
        model, tokenizer = initial_policy(params.policy, problem)
        model.to(device)  # type: ignore[arg-type]
        warmup, steps = Warmup(model, params.policy.warmup), params.policy.warmup.steps

        def write(target: Path) -> None:
            save_policy(model, tokenizer, target / "policy")
            for index, optimizer in enumerate(warmup.optimizers):
                save_optimizer(target / f"optimizer{index}.safetensors", model, optimizer)
            write_json(target / "state.json", {"step": done})

        done = _restore(run, warmup)
        run.rewind_metrics(done)
        record_attempt(run.path, paths.root, done + 1, caller or Caller(), device=device_name(device))
        for number in range(done, steps):
            started = time.perf_counter()
            rng = np.random.default_rng(derive_seed(params.policy.seed, "warmup", number))
            batch = [rows[i] for i in rng.integers(0, len(rows), params.policy.warmup.batch_size)]
            ids, labels = encode_demonstrations(batch, problem, tokenizer, rng)
            longest = getattr(model.config, "max_position_embeddings", ids.shape[1])
            if ids.shape[1] > longest:
                raise DataError(f"a demonstration has {ids.shape[1]} tokens, the policy {longest} positions")
            loss = warmup.step(ids, labels, number)
            done = number + 1
            row = {"iteration": done, "warmup/loss": loss, "timing/step": time.perf_counter() - started}
            run.append_metrics(row)
            if done % CHECKPOINT_EVERY == 0 and done < steps:
                run.save_checkpoint(done, write, keep=1)
            if progress:
                progress(done, loss)
        if run.latest_checkpoint() != steps:
            run.save_checkpoint(steps, write, keep=1)
        publish(run.checkpoint(steps) / "policy", paths.checkpoint("warmup"))
        record_policy(run.path, "warmup", steps, paths.checkpoint("warmup"))
        return run.read_metrics()


def check_warmup(params: Params, paths: Paths) -> None:
    """Raise SPOError for a missing dataset or device, or a policy that cannot be made."""
    find_device(params.run.device)
    read_split(paths.data(params.data.problem_set), "train")
    if params.policy.init.type == "scratch":
        make_tokenizer(params.policy.init.tokenizer, problem_set(params.data))
    else:
        check_policy(params.policy.init.path)


def _solver(data: DataParams) -> dict[str, Any] | None:
    """What decides how arithmetic is demonstrated, beside its questions, whose file is in the identity too."""
    if data.problem_set != "arithmetic":
        return None
    return data.arithmetic.model_dump(mode="json", exclude={"steps", "sizes"})


def _pretrained_digest(init: ScratchPolicy | PretrainedPolicy) -> str | None:
    """Digest of a local policy's files; None for a hub id, which is taken to mean what its revision names."""
    if init.type == "scratch" or not Path(init.path).is_dir():
        return None
    return folder_digest(Path(init.path))


def _restore(run: RunDirectory, warmup: Warmup) -> int:
    """Continue from the newest complete checkpoint; returns the number of steps done."""
    number = run.resume_point()
    if number is None:
        return 0
    folder = run.checkpoint(number)
    policy, _ = load_policy(folder / "policy")
    warmup.model.load_state_dict(policy.state_dict())
    for index, optimizer in enumerate(warmup.optimizers):
        load_optimizer(folder / f"optimizer{index}.safetensors", warmup.model, optimizer)
    return int(read_json(folder / "state.json")["step"])
