"""Makes, loads and saves policies in Hugging Face format: safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from spo_core.config import LoraParams, PolicyParams, ScratchPolicy
from spo_core.errors import ConfigError, DataError, SPOError
from spo_core.policy.adapter import FOLDER, MergedState, add_adapter, has_adapter, save_adapter, trained_parameters
from spo_core.policy.attention import NAME
from spo_core.policy.checkpoint_files import check_files, why_unreadable
from spo_core.policy.tokenizer import load_tokenizer, require_end
from spo_core.problems.base import ProblemSet

transformers_logging.disable_progress_bar()

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def make_tokenizer(kind: str, problem: ProblemSet) -> PreTrainedTokenizerFast:
    """A tokenizer of ``kind`` characters (a token for each item of the problem set's alphabet) or bytes (256 tokens).
    Raises ConfigError for characters where the problem set has no alphabet."""
    special = {PAD: 0, BOS: 1, EOS: 2}
    if kind == "characters":
        alphabet = problem.alphabet()
        if alphabet is None:
            raise ConfigError(f"policy.init.tokenizer characters: {problem.name} has no alphabet of its own; use bytes")
        vocabulary = special | {token: i + len(special) for i, token in enumerate(alphabet)}
        longest_first = sorted(alphabet, key=len, reverse=True)
        pattern = "|".join("".join(f"\\x{ord(c):02x}" for c in token) for token in longest_first)
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = special | {token: i + len(special) for i, token in enumerate(alphabet)}
        tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def make_policy(params: ScratchPolicy, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama, float32; the same weights for the same seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.heads,
        max_position_embeddings=params.max_positions,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def initial_policy(params: PolicyParams, problem: ProblemSet) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The policy before any training, as ``params/policy.yaml`` describes it."""
    if params.init.type == "pretrained":
        return load_policy(params.init.path, params.init.revision)
    tokenizer = make_tokenizer(params.init.tokenizer, problem)
    return make_policy(params.init, tokenizer, params.seed), tokenizer


def load_policy(path: str | Path, revision: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Policy, in float32 on the CPU, and tokenizer from a folder or a hub id. Raises DataError where there is none."""
    check_policy(path)
    try:
        tokenizer = load_tokenizer(path, revision)
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=NAME,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with their names
            )
    except (SPOError, MemoryError):
        raise
    except Exception as error:  # transformers, huggingface_hub and safetensors raise errors of many types
        raise DataError(f"{path}: cannot be loaded as a policy: {why_unreadable(error)}") from None
    model, found = loaded
    _check_weights(path, model, found)
    require_end(tokenizer, path)
    return model, tokenizer


def trained_policy(
    path: str | Path, lora: LoraParams | None, *, seed: int, dtype: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The policy in a folder, made ready for training: with adapters beside its weights where ``lora`` is given.

    Every process that trains or samples it calls this, so ``seed`` gives all of them the same adapters.
    """
    model, tokenizer = load_policy(path)
    if lora is not None:
        add_adapter(model, lora, seed=seed, dtype=dtype)
    return model, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' tables of tensors that are missing: a refusal names them."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _check_weights(path: str | Path, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Raise DataError where the file's tensors are not the model's, which would be random instead, or not finite."""
    for key, first, *shapes in sorted(tuple(item) for item in found["mismatched_keys"])[:1]:
        sizes = " and ".join(str(list(shape)) for shape in (first, *shapes))
        raise DataError(f"{path}: tensor {key} has another shape in the file than by config.json: {sizes}")
    for kind, says in (("missing_keys", "lacks"), ("unexpected_keys", "has, unknown to its config.json,")):
        if names := sorted(found[kind]):
            more = f" and {len(names) - 1} more tensors" if names[1:] else ""
            raise DataError(f"{path}: its file of weights {says} {names[0]}{more}; weights and config.json must agree")
    for name, parameter in model.named_parameters():
        if parameter.numel() and not all(torch.isfinite(end) for end in torch.aminmax(parameter.detach())):
            raise DataError(f"{path}: tensor {name} holds NaN or infinite numbers; take an earlier checkpoint")


def check_policy(path: str | Path) -> None:
    """Raise DataError for a folder that is missing or no whole checkpoint; OWNER/NAME that is no folder may be a hub
    id."""
    folder = Path(path)
    if folder.exists():
        check_files(folder)
    if not folder.exists() and (len(folder.parts) != 2 or folder.parent.exists()):
        raise DataError(f"{folder}: no such checkpoint")


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights, configuration, generation configuration and tokenizer, as any Hugging Face loader reads them.

    Adapters are merged into the weights, and stand by themselves in the folder ``adapter`` beside.
    """
    if has_adapter(model):
        model.save_pretrained(folder, state_dict={n: t.float().cpu() for n, t in MergedState(model).items()})
        model.config.dtype = torch.float32  # what was written, whatever the frozen weights are
        model.config.save_pretrained(folder)
        save_adapter(model, folder / FOLDER)
    else:
        model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def write_weights(path: Path, model: PreTrainedModel) -> None:
    """Write the parameters that training changes, in float32, for another process that has the same model."""
    save_file({name: p.detach().float().cpu().contiguous() for name, p in trained_parameters(model).items()}, path)


@torch.no_grad()
def read_weights(path: Path, model: PreTrainedModel) -> None:
    """Copy what ``write_weights`` wrote into the model's parameters, in their dtype and on their device."""
    tensors = load_file(path)
    for name, parameter in trained_parameters(model).items():
        parameter.copy_(tensors[name])


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Token ids that end a response: those of the generation configuration and the tokenizer."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None}))
