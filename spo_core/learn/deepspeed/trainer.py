"""The trainer of a run whose ranks are other processes, as the flow's process holds it."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from spo_core.config import Critic as CriticParams
from spo_core.config import LearnParams, LoraParams
from spo_core.credit.pairs import CreditedTree, write_pairs
from spo_core.errors import ConfigError
from spo_core.learn.deepspeed.ranks import Ranks
from spo_core.policy.checkpoint import read_weights, write_weights
from spo_core.system.files import room_at
from spo_core.system.plugins import project
from spo_core.system.progress import Progress
from spo_core.tree import RolloutTree, write_trees

PREFIX = "spo-"  # of the folder in which trainer and ranks exchange files


class DeepSpeedTrainer:
    """A TrainerHandle. ``model`` gets the new weights after every iteration, so that an engine can sample with them.

    ``policy`` and ``reference`` are folders; ``model`` must hold the policy's weights, and adapters where ``lora`` is
    given. ``critic``: params of a critic that the ranks hold beside the policy (``critic.RankedCritic``), and whether
    all rewards lie in 0..1. ``log`` gets the ranks' output.
    Files for the ranks lie beside it, in the run's directory, which this process must have locked.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        params: LearnParams,
        *,
        policy: Path,
        reference: Path | None,
        lora: LoraParams | None = None,
        critic: tuple[CriticParams, bool] | None = None,
        context_length: int,
        temperature: float,
        seed: int,
        log: Path,
    ) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise ConfigError("learn.backend deepspeed needs the extra: pip install -e '.[deepspeed]'")
        assert params.backend.type == "deepspeed"
        self.model = model
        self._files = 0
        beside = log.parent.resolve()
        for left in beside.glob(f"{PREFIX}*"):  # by a flow that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._temporary = tempfile.TemporaryDirectory(prefix=PREFIX, dir=beside)
        self._folder = Path(self._temporary.name)
        settings = {
            "learn": params.model_dump_json(),
            "project": str(project()),
            "policy": str(policy.resolve()),
            "reference": None if reference is None else str(reference.resolve()),
            "lora": None if lora is None else lora.model_dump_json(),
            "critic": None if critic is None else [critic[0].model_dump_json(), critic[1]],
            "context_length": context_length,
            "temperature": temperature,
            "seed": seed,
        }
        try:
            self._ranks = Ranks(settings, params.backend, folder=self._folder, log=log)
            self._state = self._ranks.ask()
        except BaseException:
            self._temporary.cleanup()
            raise

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self._state["step"]

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next optimizer step."""
        return self._state["learning_rate"]

    def restart_learning_rate(self) -> None:
        self.ask("restart_learning_rate")

    def train_iteration(
        self, pairs: Sequence[CreditedTree], *, iteration: int, progress: Progress | None = None
    ) -> dict[str, float]:
        """Do what ``Trainer.train_iteration`` does, in the ranks."""
        weights = self.new_file("weights.safetensors")
        more = {"iteration": iteration, "folder": str(self._folder), "weights": str(weights)}
        with room_at(self._folder):
            write_pairs(self._folder, pairs)
            metrics = self.ask("train", progress, **more)
        read_weights(weights, self.model)
        weights.unlink()
        return metrics

    def save(self, folder: Path) -> None:
        """Write all that the next iteration depends on but the weights, in Trainer's files."""
        self.ask("save", folder=str(folder.resolve()))

    def load(self, folder: Path) -> None:
        """Read what any TrainerHandle saved; the ranks take over the weights of ``model``."""
        weights = self.new_file("weights.safetensors")
        with room_at(self._folder):
            write_weights(weights, self.model)
        self.ask("load", folder=str(folder.resolve()), weights=str(weights))
        weights.unlink()

    def close(self) -> None:
        """End the ranks."""
        self._ranks.close()
        self._temporary.cleanup()

    def new_file(self, name: str) -> Path:
        """Path between flow and ranks, never used before: a network file system may remember that an old name was
        gone."""
        self._files += 1
        return self._folder / f"{self._files}-{name}"

    def hand_over(self, name: str, trees: Sequence[RolloutTree], **more: Any) -> Any:
        """Give the ranks trees and a command about them; returns rank 0's answer."""
        with room_at(self._folder):
            write_trees(self._folder / "trees.parquet", trees)
            return self.ask(name, trees=str(self._folder / "trees.parquet"), **more)

    def ask(self, name: str, progress: Progress | None = None, **more: Any) -> Any:
        """Give the ranks a command; returns rank 0's answer."""
        self._state = self._ranks.ask({"do": name} | more, progress)
        return self._state["answer"]
