"""Starts a flow's command again and again, and kills it at chosen moments: ``python -m tests.flows.crash`` for tests.

Importing torch, transformers and Prefect takes ten seconds, so a server imports them once and forks for every start.
A fork runs ``python -m flows.train`` as Python itself does: the module anew, as ``__main__``, with its own arguments,
folder, environment and outputs. It keeps nothing of earlier ones but imported modules.

What is under way is known from what Python asks of the file system alone: nothing in the product helps. (Audit hooks
would see it too, but Python 3.11 before .9 then breaks ``ast.parse`` in programs of several threads: gh-106905.)
"""

from __future__ import annotations

import builtins
import importlib
import io
import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

PHASES = ("rollout", "credit", "update", "checkpoint", "publish")
MARK = "SPO_TEST_START"  # in the environment of whatever a start leaves behind
_BEGINS = {  # event and the end of the path it is about: it begins a phase
    "rollout": ("mkdir", re.compile(r"work/train-[^/]*/iterations/\d{6}$")),
    "credit": ("rename", re.compile(r"/iterations/\d{6}/rollout\.json$")),
    "update": ("rename", re.compile(r"/iterations/\d{6}/credit\.json$")),
    "checkpoint": ("mkdir", re.compile(r"work/train-[^/]*/checkpoints/\.\d{6}\.tmp$")),
    "publish": ("mkdir", re.compile(r"/checkpoints/\.final\.tmp$")),
}


@dataclass(frozen=True, slots=True)
class Kill:
    """When: at an event of the phase, counted from 0, or so many seconds after its beginning; at its end at last."""

    phase: str
    occurrence: int = 1
    """Of the phase in this process, from 1."""
    event: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A line of the trace: an event of a phase, and when it was, in seconds."""

    phase: str
    occurrence: int
    event: int
    at: float


class Watcher:
    """Is told of every change to the file system before it is made: knows the phase by it, writes the trace, and kills
    this process when it is time."""

    def __init__(self, trace: Path, kill: Kill | None) -> None:
        self.kill, self.phase, self.event = kill, "", 0
        self.project = os.getcwd()
        self.counts = dict.fromkeys(PHASES, 0)
        self.trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def watch(self) -> None:
        """What pyarrow and safetensors write is not seen."""
        for module, name, place in (
            (os, "mkdir", 0),
            (os, "rename", 1),
            (os, "replace", 1),
            (os, "link", 1),
            (os, "unlink", 0),
            (shutil, "rmtree", 0),
            (shutil, "copyfile", 1),
        ):
            setattr(module, name, self._told(getattr(module, name), "rename" if name == "replace" else name, place))
        opened = builtins.open

        @wraps(opened)
        def watched(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+") and not isinstance(file, int):
                self._see("open", file)
            return opened(file, mode, *arguments, **options)

        builtins.open = io.open = watched  # type: ignore[assignment]

    def _told(self, function: Callable[..., Any], name: str, place: int) -> Callable[..., Any]:
        @wraps(function)
        def told(*arguments: Any, **options: Any) -> Any:
            if options.get("dir_fd") is None:  # inside shutil.rmtree, which is one event
                self._see(name, arguments[place])
            return function(*arguments, **options)

        return told

    def _see(self, name: str, place: str | bytes | os.PathLike[str]) -> None:
        path = os.path.abspath(os.fsdecode(place))
        if not path.startswith(self.project):
            return
        begun = next((p for p, (event, end) in _BEGINS.items() if name == event and end.search(path)), None)
        if begun == self.phase or (name == "mkdir" and os.path.exists(path)):  # a folder is asked for more than once
            begun = None
        if begun and self._due():
            self._die()  # the last moment of the phase
        if begun:
            self.phase, self.event = begun, 0
            self.counts[begun] += 1
            if self._due() and self.kill and self.kill.seconds is not None:
                self._die_later(self.kill.seconds)
        if self.phase:
            moment = Moment(self.phase, self.counts[self.phase], self.event, time.monotonic())
            os.write(self.trace, json.dumps(asdict(moment)).encode() + b"\n")
            if self._due() and self.kill and self.kill.event == self.event:
                self._die()
            self.event += 1

    def _due(self) -> bool:
        return self.kill is not None and (self.phase, self.counts.get(self.phase)) == (
            self.kill.phase,
            self.kill.occurrence,
        )

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _die_later(self, seconds: float) -> None:
        """By another process, which no lock of this one holds up."""
        command = ["/bin/sh", "-c", f"sleep {seconds:.4f}; kill -9 {os.getpid()}"]
        os.posix_spawn(command[0], command, {"PATH": os.environ["PATH"]})


def read_trace(path: Path) -> list[Moment]:
    return [Moment(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def _run(request: dict[str, Any]) -> None:
    """Become the command; never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
            file = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
            os.dup2(file, number)
            os.close(file)
        if request["file_size"] is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], resource.RLIM_INFINITY))
        kill = request["kill"]
        Watcher(Path(request["trace"]), Kill(**kill) if kill else None).watch()
        sys.argv = [request["module"], *request["argv"]]
        sys.modules.pop(request["module"], None)
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(BaseException):
            _finish()
        os._exit(status)


