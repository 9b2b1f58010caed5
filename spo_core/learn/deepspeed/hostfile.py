"""DeepSpeed's hostfile: a line ``HOST slots=N`` for each machine; ``#`` begins a comment."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path

from spo_core.errors import ConfigError

_LINE = re.compile(r"^([\w.:-]+)\s+slots=(\d+)$")


def read_hostfile(path: Path, ranks: int) -> dict[str, int]:
    """Ranks of each machine, in the file's order: every slot until there are ``ranks``. Raises ConfigError where the
    file is missing, malformed or has fewer slots."""
    if not path.is_file():
        raise ConfigError(f"learn.backend.hostfile {path}: no such file")
    slots: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _LINE.match(text)
        if found is None or found[1] in slots:
            why = "this machine is named twice" if found else "not of the form HOST slots=N"
            raise ConfigError(f"learn.backend.hostfile {path}, line {number}: {why}: {text}")
        slots[found[1]] = int(found[2])
    if sum(slots.values()) < ranks:
        raise ConfigError(
            f"learn.backend.ranks {ranks} exceeds the {sum(slots.values())} slots of {path}; add machines, or lower it"
        )
    chosen: dict[str, int] = {}
    for host, count in slots.items():
        taken = min(count, ranks - sum(chosen.values()))
        if taken:
            chosen[host] = taken
    return chosen


def addresses(hosts: list[str]) -> tuple[str, str]:
    """This machine's address as the others see it, and that of the first host, where rank 0 runs. Raises ConfigError
    for a host whose name this machine cannot resolve."""
    ours = {host: _towards(host) for host in hosts}
    away = [address for address in ours.values() if not _loopback(address)]
    here = (away or list(ours.values()))[0]  # a machine may resolve its own name to the loopback device
    first = _resolve(hosts[0])
    return here, here if _loopback(first) else first


def free_port(address: str) -> int:
    """A TCP port that is free just now at this machine's ``address``."""
    with socket.socket(_family(address)) as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def _towards(host: str) -> str:
    """This machine's address on the route to ``host``; nothing is sent. Raises ConfigError without a route."""
    address = _resolve(host)
    with socket.socket(_family(address), socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((address, 9))
        return probe.getsockname()[0]
    raise ConfigError(f"learn.backend.hostfile: no route from this machine to {host} ({address})")


def _resolve(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        raise ConfigError(
            f"learn.backend.hostfile: this machine cannot resolve {host}; name machines as DNS or /etc/hosts does"
        ) from None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
