"""As much of W&B's server as its client needs for runs, configuration, summary and history."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Remote:
    """A run as the server has it."""

    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False


class WandbStub(http.server.ThreadingHTTPServer):
    """Serves on a free port of this machine; with `nonsense` every answer is an empty object."""

    daemon_threads = True

    def __init__(self, nonsense: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.nonsense = nonsense
        self.runs: defaultdict[str, Remote] = defaultdict(Remote)
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may leave in the middle of a request."""

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbStub

    def log_message(self, *about: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            asked = json.loads(body)
            variables = asked.get("variables") or {}
            self._answer({"data": {} if self.server.nonsense else self._data(asked, variables)})
        elif stream := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self._stream(self.server.runs[stream[1]], json.loads(body))
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({}, status=404)

    def _data(self, asked: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        name = asked.get("operationName")
        if name == "UpsertBucket" or "upsertBucket" in asked["query"]:
            return {"upsertBucket": self._upsert(variables)}
        if name == "RunResumeStatus":
            return {"model": {"id": "p", "name": "p", "entity": _ENTITY,
                              "bucket": self._bucket(variables["name"])}}  # fmt: skip
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.server.address}/put/{f}"}
                     for f in variables["files"]]  # fmt: skip
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs[variables["name"]]
        run.group = variables.get("groupName") or run.group
        config = json.loads(variables.get("config") or "{}")
        run.config |= {name: item["value"] for name, item in config.items()}
        project = {"id": "p", "name": variables.get("project"), "entity": _ENTITY}
        bucket = {"id": "b", "name": variables["name"], "displayName": "d", "description": None,
                  "config": "{}", "sweepName": None, "project": project,
                  "historyLineCount": len(run.history)}  # fmt: skip
        return {"bucket": bucket, "inserted": not run.history}

    def _bucket(self, name: str) -> dict[str, Any] | None:
        if name not in self.server.runs:
            return None
        run = self.server.runs[name]
        tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
        config = json.dumps({key: {"value": item} for key, item in run.config.items()})
        return {"id": "b", "name": name, "displayName": "d", "summaryMetrics":
                json.dumps(run.summary), "logLineCount": 0, "historyLineCount": len(run.history),
                "eventsLineCount": 0, "historyTail": tail, "eventsTail": "[]", "config": config,
                "tags": [], "notes": None, "wandbConfig": _STARTED}  # fmt: skip

    def _stream(self, run: Remote, sent: dict[str, Any]) -> None:
        for name, file in sent.get("files", {}).items():
            rows = [json.loads(row) for row in file["content"]]
            if name == "wandb-history.jsonl":
                run.history[file["offset"] :] = rows
            elif name == "wandb-summary.json":
                run.summary = rows[-1]
        run.complete = run.complete or bool(sent.get("complete"))

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, answer: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_ENTITY = {"id": "e", "name": "me"}
_STARTED = json.dumps({"t": 1})  # without it the client takes a run for one that never began
