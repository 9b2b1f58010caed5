"""TensorBoard: the numbers of ``metrics.jsonl`` by iteration, below outputs/tensorboard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from spo_core.observe.trackers.protocol import TrackedRun


class TensorBoardTracker:
    """Writes, at each start, a file with the whole run, and has TensorBoard forget earlier ones."""

    extra = "tensorboard"  # the extra of pyproject.toml that installs it

    def start(self, run: TrackedRun) -> int:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.root / "outputs" / "tensorboard" / run.directory.name
        self._writer = SummaryWriter(folder, purge_step=0)
        return 0

    def log(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, row["iteration"])
        self._writer.flush()

    def table(self, name: str, iteration: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table as HTML, shown under Text."""
        lines = [f"<tr>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr>"]
        lines += [f"<tr>{''.join(f'<td>{_shown(value)}</td>' for value in row)}</tr>" for row in rows]
        self._writer.add_text(name, f"<table>{''.join(lines)}</table>", iteration)

    def finish(self, failed: bool) -> None:
        self._writer.close()


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else escape(str(value))
