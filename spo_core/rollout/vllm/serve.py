"""The program of a server's process: vLLM's API server on a socket it was given, which ends with the flow.

``python -m spo_core.rollout.vllm.serve FLOW SOCKET --flag=value ...``: the flow's process id, then the descriptor of a
bound Unix socket; its folder is for sockets alone. Standard input is a pipe whose other end only the flow holds.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path


def main() -> None:
    flow, descriptor, *flags = sys.argv[1:]
    listener = socket.socket(fileno=int(descriptor))
    threading.Thread(target=end_with, args=(int(flow), Path(listener.getsockname())), daemon=True).start()
    serve(listener, flags)


def end_with(flow: int, listening: Path) -> None:
    """Kill this process and all it started, its whole group, as soon as the flow is gone, and remove the socket.

    The death signal of ``processes.die_with`` would end this process alone and leave vLLM's engine behind. The pipe
    tells at once, unless another child of the flow holds a copy of its end; then the new parent does.
    """
    while os.getppid() == flow and not select.select([sys.stdin], [], [], 1.0)[0]:
        pass
    with suppress(OSError):  # the flow may have removed them
        for path in listening.parent.iterdir():
            path.unlink()
        listening.parent.rmdir()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def serve(listener: socket.socket, flags: list[str]) -> None:
    """``main`` of vLLM's API server, but for the socket: it binds one itself, to a port that is open to all."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.utils.system_utils import set_ulimit

    cli_env_setup()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    set_ulimit()
    uvloop.run(run_server_worker(f"unix:{listener.getsockname()}", listener, args))


if __name__ == "__main__":  # vLLM starts its engine by spawning this module again
    main()
