"""A critic on DeepSpeed's ranks: what the flow's process holds, and what a rank does when asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spo_core.config import Critic as CriticParams
from spo_core.learn.critic import Critic, StateValues
from spo_core.learn.deepspeed.trainer import DeepSpeedTrainer
from spo_core.tree import RolloutTree, read_trees


class RankedCritic:
    """Implements CriticHandle. The ranks of ``trainer``, which was made with the same params, hold the critic: each of
    them the whole of it, whatever the ZeRO stage of the policy."""

    def __init__(self, trainer: DeepSpeedTrainer, params: CriticParams) -> None:
        self.trainer, self.params = trainer, params

    def values(self, trees: Sequence[RolloutTree]) -> list[StateValues]:
        path = self.trainer.new_file("values.npy")
        self.trainer.hand_over("critic_values", trees, values=str(path))
        flat = np.load(path, allow_pickle=False)
        path.unlink()
        lengths = [len(node.token_ids) for tree in trees for node in tree.nodes]
        parts = iter(np.split(flat, np.cumsum(lengths)[:-1]))
        return [tuple(next(parts) for _ in tree.nodes) for tree in trees]

    def update(self, trees: Sequence[RolloutTree], iteration: int) -> dict[str, float]:
        return self.trainer.hand_over("critic_update", trees, iteration=iteration)

    def save(self, folder: Path) -> None:
        self.trainer.ask("critic_save", folder=str(folder.resolve()))

    def load(self, folder: Path) -> None:
        self.trainer.ask("critic_load", folder=str(folder.resolve()))


def obey_critic(critic: Critic, command: dict[str, Any]) -> dict[str, float] | None:
    """Do in a rank what RankedCritic asks for, and return the answer. Raises ValueError for anything else."""
    if command["do"] == "critic_values":
        values = critic.values(read_trees(Path(command["trees"])))
        if critic.backend.rank == 0:
            np.save(command["values"], np.concatenate([own for tree in values for own in tree]))
        return None
    if command["do"] == "critic_update":
        return critic.update(read_trees(Path(command["trees"])), command["iteration"])
    if command["do"] == "critic_save":
        critic.save(Path(command["folder"]))
    elif command["do"] == "critic_load":
        critic.load(Path(command["folder"]))
    else:
        raise ValueError(f"unknown command {command['do']!r}")
    return None
