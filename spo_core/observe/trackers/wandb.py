"""W&B: the numbers of ``metrics.jsonl`` under the same keys, in one W&B run across resumes."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from spo_core.config import Params, WandbParams
from spo_core.errors import first_line
from spo_core.observe.trackers.protocol import TrackedRun
from spo_core.system.files import read_json, write_json

log = logging.getLogger(__name__)
for _setting, _value in {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}.items():
    os.environ.setdefault(_setting, _value)  # messages on standard error; telemetry
START_LIMIT = 60.0  # seconds that W&B has to answer when a run starts
END_LIMIT = 60.0  # seconds that W&B has to upload what is left when a run ends


def resolve_mode(params: WandbParams, environment: Mapping[str, str] = os.environ) -> str:
    """``auto`` is online where the environment or ``.netrc`` holds a key; WANDB_MODE wins over params."""
    if chosen := environment.get("WANDB_MODE"):
        return chosen
    if params.mode != "auto":
        return params.mode
    return "online" if environment.get("WANDB_API_KEY") or _in_netrc(environment) else "offline"


def _in_netrc(environment: Mapping[str, str]) -> bool:
    host = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc(environment.get("NETRC") or Path.home() / ".netrc").authenticators(host) is not None
    except (OSError, RuntimeError, NetrcParseError):  # no file, no home directory, or a malformed file
        return False


class WandbTracker:
    """Logs to one W&B run. W&B's failures are logged here, with what a user can do about them.

    Only rows that W&B lacks are logged. Offline that is all of them: each folder holds the whole run, so that only the
    newest need be synced. Everything is plotted against ``iteration``, not W&B's own steps, which ``wandb sync`` shifts
    in a run that it resumes. Online an iteration that a kill undid stands there twice, as it was made twice.
    """

    def start(self, run: TrackedRun) -> int:
        self._run: Any = None
        self._params = run.params.run.wandb
        self._plotted: set[str] = set()
        self._tables: dict[str, Any] = {}
        mode = resolve_mode(self._params)
        if mode == "disabled":
            return 0
        for attempt in (mode, "offline") if mode == "online" else (mode,):
            try:
                self._run = self._begin(attempt, run)
                break
            except Exception as error:  # whatever W&B raises
                where = "the numbers are in metrics.jsonl" + (
                    ", and kept for wandb sync" if attempt == "online" else ""
                )
                log.warning("W&B is not available (%s); %s", first_line(error), where)
                _forget()
        return 0 if self._run is None else self._run.summary.get("iteration") or 0

    def _begin(self, mode: str, run: TrackedRun) -> Any:
        import wandb

        return wandb.init(
            project=self._params.project,
            id=_run_id(run.directory),
            name=run.name,
            resume="allow",
            dir=_folder(run.root),
            mode=mode,  # type: ignore[arg-type]
            config=run.params.model_dump(mode="json"),
            settings=_settings(),
        )

    @property
    def where(self) -> dict[str, str] | None:
        """``project``, ``id``, ``mode`` and, online, ``url`` of the run at W&B; None where there is none."""
        if self._run is None:
            return None
        found = {"project": self._params.project, "id": str(self._run.id)}
        return found | ({"mode": "offline"} if self._run.offline else {"mode": "online", "url": str(self._run.url)})

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row, with the tables that came before it."""
        tables, self._tables = self._tables, {}
        if self._run is None:
            return
        try:
            for name in {f"{key.split('/')[0]}/*" if "/" in key else key for key in row} - self._plotted:
                self._run.define_metric(name, step_metric=None if name == "iteration" else "iteration")
                self._plotted.add(name)
            self._run.log({**row, **tables})
        except Exception as error:
            log.warning("W&B stopped taking numbers (%s); they are in metrics.jsonl", first_line(error))
            self._run = None

    def table(self, name: str, iteration: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self._run is None:
            return
        import wandb

        self._tables[name] = wandb.Table(columns=list(columns), data=list(rows))

    def finish(self, failed: bool) -> None:
        """End W&B's run, waiting at most END_LIMIT seconds for W&B to take what was logged; W&B shows the run as
        finished or failed."""
        if self._run is not None:
            run = self._run
            try:
                run.finish(exit_code=int(failed))
            except Exception as error:
                what = f"wandb sync {Path(run.dir).parent} sends what it lacks"
                log.warning("W&B did not finish (%s); %s", first_line(error), what)
            self._run = None


def _settings(**more: Any) -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=START_LIMIT,
        finish_timeout=END_LIMIT,
        finish_timeout_raises=True,
        **more,
    )


def _forget() -> None:
    """End W&B's own process, in which a run that could not start is still in use."""
    with suppress(Exception):
        import wandb

        wandb.teardown()


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
            settings=_settings(x_primary=False, x_label="nightly", x_update_finish_state=False, x_disable_stats=True),
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
