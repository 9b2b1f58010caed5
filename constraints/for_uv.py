"""Writes the versions of main.txt into pyproject.toml, where uv looks for constraints; pip reads main.txt itself.

uv's own lock file is not committed, as it names the package index of whoever wrote it. After a change of main.txt:

    python constraints/for_uv.py
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "constraint-dependencies = [\n", "]\n"


def pins(text: str) -> list[str]:
    """The requirements of a constraints file, without its comments."""
    return [pin for line in text.splitlines() if (pin := line.partition("#")[0].strip())]


def written(pyproject: str, constraints: str) -> str:
    """The text of pyproject.toml with the pins of a constraints file in place of those that it has."""
    listed = ", ".join(f'"{pin}"' for pin in pins(constraints)) + ","
    block = textwrap.fill(
        listed,
        width=120,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    place = re.compile(re.escape(BEGIN) + r".*?^" + re.escape(END), re.DOTALL | re.MULTILINE)
    found, count = place.subn(lambda _: f"{BEGIN}{block}\n{END}", pyproject)
    if count != 1:
        raise SystemExit(f"pyproject.toml: {count} lists of constraint-dependencies instead of one")
    return found


if __name__ == "__main__":
    target = ROOT / "pyproject.toml"
    target.write_text(written(target.read_text(), (ROOT / "constraints" / "main.txt").read_text()))
