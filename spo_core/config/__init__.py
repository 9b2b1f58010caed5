"""Params: the pydantic models of params/*.yaml and how they are read. Not here: anything that needs torch."""

from spo_core.config.cluster import DaskRunner, LocalRunner, RayRunner, TaskRunnerParams
from spo_core.config.credit import (
    CUT_TYPES,
    AdaptiveMonteCarlo,
    AllTokens,
    BestOfKProgress,
    CreditParams,
    Cutpoints,
    Delimiter,
    Difference,
    Entropy,
    EqualParts,
    GroupNormalized,
    LeaveOneOut,
    LowProbability,
    MonteCarlo,
    NoValue,
    TreeMean,
    Whole,
)
from spo_core.config.custom import OURS, CustomParams
from spo_core.config.data import DataParams, JsonlParams
from spo_core.config.engine import RESOURCES, TransformersEngineParams, VllmEngineParams
from spo_core.config.evaluate import EvaluateParams, NightlyParams
from spo_core.config.learn import (
    CHUNK_LOGITS,
    DeepSpeedBackendParams,
    KLPenalty,
    LearnParams,
    PPOClip,
    TorchBackendParams,
    with_fidelity,
)
from spo_core.config.load import NAMESPACES, digest, flatten, load_params
from spo_core.config.params import Params
from spo_core.config.policy import PolicyParams, PolicyShape, PretrainedPolicy, ScratchPolicy, WarmupParams
from spo_core.config.rollout import RolloutParams
from spo_core.config.run import WandbParams
from spo_core.config.verify import (
    FormatReward,
    GraderName,
    OutcomeReward,
    OverlongReward,
    RewardParams,
    VerifyParams,
)

__all__ = [
    "CHUNK_LOGITS",
    "CUT_TYPES",
    "NAMESPACES",
    "OURS",
    "RESOURCES",
    "AdaptiveMonteCarlo",
    "AllTokens",
    "BestOfKProgress",
    "CreditParams",
    "CustomParams",
    "Cutpoints",
    "DaskRunner",
    "DataParams",
    "DeepSpeedBackendParams",
    "Delimiter",
    "Difference",
    "Entropy",
    "EqualParts",
    "EvaluateParams",
    "FormatReward",
    "GraderName",
    "GroupNormalized",
    "JsonlParams",
    "KLPenalty",
    "LearnParams",
    "LeaveOneOut",
    "LocalRunner",
    "LowProbability",
    "MonteCarlo",
    "NightlyParams",
    "NoValue",
    "OutcomeReward",
    "OverlongReward",
    "PPOClip",
    "Params",
    "PolicyParams",
    "PolicyShape",
    "PretrainedPolicy",
    "RayRunner",
    "RewardParams",
    "RolloutParams",
    "ScratchPolicy",
    "TaskRunnerParams",
    "TorchBackendParams",
    "TransformersEngineParams",
    "TreeMean",
    "VerifyParams",
    "VllmEngineParams",
    "WandbParams",
    "WarmupParams",
    "Whole",
    "digest",
    "flatten",
    "load_params",
    "with_fidelity",
]
