"""W&B: the numbers of ``metrics.jsonl`` under the same keys, in one W&B run across resumes."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spo_core.config import Params, WandbParams
from spo_core.files import read_json, write_json

log = logging.getLogger(__name__)


def resolve_mode(params: WandbParams, environment: Mapping[str, str] = os.environ) -> str:
    """``auto`` is online where the environment or ``.netrc`` holds a key; WANDB_MODE wins over params."""
    if chosen := environment.get("WANDB_MODE"):
        return chosen
    if params.mode != "auto":
        return params.mode
    netrc = Path(environment.get("NETRC") or Path.home() / ".netrc")
    known = "WANDB_API_KEY" in environment or (netrc.is_file() and "wandb" in netrc.read_text(errors="replace"))
    return "online" if known else "offline"


class Tracker:
    """Logs rows to one W&B run. A failure of W&B is logged once and never stops a run; metrics.jsonl has it all."""

    def __init__(self, params: Params, run_directory: Path, root: Path, name: str) -> None:
        self._run: Any = None
        mode = resolve_mode(params.run.wandb)
        if mode == "disabled":
            return
        try:
            import wandb

            known = run_directory / "wandb.json"
            run_id = read_json(known)["id"] if known.is_file() else secrets.token_hex(4)
            write_json(known, {"id": run_id})
            folder = root / "outputs" / "wandb"
            folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=params.run.wandb.project,
                id=run_id,
                name=name,
                resume="allow",
                dir=folder,
                mode=mode,  # type: ignore[arg-type]
                config=params.model_dump(mode="json"),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except Exception as error:  # whatever W&B raises: tracking must never stop training
            log.warning("W&B is not available (%s); the numbers are in metrics.jsonl", error)

    def log(self, row: Mapping[str, Any], step: int) -> None:
        if self._run is None:
            return
        try:
            self._run.log(dict(row), step=step)
        except Exception as error:
            log.warning("W&B stopped taking numbers (%s); they are in metrics.jsonl", error)
            self._run = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                log.warning("W&B did not finish (%s)", error)
            self._run = None
