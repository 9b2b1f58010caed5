"""An engine of two policies: the one that is trained, and a prover that never changes and samples value rollouts."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from spo_core.errors import ConfigError
from spo_core.policy.checkpoint import load_policy
from spo_core.policy.tokenizer import load_tokenizer
from spo_core.rollout.engine import Completion, Engine, Request
from spo_core.system.plugins import project

FIRST = "first"  # names the policy that training begins with


class ProvingEngine:
    """Implements ``rollout.engine.Engine``: requests with ``prover`` are the second engine's, others the first's."""

    proves = True

    def __init__(self, policy: Engine, prover: Engine) -> None:
        self.policy, self.prover = policy, prover
        self.gives_entropies = policy.gives_entropies
        prover.policy_changed(0)

    @property
    def version(self) -> int | None:
        return self.policy.version

    @version.setter
    def version(self, version: int | None) -> None:
        self.policy.version = version

    @property
    def restarts(self) -> int:
        return self.policy.restarts + self.prover.restarts

    @restarts.setter
    def restarts(self, restarts: int) -> None:
        self.policy.restarts = restarts - self.prover.restarts

    def submit(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request.prover:  # the other engine has computed its prefix, with another policy
                self.prover.submit([replace(request, parent=None)])
            else:
                self.policy.submit([request])

    def step(self) -> list[Completion]:
        return [done for engine in (self.policy, self.prover) if engine.busy for done in engine.step()]

    @property
    def busy(self) -> bool:
        return self.policy.busy or self.prover.busy

    def release(self, request_id: int) -> None:
        self.policy.release(request_id)

    def policy_changed(self, version: int) -> None:
        if self.prover.busy:
            raise RuntimeError("the policy changed while the prover's requests were being decoded")
        self.policy.policy_changed(version)
        if self.prover.version is None:  # it slept
            self.prover.policy_changed(0)

    def sleep(self) -> None:
        self.policy.sleep()
        self.prover.sleep()

    def close(self) -> None:
        with ExitStack() as closing:  # closes each, even where closing the other fails
            closing.callback(self.prover.close)
            closing.callback(self.policy.close)


def prover_folder(prover: str, policy: Path) -> Path:
    """Folder of the prover that ``credit.value.prover`` names; ``policy`` is that of the first policy. Raises
    ConfigError where there is none."""
    folder = policy if prover == FIRST else Path(project(), prover)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"credit.value.prover: no policy in {folder}; name a folder in Hugging Face format, or first")
    return folder


def fitting_prover(prover: str, policy: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder of the prover, as ``prover_folder``. Raises ConfigError where it has other tokens than ``model``."""
    folder = prover_folder(prover, policy)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    same = load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()
    if not same or config.vocab_size != model.config.get_text_config().vocab_size:
        raise ConfigError(f"credit.value.prover: {folder} has other tokens than the policy; take one of its tokenizer")
    return folder


def load_prover(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """Load the prover, frozen, on the device of ``model`` and with weights in its dtype; buffers stay float32."""
    found = load_policy(folder)[0].eval().requires_grad_(False)
    for parameter in found.parameters():
        parameter.data = parameter.data.to(model.dtype)
    return found.to(model.device)
