"""Compares another way of computing a policy with its plain forward pass; nothing here knows single architectures.

What computes in another way (the packed tree, the engine's slots) compares the log-probs of a few random tokens with
the plain ones when it gets a policy, on paths longer than any window that the run can reach, and refuses the policy
where they differ by more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from spo_core.errors import ConfigError, first_line

SHORT = 24  # tokens of a path that crosses no window
# least and greatest tolerance, as ``difference`` measures; between them it is four times the difference of two plain
# passes. In float32 rounding stays below 1e-5; wrong attention exceeds 1e-4 with random weights, 0.2 with sharp ones
TOLERANCE = (1e-4, 0.02)
HALF_TOLERANCE = (0.05, 0.5)  # in bfloat16 and float16
EAGER = 5000  # tokens; longer paths are compared with SDPA, which writes no matrix of attention weights


def path_length(model: PreTrainedModel, context_length: int) -> int:
    """Length in tokens of a path that exceeds every window below ``context_length``, but not that itself."""
    config = model.config.get_text_config()
    windows = [
        value
        for name, value in vars(config).items()
        if any(word in name for word in ("window", "chunk", "topk", "block_size")) and "layers" not in name
        if isinstance(value, int) and value < context_length
    ]
    return min(max(windows, default=0) + SHORT, context_length)


def random_ids(model: PreTrainedModel, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random token ids without the special ones, int32 [count]."""
    config = model.config.get_text_config()
    named = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
    special = {i for ids in named for i in (ids if isinstance(ids, list) else [ids])}
    allowed = np.array([i for i in range(config.vocab_size) if i not in special] or range(config.vocab_size))
    return rng.choice(allowed, count).astype(np.int32)


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, ids: np.ndarray, temperature: float = 1.0, *, own: bool = True) -> Tensor:
    """Log-prob of every token of ``ids`` but the first, by one forward pass of the model; float32 [n - 1].

    ``own``: with the attention of transformers, else with this project's for plain rows, which rounds differently.
    """
    training, attention = model.training, model.config._attn_implementation
    model.eval()
    if own:
        model.set_attn_implementation("eager" if len(ids) <= EAGER else "sdpa")
    try:
        tokens = torch.from_numpy(ids.astype(np.int64)).to(model.device)
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float() / temperature
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
    return torch.log_softmax(logits, -1).gather(-1, tokens[1:, None])[:, 0].cpu()


def difference(found: Tensor, expected: Tensor) -> float:
    """Root mean square of found - expected, divided by the standard deviation of ``expected``; inf if not finite."""
    share = float((found - expected).square().mean().sqrt() / (expected.std() + 1e-6))
    return share if np.isfinite(share) else float("inf")


def tolerance(model: PreTrainedModel, expected: Tensor, otherwise: Callable[[], Tensor]) -> float:
    """The largest ``difference`` that counts as rounding; ``otherwise`` computes ``expected`` with another rounding."""
    least, most = TOLERANCE if torch.finfo(model.dtype).bits >= 32 else HALF_TOLERANCE
    return min(max(4 * difference(otherwise(), expected), least), most)


def refuse_stretched_positions(model: PreTrainedModel, context_length: int) -> None:
    """Raise ConfigError where rotary frequencies depend on the length of the sequence: the same token would be computed
    one way in a short path and another way in a long one."""
    config = model.config.get_text_config()
    for rope in _dicts(vars(config)):
        if rope.get("rope_type") in ("dynamic", "longrope"):
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            original = original or config.max_position_embeddings
            if context_length > original:
                raise ConfigError(
                    f"the policy's rotary positions ({rope['rope_type']}) change with a text's length beyond "
                    f"{original} tokens; set rollout.context_length to at most {original}"
                )


def refuse_positions_of_its_own(model: PreTrainedModel, use: str) -> None:
    """Raise ConfigError where what enters the first layer depends on a token's place in its row although all places
    are given one position id: such a model numbers tokens itself, and tokens are not always packed in their order.

    Log-probs alone may hide it: a policy with random weights can forget where its tokens stood.
    """
    layers = layers_of(model)
    if not layers:
        return
    entered: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = args[0] if args else kwargs["hidden_states"]
        entered.append(tensor.detach().reshape(-1, tensor.shape[-1]))

    handle = layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    ids = torch.full((1, 2), int(random_ids(model, 1, np.random.default_rng(0))[0]), device=model.device)
    try:
        with torch.no_grad():
            _, failure = attempted(lambda: model(input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False))
    finally:
        handle.remove()
    if failure:
        raise refusal(model, use, f"{kinds_of(model)}: {failure}")
    if not torch.equal(entered[0][0], entered[0][1]):
        raise refusal(model, use, "it numbers the tokens of a row itself and ignores position_ids")


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _dicts(inner)


def layers_of(model: PreTrainedModel) -> Sequence[nn.Module]:
    """Find the model's decoder layers; empty where they cannot be told."""
    config = model.config.get_text_config()
    count = getattr(config, "decoder_layers", None) or config.num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return list(lists[0]) if lists else []


def kind_of(config: PreTrainedConfig, layers: Sequence[nn.Module], index: int) -> str:
    """Name a layer by its kind in the configuration and the class of its first child that is no norm or MLP."""
    kinds = getattr(config.get_text_config(), "layer_types", None)
    parts = [type(child).__name__ for child in layers[index].children()]
    parts = [name for name in parts if "Norm" not in name and "MLP" not in name]
    name = parts[0] if parts else type(layers[index]).__name__
    return f"{kinds[index]} ({name})" if kinds else name


@contextmanager
def recorded(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the layers' outputs in the context, one tensor (tokens, hidden size) per call, in a list."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple | list) else output
        outputs.append(tensor.detach().float().reshape(-1, tensor.shape[-1]).cpu())

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def kinds_of(model: PreTrainedModel) -> str:
    """Name all kinds of layers of a model."""
    layers = layers_of(model)
    kinds = sorted({kind_of(model.config, layers, i) for i in range(len(layers))})
    return "its layers of kind " + " and ".join(kinds) if kinds else type(model).__name__


def refusal(model: PreTrainedModel, use: str, why: str) -> ConfigError:
    """The error to raise for a policy; ``use`` completes "a policy of model_type X cannot ..."."""
    return ConfigError(
        f"a policy of model_type {model.config.model_type} cannot {use}: {why}; choose one whose layers are full, "
        "sliding or chunked attention"
    )


T = TypeVar("T")


def attempted(attempt: Callable[[], T]) -> tuple[T | None, str]:
    """Call ``attempt``; returns its result and "", or None and one line about the error that it raised. Running out of
    memory is raised: it says nothing about the model."""
    try:
        return attempt(), ""
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return None, first_line(error)
