"""Low-rank adapters of a policy (LoRA, arXiv 2106.09685), by peft: W x + (alpha / rank) B A x beside frozen W.

The adapters are injected into the policy's own module, so whatever trains, samples or packs it sees a model of the same
class. Only B and A have gradients. The policy without them is the one that training began with, which is the reference
policy of a KL penalty; ``MergedState`` gives the weights W + (alpha / rank) B A under the names of a checkpoint.
"""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.pytorch_utils import Conv1D

from spo_core.config import LoraParams
from spo_core.errors import ConfigError, DataError, first_line

NAME = "default"  # peft's name of the one adapter
FOLDER = "adapter"  # within a checkpoint's folder
WEIGHTS = "adapter_model.safetensors"  # these two as peft reads them
PREFIX = "base_model.model."


def add_adapter(model: PreTrainedModel, params: LoraParams, *, seed: int, dtype: str) -> None:
    """Freeze the weights and put an adapter beside each linear layer that ``params.targets`` names; B is 0.

    With ``dtype`` bfloat16 the frozen weights are rounded to it; adapters stay float32. Raises ConfigError without
    peft, and for a target that names no linear layer or the output layer.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("policy.lora needs the extra: pip install -e '.[lora]'")
    from peft import LoraConfig, inject_adapter_in_model

    chosen = _targets(model, params)
    config = LoraConfig(
        r=params.rank, lora_alpha=params.alpha, target_modules=_pattern(model, chosen), lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about transposed layers, which are taken as they are
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model, NAME)
        except ValueError as error:  # a kind of model that peft does not take
            raise ConfigError(f"policy.lora: {first_line(error)}") from None
    found = {p.rpartition(".lora_A.")[0] for p, _ in model.named_modules() if p.endswith(f".lora_A.{NAME}")}
    if found != chosen:
        names = sorted({path.removesuffix(".base_layer").rpartition(".")[2] for path in found ^ chosen})
        raise ConfigError(
            f"policy.lora.targets: peft takes these for the fused experts of a {model.config.model_type}: "
            f"{', '.join(names)}; name others"
        )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif dtype == "bfloat16":
            parameter.data = parameter.data.bfloat16()
        assert parameter.requires_grad == (".lora_" in name)


def _targets(model: PreTrainedModel, params: LoraParams) -> set[str]:
    """Paths of the linear layers that get an adapter. No router of experts: each is a class of its own."""
    output = model.get_output_embeddings()
    linear = {p for p, m in model.named_modules() if type(m) in (nn.Linear, Conv1D) and m is not output}
    if isinstance(params.targets, str):
        return linear
    chosen = set()
    for name in params.targets:
        found = {path for path in linear if f".{path}".endswith(f".{name}")}
        if not found:
            there = sorted({path.rpartition(".")[2] for path in linear})
            raise ConfigError(
                f"policy.lora.targets: {name} is no linear layer inside this policy; there are: {', '.join(there)}"
            )
        chosen |= found
    return chosen


def _pattern(model: PreTrainedModel, chosen: set[str]) -> str:
    """A regular expression that these paths match and no other module's, short where layers are alike.

    From names peft would take routers and fused experts of the same names too.
    """
    patterns, modules = set(), [path for path, _ in model.named_modules()]
    for path in chosen:
        of_layers = re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(path))
        right = chosen.issuperset(other for other in modules if re.fullmatch(of_layers, other))
        patterns.add(of_layers if right else re.escape(path))
    return "|".join(sorted(patterns))


def has_adapter(model: nn.Module) -> bool:
    """Whether a policy is trained through adapters."""
    return hasattr(model, "peft_config")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name: those of adapters, or without any all that take a gradient."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Compute without adapters in this context.

    peft's own switch takes ``requires_grad`` away and gives it back, which hooks of optimizers need not survive.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


class MergedState(Mapping[str, Tensor]):
    """The weights of a policy with its adapters added, under the names that it has without any; of tied ones only one,
    as ``save_pretrained`` chooses. Each float32 sum is computed when it is asked for, and the model stays as it is.
    Without adapters it is the model's own state."""

    def __init__(self, model: PreTrainedModel) -> None:
        state, self._layers = model.state_dict(), {}
        if has_adapter(model):
            state = {n.replace(".base_layer.", "."): t for n, t in state.items() if ".lora_" not in n}
            from peft.tuners.lora import LoraLayer

            found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
            self._layers = {f"{name}.weight": module for name, module in found.items()}
        ignored = set(model._keys_to_ignore_on_save or ())
        state = {name: tensor for name, tensor in state.items() if name not in ignored}
        self._tensors = remove_tied_weights_from_state_dict(state, model)

    @property
    def plan(self) -> dict[str, Tensor]:
        """Tensors without content, of the same names and shapes."""
        return {name: torch.empty_like(tensor, device="meta") for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if name not in self._layers:
            return tensor
        layer: Any = self._layers[name]
        update = layer.lora_B[NAME].weight.float() @ layer.lora_A[NAME].weight.float() * layer.scaling[NAME]
        return tensor.float() + (update.T if layer.fan_in_fan_out else update)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapters, in float32, as ``peft.PeftModel.from_pretrained`` reads them; the same bytes every time."""
    peft_config: Any = model.peft_config
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in peft_config[NAME].to_dict().items()}
    folder.mkdir(parents=True)
    text = json.dumps(config | {"inference_mode": True}, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    tensors = {_public(name): p.detach().float().cpu().contiguous() for name, p in trained_parameters(model).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@torch.no_grad()
def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Read what ``save_adapter`` wrote into the model's adapters. Raises DataError where they do not fit."""
    path, parameters = folder / WEIGHTS, trained_parameters(model)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as an adapter: {first_line(error)}") from None
    shapes = {_public(name): p.shape for name, p in parameters.items()}
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        raise DataError(f"{path}: an adapter of another policy, or of other policy.lora")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[_public(name)])


def _public(name: str) -> str:
    return PREFIX + name.replace(f".{NAME}.", ".")
