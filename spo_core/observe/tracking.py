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

            self._run = wandb.init(
                project=params.run.wandb.project,
                id=_run_id(run_directory),
                name=name,
                resume="allow",
                dir=_folder(root),
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


def log_evaluation(params: Params, run_directory: Path, root: Path, row: Mapping[str, float]) -> None:
    """Add ``nightly/...`` numbers to a training run's W&B run, plotted against ``nightly/iteration``; never raises.

    The training may be logging at the same time. Online this is therefore W&B's shared mode, which appends to a run,
    whose end and files it leaves to the run's own process. Offline it is a folder of its own with the run's id.
    """
    mode = resolve_mode(params.run.wandb)
    if mode == "disabled":
        return
    try:
        import wandb

        run: Any = wandb.init(
            project=params.run.wandb.project,
            id=_run_id(run_directory),
            resume=None if mode == "online" else "allow",
            dir=_folder(root),
            mode="shared" if mode == "online" else mode,  # type: ignore[arg-type]
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=90,
                x_primary=False,
                x_label="nightly",
                x_update_finish_state=False,
                x_disable_stats=True,
            ),
        )
        run.define_metric("nightly/iteration", hidden=True)
        run.define_metric("nightly/*", step_metric="nightly/iteration")
        run.log(dict(row))
        run.finish()
    except Exception as error:  # whatever W&B raises
        log.warning("W&B did not take the evaluation (%s); the numbers are in reports/nightly", error)


def _run_id(run_directory: Path) -> str:
    """W&B's id of a run, chosen when it is first asked for."""
    known = run_directory / "wandb.json"
    if not known.is_file():
        write_json(known, {"id": secrets.token_hex(4)})
    return str(read_json(known)["id"])


def _folder(root: Path) -> Path:
    folder = root / "outputs" / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
