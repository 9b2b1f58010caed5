"""Runs in each rank. DeepSpeed's launcher starts it as ``python -m spo_core.learn.deepspeed.rank_process CONFIG.json``.

A rank connects to the flow's socket and obeys JSON lines; all ranks get the same commands and answer when they are
done. When the connection ends, so does the rank, whatever ended the flow. Heavy imports come after that is watched.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import traceback
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from spo_core.system.processes import die_with_parent, keep_alive


class Channel:
    """The rank's end of the flow's socket: a unix socket, or TCP where settings have an address."""

    def __init__(self, settings: dict[str, Any]) -> None:
        if "address" in settings:
            self._socket = socket.create_connection(tuple(settings["address"]))
            keep_alive(self._socket)
            self._socket.sendall(settings["token"].encode() + b"\n")
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(settings["socket"])
        self.commands: SimpleQueue[dict[str, Any]] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, **message: Any) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _read(self) -> None:
        try:
            for line in self._socket.makefile("rb"):
                self.commands.put(json.loads(line))
        finally:
            os._exit(0)  # even out of a collective that will never end


def main(config: Path) -> None:
    die_with_parent()
    settings = json.loads(config.read_text(encoding="utf-8"))
    os.environ.update(settings.get("environment", {}))  # before torch reads it
    rank = int(os.environ["RANK"])
    channel = Channel(settings)
    try:
        serve(channel, settings, rank)
    except BaseException as error:
        traceback.print_exc()
        channel.send(error={"rank": rank, "kind": type(error).__name__, "text": str(error)})
        threading.Event().wait(60)  # the flow ends all ranks when it has read this
        raise


def serve(channel: Channel, settings: dict[str, Any], rank: int) -> None:
    """Make this rank's trainer and obey commands for ever."""
    import torch

    from spo_core.config import Critic as CriticParams
    from spo_core.config import LearnParams, LoraParams
    from spo_core.credit.pairs import read_pairs
    from spo_core.learn.critic import Critic, own_model
    from spo_core.learn.deepspeed.backend import DeepSpeedBackend, join_ranks
    from spo_core.learn.deepspeed.critic import obey_critic
    from spo_core.learn.deepspeed.gold_answer import obey_answers
    from spo_core.learn.trainer import Trainer
    from spo_core.learn.tree_check import check_policy
    from spo_core.policy.checkpoint import load_policy, trained_policy
    from spo_core.system.plugins import open_project

    params = LearnParams.model_validate_json(settings["learn"])
    open_project(Path(settings["project"]))
    join_ranks(Path(settings["store"]) if "store" in settings else None)
    lora = None if settings["lora"] is None else LoraParams.model_validate_json(settings["lora"])
    model, _ = trained_policy(settings["policy"], lora, seed=settings["seed"], dtype=params.dtype)
    reference = None
    if settings["reference"] is not None:
        reference = load_policy(settings["reference"])[0].eval().requires_grad_(False)
    chosen, critic, first = None, None, model
    if settings["critic"] is not None:
        chosen = CriticParams.model_validate_json(settings["critic"][0])
        first = own_model(model, chosen)
    backend = DeepSpeedBackend(model, reference, params)
    check_policy(backend.engine.module, settings["context_length"])  # sharded and rounded as it is trained
    trainer = Trainer(backend, params, temperature=settings["temperature"], seed=settings["seed"])
    if chosen is not None:
        first.to(backend.device)  # type: ignore[arg-type]
        critic = Critic(first, backend, chosen, params, probabilities=settings["critic"][1], seed=settings["seed"])

    def progress(done: int, total: int) -> None:
        channel.send(progress=[done, total])

    def obey(command: dict[str, Any]) -> Any:
        if command["do"] == "train":
            metrics = trainer.train_iteration(
                read_pairs(Path(command["folder"])),
                iteration=command["iteration"],
                progress=progress if rank == 0 else None,
            )
            backend.save_weights(Path(command["weights"]))
            return metrics
        if command["do"].startswith("critic_") and critic is not None:
            return obey_critic(critic, command)
        if command["do"] == "answer_logprobs":
            return obey_answers(trainer, command)
        if command["do"] == "save":
            return trainer.save(Path(command["folder"]))
        if command["do"] == "load":
            backend.load_weights(Path(command["weights"]))
            return trainer.load(Path(command["folder"]))
        if command["do"] == "restart_learning_rate":
            return trainer.restart_learning_rate()
        raise ValueError(f"unknown command {command['do']!r}")

    command: dict[str, Any] | None = None
    while True:
        result = obey(command) if command else None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the rollout engine may share the device, and wakes next
        channel.send(rank=rank, answer=result, step=trainer.step, learning_rate=trainer.learning_rate)
        command = channel.commands.get()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
