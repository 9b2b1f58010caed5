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
from spo_core.config.custom import CustomParams
from spo_core.config.data import DataParams, JsonlParams
from spo_core.config.engine import RESOURCES, TransformersEngineParams, VllmEngineParams
from spo_core.config.evaluate import EvaluateParams, NightlyParams
from spo_core.config.learn import (
    DeepSpeedBackend,
    KLPenalty,
    LearnParams,
    PPOClip,
    TorchBackend,
    with_fidelity,
)
from spo_core.config.load import NAMESPACES, digest, flatten, load_params
from spo_core.config.namespaces import (
    PolicyParams,
    PolicyShape,
    PretrainedPolicy,
    RolloutParams,
    ScratchPolicy,
    WandbParams,
    WarmupParams,
)
from spo_core.config.params import Params
from spo_core.config.verify import GraderName, RewardParams, VerifyParams

__all__ = [
    "CUT_TYPES",
    "NAMESPACES",
    "RESOURCES",
    "AdaptiveMonteCarlo",
    "AllTokens",
    "BestOfKProgress",
    "CreditParams",
    "CustomParams",
    "Cutpoints",
    "DaskRunner",
    "DataParams",
    "DeepSpeedBackend",
    "Delimiter",
    "Difference",
    "Entropy",
    "EqualParts",
    "EvaluateParams",
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
    "TorchBackend",
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
