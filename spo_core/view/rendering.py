"""Pages from templates, tables as CSV, and JSON for the page's script."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from spo_core.observe.formatting import FILTERS, NOT_MEASURED, visible
from spo_core.runs.directory import step_seconds

HERE = Path(__file__).parent
SHARED = HERE.parent / "observe" / "templates"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for a formula


@cache
def environment() -> Environment:
    """Templates of this room, and those of the report's that they share: all text is escaped, a missing value is an
    error."""
    found = Environment(
        loader=FileSystemLoader([HERE / "templates", SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= FILTERS | {f.__name__: f for f in (ago, size, address, percent)} | {"seconds": step_seconds}
    found.globals |= {"query": query}
    return found


def page(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """An HTML page; lone surrogates of others' text are written as their numbers."""
    text = environment().get_template(template).render(**context)
    return HTMLResponse(text.encode("utf-8", "backslashreplace"), status_code=status, headers=_NOT_KEPT)


def table(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Response:
    """A CSV file to save. Text is ``visible``, and what a spreadsheet would take for a formula begins with a quote."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in name)
    headers = _NOT_KEPT | {"Content-Disposition": f'attachment; filename="{safe}.csv"'}
    return Response(text.getvalue().encode("utf-8", "backslashreplace"), media_type="text/csv", headers=headers)


def data(content: Any) -> Response:
    """JSON, with null for what is not finite."""
    text = json.dumps(_finite(content), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json", headers=_NOT_KEPT)


_NOT_KEPT = {"Cache-Control": "no-store"}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else ""
    if isinstance(value, bool | int) or value is None:
        return value
    text = visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return f"'{text}" if text.startswith(FORMULA) else text


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content


def ago(seconds: float) -> str:
    """How long a moment, in seconds since 1970, is past."""
    if not seconds:
        return "never"
    passed = max(0.0, datetime.now(UTC).timestamp() - seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= length:
            return f"{passed / length:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def size(count: float | None) -> str:
    """A count of tokens with three digits: 812, 26.1k, 1.03M."""
    if count is None:
        return NOT_MEASURED
    for unit, length in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= length:
            return f"{count / length:.3g}{unit}"
    return f"{count:.0f}"


def percent(share: float | None) -> str:
    return NOT_MEASURED if share is None or not math.isfinite(share) else f"{100 * share:.0f} %"


def address(key: str) -> str:
    """A run's key as a part of an address: all but its one slash is quoted."""
    place, _, name = key.partition("/")
    return f"{quote(place, safe='')}/{quote(name, safe='')}"


def query(**values: Any) -> str:
    """The part of an address behind its question mark; empty values are left out."""
    given = {key: value for key, value in values.items() if value not in (None, "", False, [])}
    return f"?{urlencode(given, doseq=True)}" if given else ""
