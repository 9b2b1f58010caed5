"""Pydantic models of ``params/*.yaml``, one namespace a file. Importable without torch.

Base files hold the embedded default; ``params/presets/<name>.yaml`` is an overlay of several namespaces. A mapping
whose ``type`` an overlay changes is replaced whole, every other mapping is merged key by key. Unknown keys are refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spo_core.errors import ConfigError

NAMESPACES = ("run", "data", "policy", "rollout", "credit", "learn", "evaluate")
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
UNIONS = ("init", "partition", "value", "advantage", "mask")


class Namespace(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class WandbParams(Namespace):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto``: online where a key is found, offline otherwise."""
    project: str = "spo"
    """W&B project."""


class RunParams(Namespace):
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the working directory ``work/train-<name>``; by default a fingerprint of all that decides the weights."""
    seed: int = Field(default=0, ge=0)
    """Every random number of training and evaluation is derived from it."""
    iterations: int = Field(default=40, ge=1)
    """Iterations of rollout, advantage, train."""
    max_generated_tokens: int | None = Field(default=None, ge=1)
    """Stop after the iteration in which this many tokens were sampled in all; for comparisons at one budget."""
    validate_every: int = Field(default=10, ge=1)
    """Iterations between measurements of accuracy on the validation split, one sample a question."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Iterations between resumable checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Resumable checkpoints kept in the working directory."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of torch. Results are bit-identical only for the same number."""
    wandb: WandbParams = WandbParams()


class ArithmeticParams(Namespace):
    steps: tuple[int, int] = (6, 8)
    """Fewest and most operations in a question."""
    careless: Fraction = 0.12
    """Probability that the careless solver gets one step wrong (and carries on from it)."""

    @model_validator(mode="after")
    def _ordered(self) -> ArithmeticParams:
        if not 1 <= self.steps[0] <= self.steps[1] <= 20:
            raise ValueError("steps must be [fewest, most] with 1 <= fewest <= most <= 20")
        return self


class DataParams(Namespace):
    problem_set: str = "arithmetic"
    """A module of ``spo_core/problems``: arithmetic, gsm8k."""
    source: str | None = None
    """Folder with the problem set's own files; unused where the problem set is generated."""
    seed: int = Field(default=0, ge=0)
    """Seed of generated questions and of the train / validation split."""
    train: int | None = Field(default=None, ge=1)
    """Questions kept in the train split; null keeps all."""
    validation: int = Field(default=200, ge=1)
    """Questions held out of the source's train split for validation."""
    test: int | None = Field(default=None, ge=1)
    """Questions kept in the test split; null keeps all."""
    arithmetic: ArithmeticParams = ArithmeticParams()


class ScratchPolicy(Namespace):
    """A randomly initialised Llama with its own tokenizer."""

    type: Literal["scratch"]
    tokenizer: Literal["characters", "bytes"]
    """``characters``: those of the problem set; ``bytes``: byte-level, any text."""
    hidden_size: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    intermediate_size: int = Field(ge=8)
    max_positions: int = Field(ge=8)
    """Longest prompt plus completion the architecture is declared for, in tokens."""

    @model_validator(mode="after")
    def _divisible(self) -> ScratchPolicy:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of twice heads (rotary positions)")
        return self


class PretrainedPolicy(Namespace):
    """A policy in Hugging Face format: a local folder or a hub id."""

    type: Literal["pretrained"]
    path: str
    revision: str | None = None


class WarmupParams(Namespace):
    """Supervised warm-up on the problem set's demonstrations, from which reinforcement learning starts."""

    steps: int = Field(ge=0)
    """Optimizer steps; 0 saves the policy as it is."""
    batch_size: int = Field(default=64, ge=1)
    """Demonstrations in an optimizer step."""
    matrix_learning_rate: float = Field(default=0.02, gt=0)
    """Peak learning rate of Muon, which updates the weight matrices inside the layers."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak learning rate of AdamW, which updates embeddings, norms and head."""


