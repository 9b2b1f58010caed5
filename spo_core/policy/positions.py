"""How many positions a policy has, from its configuration alone."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from spo_core.errors import DataError
from spo_core.policy.checkpoint_files import check_files, why_unreadable


def positions_of(checkpoint: Path) -> int | None:
    """Positions of a policy, None where it has no limit. Raises DataError for a checkpoint that is not whole or of
    an architecture that transformers lacks: code that comes with a policy is not run."""
    check_files(checkpoint)
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{checkpoint}/config.json: {why_unreadable(error)}") from None
    return getattr(config, "max_position_embeddings", None)
