"""Tries a GPU: is the update right on it, and how fast; does the embedded run come out the same; how fast is sampling.

Needs torch, transformers and this project's code alone, and less than eight minutes on one card. Each part prints its
table as it ends and adds it to the result file under the card's name. Exit status 1: a part found something wrong.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.gpu import embedded, equality, sampling, update
from benchmarks.gpu.setting import Result, Setting
from benchmarks.machine import RESULTS, describe_machine
from spo_core.policy.device import device_name, find_device, use_device
from spo_core.system.files import read_json, write_json

PARTS: dict[int, tuple[Callable[[Setting], Result], float]] = {  # and seconds after which it begins nothing more
    1: (equality.run, 60.0),
    2: (update.run, 150.0),
    3: (embedded.run, 180.0),
    4: (sampling.run, 40.0),
}
WIDTH = 120  # of tables, also where the output is a file


class Device(StrEnum):
    cuda = "cuda"
    cpu = "cpu"


def command(
    part: Annotated[list[int] | None, typer.Option(help="1 to 4, may be given several times; all without it.")] = None,
    device: Annotated[Device, typer.Option(help="cpu is for trying the command itself.")] = Device.cuda,
    small: Annotated[bool, typer.Option("--small", help="Seconds on a CPU; the numbers mean nothing.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Result file; by default benchmarks/results/gpu.json on a GPU, none on a CPU.")
    ] = None,
) -> None:
    """Measure, print a table for each part, write the results."""
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    chosen = sorted(set(part or PARTS))
    if unknown := set(chosen) - set(PARTS):
        raise typer.BadParameter(f"there is no part {min(unknown)}; there are 1 to {len(PARTS)}", param_hint="--part")
    if device is Device.cuda and not torch.cuda.is_available():
        console.print("torch sees no GPU here: nothing is measured. --device cpu --small tries the command itself.")
        return
    found = find_device(device)
    use_device(found)
    if out is None and found.type == "cuda":
        out = RESULTS / "gpu.json"
    wrong = []
    for number in chosen:
        work, seconds = PARTS[number]
        started = time.monotonic()
        result = work(Setting(found, small, started + (math.inf if small else seconds)))
        took = time.monotonic() - started
        console.print(result.table, f"part {number}: {took:.0f} s", sep="\n")
        if result.wrong:
            wrong.append(f"part {number}: {result.wrong}")
            console.print(wrong[-1], style="bold red")
        if out is not None:
            keep(out, found, number, result.content | {"seconds": took, "small": small, "wrong": result.wrong})
    raise typer.Exit(1 if wrong else 0)


def keep(out: Path, device: torch.device, number: int, content: dict) -> None:
    """Replace this card's result of one part in the file."""
    cards = read_json(out) if out.is_file() else {}
    machine = describe_machine()
    name = device_name(device) if device.type == "cuda" else machine["cpu"]
    card = cards.setdefault(name, {"parts": {}})
    card["machine"] = machine
    card["parts"] = dict(sorted((card["parts"] | {str(number): content}).items()))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, cards)


if __name__ == "__main__":
    typer.run(command)