def _finish() -> None:
    """What the interpreter does at its end."""
    import atexit
    import threading

    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()


def serve(modules: list[str]) -> None:
    """Import, then answer requests, a line of JSON each on standard input: start one, or wait for one to end."""
    for name in modules:
        importlib.import_module(name)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            pid = os.fork()
            if pid == 0:
                _run(request)
            answer = {"pid": pid}
        else:
            _, status = os.waitpid(request["pid"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        print(json.dumps(answer), flush=True)


@dataclass(frozen=True, slots=True)
class Ended:
    """A start that is over; ``status`` is -9 for one that was killed."""

    status: int
    stdout: str
    stderr: str
    trace: list[Moment]


class Starts:
    """The tests' side of the server. ``folder`` holds outputs and traces."""

    def __init__(self, process: subprocess.Popen[str], environment: dict[str, str], folder: Path) -> None:
        self._process, self._environment, self._folder, self._number = process, environment, folder, 0
        self._running: dict[int, tuple[int, dict[str, str]]] = {}

    def seen(self, path: Path) -> Path:
        """A path as the server sees it, which may have file systems of its own."""
        return Path(f"/proc/{self._process.pid}/root") / path.relative_to("/")

    def start(
        self,
        project: Path,
        *arguments: str,
        module: str = "flows.train",
        kill: Kill | None = None,
        file_size: int | None = None,
        env: dict[str, str] | None = None,
    ) -> int:
        """Its process id. ``file_size``: bytes beyond which the kernel writes to no file."""
        self._number += 1
        names = {name: str(self._folder / f"{self._number}.{name}") for name in ("stdout", "stderr", "trace")}
        request = {
            "do": "start",
            "module": module,
            "argv": arguments,
            "cwd": str(project),
            "env": self._environment | (env or {}) | {MARK: f"{os.getpid()}.{self._number}"},
            "kill": kill and asdict(kill),
            "file_size": file_size,
        }
        pid = self._ask(request | names)["pid"]
        self._running[pid] = self._number, names
        return pid

    def wait(self, pid: int) -> Ended:
        """Until it has ended and all that it started is gone."""
        status = self._ask({"do": "wait", "pid": pid})["status"]
        number, names = self._running.pop(pid)
        wait_until_gone(f"{MARK}={os.getpid()}.{number}")
        out, err = (Path(names[name]).read_text(errors="replace") for name in ("stdout", "stderr"))
        return Ended(status, out, err, read_trace(Path(names["trace"])))

    def run(self, project: Path, *arguments: str, **options: Any) -> Ended:
        return self.wait(self.start(project, *arguments, **options))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def starts(project: Path, environment: dict[str, str], folder: Path, prefix: Sequence[str] = ()) -> Iterator[Starts]:
    """A server with the code of ``project``, whose copies its starts may run in; ``prefix`` stands before its command,
    and must become it by exec."""
    modules = ["flows.train", "torch.nn.attention", "transformers.models.llama.modeling_llama"]
    folder.mkdir(parents=True, exist_ok=True)
    command = [*prefix, sys.executable, "-m", "tests.flows.crash", *modules]
    with (
        (folder / "server.stderr").open("w") as errors,
        subprocess.Popen(
            command,
            cwd=project,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin and process.stdout
        try:
            assert process.stdout.readline(), (folder / "server.stderr").read_text()
            yield Starts(process, environment, folder)
        finally:
            process.kill()


def wait_until_gone(mark: str, seconds: float = 60.0) -> None:
    """Until no process has the mark in its environment; an AssertionError names those that stay."""
    end = time.monotonic() + seconds
    while left := survivors(mark):
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.05)


def survivors(mark: str) -> list[str]:
    """Command lines of processes that were started with the mark in their environment (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


if __name__ == "__main__":
    serve(sys.argv[1:])
