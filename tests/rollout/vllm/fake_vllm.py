"""A server with vLLM's paths and no model: started as ``launch`` is, it does what the first token id asks for.

Every request is appended to ``calls.jsonl`` in the folder that the variable FAKE_VLLM names.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from spo_core.rollout.vllm.serve import end_with

REFUSED, FAILS_ONCE, FAILS, HANGS, DIES_ONCE, DIES, ANSWERS_BADLY, SLOW = range(100, 108)
FOLDER = Path(os.environ.get("FAKE_VLLM", "."))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        with (FOLDER / "calls.jsonl").open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), "path": self.path, "body": body}) + "\n")
        if self.path == "/inference/v1/generate":
            self.generate(body)
        else:
            self.answer(200, {})

    def generate(self, body: dict) -> None:
        kind, sampling = body["token_ids"][0], body["sampling_params"]
        sampling["seed"] = sampling["seed"] or 0
        first = not (FOLDER / f"seen-{sampling['seed']}").exists()
        (FOLDER / f"seen-{sampling['seed']}").touch()
        if kind == DIES or (kind == DIES_ONCE and first):
            print(f"RuntimeError: {kind} of {sampling['seed']} was too much", flush=True)
            os._exit(1)
        if kind == REFUSED:
            return self.answer(400, {"error": "such a request"})
        if kind == FAILS or (kind == FAILS_ONCE and first):
            return self.answer(500, {"error": "a bad day"})
        if kind in (HANGS, SLOW):
            time.sleep(60 if kind == HANGS else 0.5)
        tokens = [(sampling["seed"] + 7 * i) % 50 for i in range(sampling["max_tokens"])]
        shown = tokens if kind != ANSWERS_BADLY else tokens[1:]
        content = [{"token_id": token, "logprob": -0.5, "rank": 1} for token in shown]
        choice = {"token_ids": tokens, "finish_reason": "length", "logprobs": {"content": content}}
        usage = {"prompt_tokens": len(body["token_ids"]), "prompt_tokens_details": {"cached_tokens": 3}}
        return self.answer(200, {"choices": [choice], "usage": usage})

    def answer(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


def main() -> None:
    flow, descriptor, *flags = sys.argv[1:]
    listener = socket.socket(fileno=int(descriptor))
    threading.Thread(target=end_with, args=(int(flow), Path(listener.getsockname())), daemon=True).start()
    subprocess.Popen(["sleep", "600"])  # as vLLM's engine, a process that does not end with this one
    if "--fails" in flags:
        raise ValueError("an option that nobody knows")
    if "--hangs" in flags:
        time.sleep(600)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.socket.listen(128)
    server.serve_forever()


if __name__ == "__main__":
    main()