class PolicyParams(Namespace):
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights and of the warm-up batches."""
    init: Annotated[ScratchPolicy | PretrainedPolicy, Field(discriminator="type")]
    warmup: WarmupParams


class RolloutParams(Namespace):
    engine: Literal["transformers"] = "transformers"
    questions: int = Field(ge=1)
    """Questions in an iteration, drawn without replacement until the split is used up."""
    branch_factors: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Children of a node, by the node's depth; one number is the number of whole responses a question."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits wherever the policy is sampled or its log-probs are computed in training."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of sampling. Log-probs are of the full distribution (as in the reference implementation)."""
    context_length: int = Field(ge=2)
    """Tokens of prompt and completion together."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Tokens of one completion; null: as the context allows."""
    truncated: Literal["zero", "grade"] = "zero"
    """A response cut off by a limit: reward 0 for every algorithm, or graded as it is (reference GRPO and tree)."""
    max_concurrency: int = Field(default=256, ge=1)
    """Requests decoded at once by the transformers engine."""


class FixedTokens(Namespace):
    type: Literal["fixed_tokens"]
    tokens: int = Field(ge=1)
    """Length M of every segment but those of the last depth."""


class Cutpoints(Namespace):
    type: Literal["cutpoints"]
    prob_threshold: Fraction = 0.9
    """A token sampled with a lower probability starts a candidate segment."""
    interval: int = Field(default=5, ge=1)
    """Every interval-th candidate is a cutpoint, beginning with the first: counts low-probability tokens."""


class Whole(Namespace):
    type: Literal["whole"]


class TreeMean(Namespace):
    type: Literal["tree_mean"]


class MonteCarlo(Namespace):
    type: Literal["monte_carlo"]
    rollouts: int = Field(default=9, ge=1)
    """Value rollouts a state."""


class NoValue(Namespace):
    type: Literal["none"]


class Difference(Namespace):
    type: Literal["difference"]


class LeaveOneOut(Namespace):
    type: Literal["leave_one_out"]


class GroupNormalized(Namespace):
    type: Literal["group_normalized"]


class AllTokens(Namespace):
    type: Literal["all"]


class LowProbability(Namespace):
    type: Literal["low_probability"]
    threshold: Fraction = 0.9
    """Only tokens sampled with a lower probability are trained."""


class CreditParams(Namespace):
    partition: Annotated[FixedTokens | Cutpoints | Whole, Field(discriminator="type")]
    value: Annotated[TreeMean | MonteCarlo | NoValue, Field(discriminator="type")]
    advantage: Annotated[Difference | LeaveOneOut | GroupNormalized, Field(discriminator="type")]
    mask: Annotated[AllTokens | LowProbability, Field(discriminator="type")]


class LearnParams(Namespace):
    learning_rate: float = Field(gt=0)
    """Of AdamW, after the linear warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay of the running mean and of the running square of gradients."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled, as AdamW's."""
    epochs: int = Field(default=1, ge=1)
    """Passes over an iteration's segments."""
    optimizer_steps: int = Field(default=4, ge=1)
    """Optimizer steps an epoch; an iteration's questions are shuffled and divided evenly among them."""
    clip_low: float = Field(default=0.2, gt=0)
    """See clip_high."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    kl_coefficient: float = Field(default=1e-4, ge=0)
    """Weight of the k3 estimate of the KL to the reference policy, per trained token; 0 drops the reference pass."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """A longer gradient is scaled down to it."""
    max_logprob_gap: float = Field(default=0.05, gt=0)
    """Largest mean difference, in nats a token, between the engine's log-probs and the trainer's before an update."""
    max_tokens_per_forward: int = Field(default=16384, ge=1)
    """Token budget of one forward pass; more trees are computed in several, with the same result."""


class EvaluateParams(Namespace):
    contexts: dict[str, Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """Name and length of each context: the most tokens a completion may have there."""
    samples: int = Field(default=4, ge=1)
    """Completions sampled for each question."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling; the training temperature unless there is a reason."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of sampling."""
    questions: int | None = Field(default=None, ge=1)
    """Questions of the test split that are asked, from its beginning; null: all."""
    batch_size: int = Field(default=256, ge=1)
    """Completions decoded at once."""


class Params(Namespace):
    """All params of a pipeline, resolved; also the schema of the flows' parameters."""

    run: RunParams
    data: DataParams
    policy: PolicyParams
    rollout: RolloutParams
    credit: CreditParams
    learn: LearnParams
    evaluate: EvaluateParams

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        partition, depth = self.credit.partition, len(self.rollout.branch_factors)
        if partition.type != "fixed_tokens" and depth != 1:
            raise ValueError(
                f"rollout.branch_factors has {depth} depths, but credit.partition.type {partition.type} takes one"
            )
        if (partition.type == "cutpoints") != (self.credit.value.type == "monte_carlo"):
            raise ValueError("credit.partition cutpoints and credit.value monte_carlo go together")
        if self.credit.value.type == "none" and self.credit.advantage.type == "difference":
            raise ValueError("credit.advantage difference needs values: credit.value tree_mean or monte_carlo")
        if self.credit.value.type == "none" and depth != 1:
            raise ValueError(f"credit.value none needs whole responses; rollout.branch_factors has {depth} depths")
        if self.policy.init.type == "scratch":
            for key, length in (
                ("rollout.context_length", self.rollout.context_length),
                ("evaluate.contexts", max(self.evaluate.contexts.values())),
            ):
                if length > self.policy.init.max_positions:
                    raise ValueError(
                        f"{key} {length} exceeds policy.init.max_positions {self.policy.init.max_positions}"
                    )
        if self.learn.optimizer_steps > self.rollout.questions:
            raise ValueError(
                f"learn.optimizer_steps {self.learn.optimizer_steps} exceeds rollout.questions {self.rollout.questions}"
            )
        return self


