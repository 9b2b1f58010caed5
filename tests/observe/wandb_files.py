"""W&B as it is found outside: a server on localhost that answers as its own does or fails, and what its files hold."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.local_http import JSONHandler, http_server

BLOCK, HEADER = 32768, 7  # of a .wandb file, which is a LevelDB log


@dataclass
class Server:
    """``how`` it is now: ok, hangs, errors (500) or refuses. ``resumed``: what it knows of the run; ``rows``: got."""

    url: str = ""
    how: str = "ok"
    resumed: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def wandb_server(how: str = "ok", known: int = 0) -> Iterator[Server]:
    """One that has the first ``known`` iterations of the run."""
    state = Server(how=how)
    if known:
        tail = json.dumps([json.dumps({"_step": known - 1})])
        counts = {"historyLineCount": known, "eventsLineCount": 0, "logLineCount": 0}
        state.resumed = {"id": "x", "name": "x", "displayName": "run", "config": "{}", "sweepName": None, "tags": []}
        state.resumed |= counts | {"historyTail": tail, "eventsTail": "[]", "wandbConfig": '{"t":1}'}
        state.resumed |= {"summaryMetrics": json.dumps({"_step": known - 1, "iteration": known})}

    class Handler(JSONHandler):
        def answer(self) -> None:
            body = self.read()
            if state.how == "hangs":
                time.sleep(60)
            if state.how != "ok":
                return self.say(500, {})
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            if self.path == "/graphql":
                return self.say(200, {"data": self.graphql(json.loads(body))})
            if "file_stream" in self.path:
                files = json.loads(body).get("files") or {}
                state.rows += [json.loads(line) for line in files.get("wandb-history.jsonl", {}).get("content", [])]
            self.say(200, {})

        def graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
            query, given = asked["query"], asked.get("variables") or {}
            if "RunResumeStatus" in query:
                return {"model": state.resumed and {"id": "p", "name": "spo", "bucket": state.resumed}}
            if "UpsertBucket" in query:
                project = {"id": "p", "name": "spo", "entity": {"id": "e", "name": "me"}}
                found = {"id": "x", "name": given.get("name"), "displayName": "run", "description": "", "config": "{}"}
                bucket = found | {"sweepName": None, "project": project, "historyLineCount": known}
                return {"upsertBucket": {"bucket": bucket, "inserted": state.resumed is None}}
            if "CreateRunFiles" in query:
                files = [{"name": name, "uploadUrl": f"{state.url}/put/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
            viewer = {"id": "u", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}
            return {"serverInfo": {"cliVersionInfo": None, "features": []}, "viewer": viewer}

        do_GET = do_POST = do_PUT = answer

    with http_server(Handler, gone=how == "refuses") as state.url:
        yield state


def logged(file: Path) -> list[dict[str, Any]]:
    """The rows of history in a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for content in _records(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def _records(content: bytes) -> Iterator[bytes]:
    """Those of a LevelDB log behind the seven bytes of W&B's own; a record may lie in several fragments."""
    at, record = HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last fragment
            yield record
            record = b""
