"""Environment variables of processes that run in lighteval's environment."""

from __future__ import annotations

import os
from pathlib import Path

import spo_core

PROJECT = Path(spo_core.__file__).resolve().parents[1]


def child_environment(folder: Path) -> dict[str, str]:
    """Environment in which a child finds this project, no packages of ours, no network, and caches in ``folder``."""
    foreign = ("PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "HF_", "HUGGING_FACE_", "TRANSFORMERS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "PYTHONPATH": str(PROJECT),
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONHASHSEED": "0",  # lighteval orders its tasks by a set
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",  # until torch is told otherwise: libraries start no threads as they are imported
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads are many times slower beside another process
        "MALLOC_MMAP_THRESHOLD_": str(2**30),  # the key/value cache is copied at every token: decoding is up to twice
        "MALLOC_TRIM_THRESHOLD_": str(2**32),  # as fast if glibc keeps the memory instead of mapping it anew
        "MALLOC_TOP_PAD_": str(2**26),
    }
