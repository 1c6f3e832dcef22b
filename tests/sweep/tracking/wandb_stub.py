"""As much of W&B's server as its client needs: runs with their files, Artifacts, saved views."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import threading
import urllib.parse
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
    job_type: str | None = None
    display_name: str | None = None
    complete: bool = False
    used: list[str] = field(default_factory=list)  # ids of Artifacts
    logged: list[str] = field(default_factory=list)


@dataclass
class RemoteArtifact:
    """A version of an Artifact as the server has it."""

    name: str
    kind: str
    digest: str
    aliases: set[str]
    metadata: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    committed: bool = False


class WandbStub(http.server.ThreadingHTTPServer):
    """Serves on a free port of this machine; with `nonsense` every answer is an empty object."""

    daemon_threads = True

    def __init__(self, nonsense: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.nonsense = nonsense
        self.stalls = threading.Event()  # from then on no request is answered
        self._stopped = threading.Event()
        self.runs: defaultdict[str, Remote] = defaultdict(Remote)
        self.artifacts: dict[str, RemoteArtifact] = {}  # by id
        self.files: dict[str, bytes] = {}  # what was uploaded, by path
        self.views: dict[str, dict[str, Any]] = {}  # by name
        self.received = b""  # every byte that anyone sent
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may leave in the middle of a request."""

    def stall(self) -> None:
        """Keeps a request waiting, if that is how it is."""
        if self.stalls.is_set():
            self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbStub

    def log_message(self, *about: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        if found := re.fullmatch(r"/manifest/(.+)", path):
            self._answer(self.server.artifacts[found[1]].manifest)
        elif found := re.fullmatch(r"/artifact/(.+)", path):
            self._send(self.server.files[path])
        else:
            self._answer({})

    def do_PUT(self) -> None:
        body = self._body()
        self.server.files[urllib.parse.unquote(self.path)] = body
        if found := re.fullmatch(r"/manifest/(.+)", self.path):
            self.server.artifacts[found[1]].manifest = json.loads(body)
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        self.server.stall()
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
            place = f"{self.server.address}/put/{variables['run']}"
            files = [{"name": f, "uploadUrl": f"{place}/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if name == "UpsertView2" or "upsertView" in asked["query"]:
            return {"upsertView": self._view(variables)}
        if (answer := self._artifact(name, asked["query"], variables)) is not None:
            return answer
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs[variables["name"]]
        run.group = variables.get("groupName") or run.group
        run.job_type = variables.get("jobType") or run.job_type
        run.display_name = variables.get("displayName") or run.display_name
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

    def _view(self, variables: dict[str, Any]) -> dict[str, Any]:
        view = {**variables, "spec": json.loads(variables["spec"])}
        self.server.views[variables["name"]] = view
        return {"view": {"id": "v", "name": variables["name"]}, "inserted": True}

    def _artifact(self, name: str, query: str, sent: dict[str, Any]) -> dict[str, Any] | None:
        if "createArtifact(" in query:
            return {"createArtifact": {"artifact": self._new_artifact(sent["input"])}}
        if "createArtifactManifest(" in query:
            return {"createArtifactManifest": {"artifactManifest": self._manifest(sent)}}
        if "updateArtifactManifest(" in query:
            sent = {"artifactID": sent["artifactManifestID"]}
            return {"updateArtifactManifest": {"artifactManifest": self._manifest(sent)}}
        if "createArtifactFiles(" in query:
            nodes = [{"node": self._upload(file)} for file in sent["input"]["artifactFiles"]]
            return {"createArtifactFiles": {"files": {"edges": nodes}}}
        if "commitArtifact(" in query:
            artifact = self.server.artifacts[sent["artifactID"]]
            artifact.committed = True
            found = {"id": sent["artifactID"], "digest": artifact.digest}
            return {"commitArtifact": {"artifact": found}}
        if "useArtifact(" in query:
            asked = sent.get("input") or sent
            self.server.runs[asked["runName"]].used.append(asked["artifactID"])
            return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}
        if "artifactCollectionMembership(" in query:
            found = self._version(sent["name"])
            member = _membership(self.server.artifacts, *found) if found else None
            return {"project": {"artifactCollectionMembership": member}}
        if "query FetchArtifactManifest" in query:
            url = f"{self.server.address}/manifest/{sent['id']}"
            return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}
        if "artifactMembership(" in query:
            found = self._version(f"{sent['collection']}:{sent['alias']}")
            assert found is not None
            return {"project": {"artifactCollection": self._file_urls(found[1])}}
        return {"project": None} if query.lstrip().startswith("query ArtifactType") else None

    def _version(self, name: str) -> tuple[int, str] | None:
        """Number and id of "name:alias"; the number is its place among its namesakes."""
        name, _, alias = name.partition(":")
        versions = [(k, a) for k, a in self.server.artifacts.items() if a.name == name]
        for index, (key, artifact) in enumerate(versions):
            if alias in (f"v{index}", *artifact.aliases):
                return index, key
        return None

    def _file_urls(self, key: str) -> dict[str, Any]:
        edges = [{"node": {"__typename": "File", "name": n,
                           "directUrl": f"{self.server.address}/artifact/{key}/{n}"}}
                 for n in self.server.artifacts[key].manifest["contents"]]  # fmt: skip
        files = {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": edges}
        return {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}

    def _new_artifact(self, sent: dict[str, Any]) -> dict[str, Any]:
        """One version for each digest, as the service has it."""
        name, known = sent["artifactCollectionName"], self.server.artifacts
        same = (i for i, a in known.items() if (a.name, a.digest) == (name, sent["digest"]))
        key = next(same, f"A{len(known)}")
        artifact = known.setdefault(key, RemoteArtifact(
            name, sent["artifactTypeName"], sent["digest"], set(),
            json.loads(sent.get("metadata") or "{}"),
        ))  # fmt: skip
        aliases = {alias["alias"] for alias in sent.get("aliases") or []}
        for other in known.values():
            if other.name == name:
                other.aliases -= aliases
        artifact.aliases |= aliases
        if sent["runName"]:
            self.server.runs[sent["runName"]].logged.append(key)
        state = "COMMITTED" if artifact.committed else "PENDING"
        return {"id": key, "state": state,
                "artifactSequence": {"id": f"S{name}", "latestArtifact": None}}  # fmt: skip

    def _manifest(self, sent: dict[str, Any]) -> dict[str, Any]:
        key = sent["artifactID"]
        url = f"{self.server.address}/manifest/{key}"
        return {"id": key, "file": {"id": "f", "uploadUrl": url, "uploadHeaders": []}}

    def _upload(self, file: dict[str, Any]) -> dict[str, Any]:
        path = f"/artifact/{file['artifactID']}/{file['name']}"
        return {"storagePath": path, "uploadUrl": self.server.address + path,
                "uploadHeaders": [], "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]}}  # fmt: skip

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received += body
        return body

    def _answer(self, answer: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(answer).encode(), status)

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_ENTITY = {"id": "e", "name": "me"}


def _membership(known: dict[str, RemoteArtifact], index: int, key: str) -> dict[str, Any]:
    """A version of a collection, as the client's fragments ask for it."""
    artifact = known[key]
    when = "2026-01-01T00:00:00Z"
    project = {"id": "p", "internalId": "1", "name": "data", "entity": {"name": "me"}}
    collection = {"__typename": "ArtifactSequence", "name": artifact.name, "project": project}
    size = sum(entry["size"] for entry in artifact.manifest["contents"].values())
    version = {"__typename": "Artifact", "id": key, "artifactSequence": collection,
               "versionIndex": index, "artifactType": {"name": artifact.kind},
               "description": None, "metadata": "{}", "ttlDurationSeconds": -2,
               "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED",
               "size": size, "digest": artifact.digest, "commitHash": "", "createdAt": when,
               "fileCount": len(artifact.manifest["contents"]), "updatedAt": None,
               "digestAlgorithm": "MANIFEST_MD5", "aliases": []}  # fmt: skip
    return {"__typename": "ArtifactCollectionMembership", "id": f"m{key}", "versionIndex": index,
            "createdAt": when, "aliases": [], "artifactCollection": collection,
            "artifact": version}  # fmt: skip
_STARTED = json.dumps({"t": 1})  # without it the client takes a run for one that never began