def load_params(root: Path, preset: str | None = None, overrides: tuple[str, ...] = ()) -> Params:
    """Read ``root/params``, lay a preset and ``key=value`` overrides over it, and validate.

    Raises ConfigError naming the file and the key.
    """
    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name in NAMESPACES:
        path = root / "params" / f"{name}.yaml"
        content = _read_yaml(path)
        if set(content) != {name}:
            raise ConfigError(f"{path}: must hold the one top-level key {name!r}, found {sorted(content)}")
        tree[name] = content[name]
        origin[name] = str(path)
    if preset:
        path = root / "params" / "presets" / f"{preset}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise ConfigError(f"no preset {preset!r} in {path.parent}; there are: {', '.join(known)}")
        overlay = _read_yaml(path)
        tree = _merge(tree, overlay)
        origin |= {name: f"{path} over {origin.get(name, '')}" for name in overlay}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {override!r}: write it as namespace.key=value")
        value = _parse(f"--set {override}", text)
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = _merge(tree, value)
        namespace = key.split(".")[0]
        origin[namespace] = f"--set {override} over {origin.get(namespace, '')}".removesuffix(" over ")
    return _validate(tree, origin)


def _validate(tree: dict[str, Any], origin: dict[str, str]) -> Params:
    try:
        return Params.model_validate_json(json.dumps(tree))  # as JSON, strictness lets a list be a tuple
    except ValidationError as error:
        first = error.errors()[0]
        loc = [str(part) for part in first["loc"]]
        for at in range(len(loc) - 1, 0, -1):
            if loc[at - 1] in UNIONS and at < len(loc) - 1:
                del loc[at]  # pydantic names the chosen member of a union there
        key = ".".join(loc)
        where = origin.get(loc[0], "params/") if loc else "params/"
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{where}: unknown key {key}; remove it or correct its name") from None
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        if len(given) > 80:
            given = ""
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {key}: {message}{given}" if key else f"{where}: {message}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; run from the project's folder")
    content = _parse(str(path), path.read_text())
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping")
    return content


def _parse(where: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    return _floats(value)


def _floats(value: Any) -> Any:
    """YAML 1.1 reads ``1e-4`` as text; pydantic would too late say so only for strict fields."""
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_floats(v) for v in value]
    if isinstance(value, str) and value[:1].isdigit() and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _merge(base: Any, overlay: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(overlay, dict):
        return overlay
    if "type" in overlay and overlay["type"] != base.get("type"):
        return overlay
    merged = dict(base)
    for key, value in overlay.items():
        merged[key] = _merge(base[key], value) if key in base else value
    return merged


def digest(value: Any) -> str:
    """Stable SHA-256 of JSON-like content, hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
